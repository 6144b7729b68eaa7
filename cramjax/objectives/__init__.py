"""Training objectives: corruption of a batch on the device, and its loss as (sum, weight)."""
