"""Exports a trained or finetuned model as a folder for `transformers`.

The folder holds weights, tokenizer and model card, and appears only after all checks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from safetensors import SafetensorError

from cramjax.checkpoints import packed
from cramjax.errors import RunFailed, UserError
from cramjax.files import FileLock
from cramjax.hub import directory, sentence_files
from cramjax.inference import load
from cramjax.publishing import card, parity, saving
from cramjax.publishing.facts import read_facts
from cramjax.publishing.stock import stock_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The ways in which an export can differ.

    Attributes:
        dtype: of the weights, a key of `saving.DTYPES`.
        max_shard_size: the largest file of weights, for example "5GB".
        verify: compare logits with torch's.
        license: the Hub's name of a license, for the card.
        language: the code of the text's language, for the card.
        results: a results.json of `tools.finetune`, whose table the card shows.
        name: of the model on the card; None for the name of the folder.
        step: of the checkpoint; None for the newest.
    """

    dtype: str = "float32"
    max_shard_size: str = "5GB"
    verify: bool = False
    license: str = "unknown"
    language: str = "en"
    results: pathlib.Path | None = None
    name: str | None = None
    step: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export.

    Attributes:
        architecture: the class of `transformers`.
        step: of the run's checkpoint; None for a packed model.
    """

    architecture: str
    step: int | None


def export(
    checkpoint: str | pathlib.Path,
    out: str | pathlib.Path,
    options: Options | None = None,
    tell: Callable[[str], None] = print,
) -> Exported:
    """Write the model of a run's, a finetuned or a packed model's folder to `out`.

    The files of an earlier export in `out` are replaced when the new ones are complete and
    checked. Other files there stay.

    Args:
        checkpoint: the folder with the model.
        out: the folder to write, new or with an earlier export.
        options: see `Options`.
        tell: gets a line for each check that passed.

    Raises:
        UserError: if there is no such model, no class of `transformers` computes it, or `out`
            holds other things.
        RunFailed: if the written files fail a check, or the disk is full. Nothing is left of them.
    """
    options = options or Options()
    source = pathlib.Path(checkpoint)
    out = pathlib.Path(out)
    _check_arguments(source, out, options)

    loaded = load(source, options.step, dequantize=True)
    facts = read_facts(source, options.results, loaded.step)
    facts = dataclasses.replace(facts, n_entries=loaded.tokenizer.get_vocab_size())
    model = stock_model(source, loaded)

    with _staged(out) as staged:
        raw = saving.save(staged, model, dtype=options.dtype, max_shard_size=options.max_shard_size)
        (architecture,) = raw["architectures"]
        tell(f"{architecture}: config.json and all tensors are as the class has them")
        if loaded.is_detector and architecture.endswith("Model"):
            tell("this is the encoder alone: no such class has a head that finds replaced tokens")

        # A narrower dtype rounds.
        is_exact = options.dtype == "float32"
        config, params = saving.read_back(staged, model, exact=is_exact)
        precision = ", bit for bit" if is_exact else f" from {options.dtype}"
        tell(f"read back{precision}")

        if options.verify:
            difference = parity.compare(staged, config, params, model.tokenizer)
            what = "embeddings" if model.sentence else "logits"
            tell(f"transformers: the same token ids, {what} within {difference:.1e}")

        card.write(
            staged,
            facts,
            raw,
            name=options.name or out.name,
            license=options.license,
            language=options.language,
        )
    return Exported(architecture=architecture, step=loaded.step)


def _check_arguments(source: pathlib.Path, out: pathlib.Path, options: Options) -> None:
    """Raises UserError for what can be refused before a model is loaded."""
    if out.is_dir() and any(out.iterdir()) and not directory.is_hf_directory(out):
        raise UserError(
            f"--out {out}: holds other files; name a new folder or that of an earlier export"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")

    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", options.max_shard_size):
        raise UserError(
            f"--max_shard_size {options.max_shard_size}: must be a size, for example 5GB or 500MB"
        )

    if not (source / "checkpoints").is_dir() and not packed.is_packed(source):
        problem = "no checkpoint of a run there"
        if directory.is_hf_directory(source):
            problem = "is a model of transformers already"
        raise UserError(f"{source}: {problem}; name the folder of a run or of a finetuned model")


@contextlib.contextmanager
def _staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder beside `out`; its files move to `out` at the end, unless an error ends it.

    The folder has one name, so that the next export removes what a killed one has left. A lock
    tells a killed export from one that goes on.
    """
    staged = out.with_name(f".{out.name}.export")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(staged.with_name(f"{staged.name}.lock"))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error

    with lock:
        if not lock.acquire():
            raise UserError(f"--out {out}: another export writes there; wait for its end")
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            yield staged
            _move(staged, out)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunFailed(
                f"--out {out}: cannot be written ({reason}); free space there or name another "
                "folder, and export again"
            ) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            # A lock that stays keeps nobody out.
            with contextlib.suppress(OSError):
                staged.with_name(f"{staged.name}.lock").unlink()


def _move(staged: pathlib.Path, out: pathlib.Path) -> None:
    """Move the files of `staged` to `out`, in place of those of an earlier export."""
    if not out.exists():
        staged.rename(out)
        return

    # An earlier export may have had more files of weights.
    names = {path.name for path in staged.iterdir()}
    for path in out.glob(saving.WEIGHTS):
        if path.name not in names:
            path.unlink()
    # An earlier export may have been one of embeddings.
    for name in sentence_files.NAMES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / sentence_files.FOLDER, ignore_errors=True)
    # By config.json the next export knows the folder again, if this one is killed here.
    for path in sorted(staged.iterdir(), key=lambda path: path.name != "config.json"):
        path.replace(out / path.name)
