"""Text to token shards to batches: sources, preparation, reading. No JAX; TensorFlow in two files alone."""
