"""Training: state, step, loop, evaluation, records, and the run that puts them together."""
