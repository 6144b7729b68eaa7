"""Optimizers: the update of each parameter by its role, and loss scaling for float16."""
