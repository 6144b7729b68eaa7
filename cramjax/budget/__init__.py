"""The budget: one clock, what follows the share of it that is spent, and FLOPs. Pure Python."""
