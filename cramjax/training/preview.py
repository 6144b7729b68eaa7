"""The first training examples as text: what the model reads and what it is to predict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from cramjax import start
from cramjax.checkpoints import pretrained
from cramjax.config.views import Config
from cramjax.console import Progress
from cramjax.data import loader as loaders
from cramjax.data import prepare, tokenizers
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families
from cramjax.training import text_amount


def preview(config: Config, n_examples: int) -> Iterator[str]:
    """Yields lines with the first `n_examples` rows of step 0, corrupted with its keys.

    It prepares the data first if that is not done yet. The targets of masked language modelling are
    the words behind the masks in their order.
    """
    start.start()
    with contextlib.closing(Progress()) as progress:
        config = pretrained.with_tokenizer(config)
        config = text_amount.settled(config, None, progress.announce)
        dataset = prepare.open_data(config.data, progress.announce)

    objective = families.build(config, dataset, FLOAT32)
    source = loaders.open_loader(
        dataset,
        seed=config.seed,
        seq_len=objective.row_shape,
        cls_token=config.data.cls_token,
        order=config.data.order,
        loader="numpy",
    )
    tokens = next(source.stream(0, n_examples))
    source.close()

    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    rows = np.arange(n_examples, dtype=np.int32)
    inputs, targets = jax.device_get(jax.jit(objective.preview)(key, tokens, rows))

    file = dataset.directory / "tokenizer" / "tokenizer.json"
    tokenizer, _ = tokenizers.load(file)
    for row in range(n_examples):
        yield f"example {row}: {inputs.shape[1]} tokens in, {targets.shape[1]} to predict"
        for name, ids in (("inputs ", inputs[row]), ("targets", targets[row])):
            yield f"  {name}: {tokenizer.decode(ids.tolist(), skip_special_tokens=False)}"
