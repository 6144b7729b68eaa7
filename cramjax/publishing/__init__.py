"""Models made here for others to use: exported with a model card."""
