"""Text that the recipes name on the Hugging Face Hub, beside the C4 that they read by default.

A name here is a variant of every recipe that reads the Hub, alone or behind another one:
`bert_1day.py:fineweb_edu`, `t5_1day.py:small+climbmix`. Only as many files are downloaded as
`data.max_mb` takes. Files and fields were compared with the datasets in November 2026.

- `c4` (no variant): allenai/c4, the English web of April 2019 by T5's rules (arXiv 1910.10683,
  section 2.2). ODC-BY and the terms of Common Crawl. 1,024 files of 320 MB; 0.4 GB of downloads
  for a GB of text.
- `fineweb_edu`: HuggingFaceFW/fineweb-edu, pages of Common Crawl that a classifier calls
  educational (arXiv 2406.17557); the sample of 350 billion tokens. ODC-BY. Files of 2.15 GB; 0.65
  GB for a GB of text. Fields `score` and `int_score` for `data.keep`. In nanochat's runs of GPT-2
  size it beat FineWeb, DCLM and OLMo's mixture (dev/LOG.md there).
- `climbmix`: ClimbMix, 400 billion tokens of web clusters in weights that were searched for on
  small models (arXiv 2504.13161). The original (nvidia/Nemotron-ClimbMix) holds GPT-2's ids; this
  is the text, shuffled, by nanochat's author (karpathy/climbmix-400b-shuffle). CC BY-NC 4.0: for
  research, not for commerce. 6,543 files of 100 MB; 0.4 GB for a GB of text. nanochat reached the
  score of GPT-2 27% sooner than on FineWeb-Edu, the largest gain in its log. Causal models, 8 H100;
  nobody has measured it for a masked one yet.
- `pile_ids`: the Pile as Cramming's authors filtered, tokenized and sorted it (arXiv 2212.14034,
  section 4.4; `pile-readymade` in their code), with their tokenizer: the data of the published
  scores. Rows of 128 ids, 85 million, 24 GB. Licences differ by subset of the Pile (arXiv
  2101.00027). For encoders with sequences of 128 tokens.
"""

from __future__ import annotations

from typing import Any

from cramjax.config.views import Config

C4 = "hf:allenai/c4:en/c4-train.*.json.gz"
_PILE = "hf:JonasGeiping/the_pile_WordPiecex32768_2efdb9d060d1ae95faf952ec1a50f020"

WEB: dict[str, dict[str, Any]] = {
    "fineweb_edu": {"source": "hf:HuggingFaceFW/fineweb-edu:sample/350BT/*.parquet"},
    "climbmix": {"source": "hf:karpathy/climbmix-400b-shuffle:shard_*.parquet"},
}
"""Name → the keys of `data` that it sets, for any recipe."""

IDS: dict[str, dict[str, Any]] = {
    "pile_ids": {
        "source": f"{_PILE}:data/train-*.parquet",
        "text_field": "input_ids",
        "tokenizer": f"{_PILE}:tokenizer/tokenizer.json",
        "vocab_size": 32768,
        "compressibility": None,
        "dedup_exact": False,
    },
}
"""Name → the same for ready-made ids, which suit one length and one vocabulary."""

_IDS_ROW = 128


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """Returns name → keys of `data` of the texts that suit a recipe; {} if it reads no Hub."""
    data = config.data
    if not str(data.source).startswith("hf:"):
        return {}
    shape = (config.model.family, data.seq_len, data.vocab_size, data.cls_token)
    suits_ids = shape == ("encoder", _IDS_ROW, 32768, False)
    return WEB | IDS if suits_ids else dict(WEB)
