"""Finetuning on tasks: protocols, training of several seeds at once, results."""
