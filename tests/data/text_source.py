"""Sources of documents made from numbers; they can be pickled, and count on disk what was read."""

import dataclasses
import itertools
import os
import pathlib
import random
import time

from cramjax.errors import UserError

FIRST_SYLLABLES = ("ka", "mo", "ti", "sul", "re", "ban", "pol", "ge")
LAST_SYLLABLES = ("ra", "nis", "to", "lem", "du", "shi")
WORDS = [first + last for first, last in itertools.product(FIRST_SYLLABLES, LAST_SYLLABLES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakePart:
    source: int
    name: str
    key: str
    n_bytes: int | None


def document(seed: int, number: int) -> str:
    """Make the document of this number; every number gives another one."""
    chooser = random.Random(seed * 1_000_003 + number)
    sentences = [
        " ".join(chooser.choices(WORDS, k=chooser.randint(3, 12))).capitalize() + " ."
        for _ in range(chooser.randint(2, 8))
    ]
    return " ".join(sentences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeSource:
    """A small source in parts.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        revision: See `TextSource`.
        seed: Other seeds have other documents.
        parts_n: Number of parts.
        documents_n: Documents in each part.
        texts: Documents that every part has besides.
        bad: Records that each part drops.
        log: A folder that gets a file for every part that is read to its end.
        pause_s: Seconds to sleep before each document.
        reverse: List the parts in reverse order.
        mistake: Message of the UserError that reading the fourth part raises.
    """

    spec: str = "fake:docs"
    weight: float = 1.0
    revision: str | None = None
    seed: int = 0
    parts_n: int = 6
    documents_n: int = 40
    texts: tuple[str, ...] = ()
    bad: int = 0
    log: str | None = None
    pause_s: float = 0.0
    reverse: bool = False
    mistake: str | None = None

    def parts(self):
        names = [f"part-{number:03d}" for number in range(self.parts_n)]
        parts = [
            FakePart(source=0, name=name, key=f"{name}-{self.seed}", n_bytes=10_000)
            for name in names
        ]
        return parts[::-1] if self.reverse else parts

    def read(self, part, drop):
        number = int(part.name.split("-")[1])
        if self.mistake and number == 3:
            raise UserError(self.mistake)
        yield from self.texts
        for index in range(self.bad):
            drop("not_json", f"{part.name}:{index}")
        for index in range(self.documents_n):
            time.sleep(self.pause_s)
            yield document(self.seed, number * self.documents_n + index)
        if self.log:
            pathlib.Path(self.log, f"{part.name}.{os.getpid()}.{time.monotonic_ns()}").touch()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigSource:
    """A source of `n_mb` MB, made quickly.

    Its documents have about 2,000 characters, and one of them is a line of 50 MB.
    """

    n_mb: int
    spec: str = "fake:big"
    weight: float = 1.0
    revision: str | None = None

    def parts(self):
        names = [f"big-{number}" for number in range(max(1, self.n_mb // 50))]
        return [FakePart(source=0, name=name, key=name, n_bytes=50_000_000) for name in names]

    def read(self, part, drop):
        chooser = random.Random(part.name)
        pool = [document(7, number) for number in range(2000)]
        if part.name == "big-0":
            yield " ".join(chooser.choices(pool, k=150_000))
            return
        n_chars = 0
        while n_chars < 50_000_000:
            text = " ".join(chooser.choices(pool, k=6))
            n_chars += len(text)
            yield text
