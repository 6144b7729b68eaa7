"""Tiny tasks of tags and of answers as files, for tests of finetuning."""

import json
import random

from tests.finetuning.grammar import WORDS, write_lines

KINDS = {"red": "B-color", "blue": "B-color", "cat": "B-animal", "dog": "B-animal"}


def write_conll(folder, n_train=60, n_dev=20):
    """Writes sentences whose tags follow from the words."""
    folder.mkdir(parents=True, exist_ok=True)
    chooser = random.Random(0)
    for name, n in (("train", n_train), ("dev", n_dev), ("test", 5)):
        lines = []
        for _ in range(n):
            words = chooser.choices(WORDS, k=chooser.randint(2, 30))
            lines += [f"{word}\t{KINDS.get(word, 'O')}" for word in words]
            lines.append("")
        write_lines(folder / f"{name}.conll", lines)
    return folder


def write_squad(folder, n_train=40, n_dev=12):
    """Writes SQuAD 1.1 and 2.0; "the red ?" is answered by the word "red"."""
    folder.mkdir(parents=True, exist_ok=True)
    chooser = random.Random(0)
    for name, n in (("train", n_train), ("dev", n_dev)):
        paragraphs = []
        for number in range(n):
            words = chooser.choices([word for word in WORDS if word != "red"], k=20)
            place = chooser.randrange(20)
            words[place] = "red"
            context = " ".join(words)
            answer = {"text": "red", "answer_start": len(" ".join([*words[:place], ""]))}
            asked = {"id": f"{name}{number}", "question": "the red ?", "answers": [answer]}
            paragraphs.append({"context": context, "qas": [asked]})
        write(folder / f"{name}-v1.1.json", paragraphs)

        for number, paragraph in enumerate(paragraphs[::2]):
            none = {"id": f"{name}-{number}", "question": "the ?", "answers": []}
            paragraph["qas"].append(none | {"is_impossible": True})
        write(folder / f"{name}-v2.0.json", paragraphs)
    return folder


def write(path, paragraphs):
    content = {"data": [{"title": "x", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content))
