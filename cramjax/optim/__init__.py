"""Optimizers: which update each parameter gets by its role, and dynamic loss scaling for float16."""
