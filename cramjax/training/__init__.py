"""Training: state, step, loop, evaluation, records, checkpoints, and the run that puts them together."""
