"""The budget: one clock, schedules over the share that is spent, and FLOPs. Pure Python."""
