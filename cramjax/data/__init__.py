"""Text to token shards to batches: sources, preparation, reading.

No file here imports JAX; only `tfdata_loader.py` and `tfds_source.py` import TensorFlow.
"""
