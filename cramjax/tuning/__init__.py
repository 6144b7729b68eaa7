"""Choices that depend on the device: precision, attention kernel, microbatch."""
