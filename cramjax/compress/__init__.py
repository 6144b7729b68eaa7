"""Trained models made smaller: pruned, quantised, measured and written at their true size."""
