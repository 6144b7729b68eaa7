"""Real paragraphs of seven languages, where the corpus is at hand."""

import gzip
import json

import pytest


def paragraphs(root, language):
    """The 240 paragraphs of XQuAD in a language; skips where the corpus is not."""
    path = root.parent / "shared" / "data" / "qa" / f"xquad.{language}.json.gz"
    if not path.exists():
        pytest.skip("no corpus here")
    texts = []
    for article in json.loads(gzip.decompress(path.read_bytes()))["data"]:
        texts += [paragraph["context"] for paragraph in article["paragraphs"]]
    return texts
