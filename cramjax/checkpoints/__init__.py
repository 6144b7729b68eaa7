"""Models on disk: the checkpoints of a run, packed models, and reading any of them."""
