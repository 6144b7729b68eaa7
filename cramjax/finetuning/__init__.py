"""Finetuning on the tasks of `benchmarks`: protocols, training of several seeds at once, results."""
