"""Networks: Flax NNX modules that exist while tracing, plain dicts of float32 arrays that hold them."""
