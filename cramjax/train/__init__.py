"""A run: state, step, loop, evaluation, and the records it leaves in its workdir."""
