"""Writes texts with an encoder-decoder, and scores them against references."""
