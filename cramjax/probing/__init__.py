"""Zero-shot probes of what a model knows, without training it."""
