"""Text that would vanish is kept, counted, said or refused."""

import logging
import random

import pytest
from text_source import FakeSource

from cramjax.config import languages, schema
from cramjax.data import lost_text, normalization, prepare, tokenizers
from cramjax.data.encode import Encoder
from cramjax.data.tally import Tally
from cramjax.errors import UserError
from tests.data.executors import InThisProcess

RANDOM = random.Random(1)


def settings(**changes):
    data = schema.defaults().data
    data.update(vocab_size=300, heldout_fraction=0.1)
    data.update(changes)
    data.update(languages.choices(data))
    return data


def trained(kind, texts, vocab_size=300, language=None, lowercase=False, ascii_only=False):
    return tokenizers.train(
        kind,
        texts,
        vocab_size=vocab_size,
        lowercase=lowercase,
        ascii_only=ascii_only,
        language=language,
    )[0]


def tally_of(tokenizer, texts):
    return Encoder(tokenizer).encode(texts)[1]


def chinese(n_documents):
    """Documents of 2,500 different characters by Zipf's law, in clauses of 6 to 20."""
    characters = [chr(0x4E00 + number) for number in range(2500)]
    weights = [1 / rank for rank in range(1, 2501)]
    documents = []
    for _ in range(n_documents):
        clauses = []
        for _ in range(RANDOM.randint(3, 8)):
            clauses.append("".join(RANDOM.choices(characters, weights, k=RANDOM.randint(6, 20))))
        documents.append("，".join(clauses) + "。")
    return documents


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_chinese_is_known(kind):
    texts = chinese(600)
    tally = tally_of(trained(kind, texts, 8192), texts)
    assert tally.unknown_token_share < 0.005 and tally.unknown_character_share < 0.005


def test_each_han_character_is_a_word():
    texts = ["上海abc東京大学 中文", "bc京 学a"] * 5
    tokens = trained("wordpiece", texts, 60).encode(texts[0], add_special_tokens=False).tokens
    assert tokens[:2] == ["上", "海"] and tokens[-2:] == ["中", "文"]
    assert not any(token.startswith("##") and not token.isascii() for token in tokens)


@pytest.mark.parametrize("length", [100, 101, 350])
def test_words_of_any_length_become_pieces(length):
    texts = ["a short text of letters"] * 9
    tally = tally_of(trained("wordpiece", texts, 60), ["letters" * (length // 7 + 1)])
    assert tally.unknown_tokens == 0 and tally.tokens > 3


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_reads_of_dna_are_known(kind):
    reads = ["".join(RANDOM.choices("ACGT", k=RANDOM.randint(150, 400))) for _ in range(200)]
    tally = tally_of(trained(kind, reads, 128, "dna", lowercase=True), reads)
    assert tally.unknown_tokens == 0 and tally.tokens < tally.characters


@pytest.mark.parametrize(
    "text, expected",
    [
        ("war of 1990–1995", "war of 1990-1995"),
        ("cats—dogs", "cats-dogs"),
        ("a−b ‐ c", "a-b - c"),
        ("“quoted” ‘it’s’ «x»", '"quoted" \'it\'s\' "x"'),
        ("one•two…three", "one two...three"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("ﬁne Ａ ½", "fine a 1 2"),
        ("café Straße", "cafe strae"),
    ],
)
def test_signs_become_ascii_or_a_space(text, expected):
    chain = normalization.normalizer(lowercase=True, ascii_only=True)
    assert chain.normalize_str(text) == expected


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.parametrize("language, text", [("fa", "می‌خواهم کتاب"), ("hi", "क्‍ष राम")])
def test_joiners_are_part_of_a_word(kind, language, text):
    tokenizer = trained(kind, [text] * 20, 60, language)
    joiner = next(character for character in text if character in "\u200c\u200d")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert joiner in tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_code_keeps_its_white_space(kind):
    code = "def f(x):\n    if x > 10:\n\t\treturn  x\n"
    tokenizer = trained(kind, [code] * 40, 80, "code")
    ids = tokenizer.encode(code, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == code
    assert tally_of(tokenizer, [code]).unknown_tokens == 0


def test_arabic_leaves_out_its_vowel_marks():
    chain = normalization.normalizer(lowercase=False, ascii_only=False, language="ar")
    assert chain.normalize_str("كِتَابٌ ـــ") == "كتاب "


def test_deleted_and_unknown_characters_are_counted():
    tokenizer = trained("wordpiece", ["plain words alone"] * 9, 60, ascii_only=True)
    tally = tally_of(tokenizer, ["plain Ж words", "字字"])
    assert (tally.characters, tally.deleted_characters) == (13, 3)
    assert set(tally.deleted) == {"Ж", "字"} and tally.unknown_tokens == 0

    tokenizer = trained("wordpiece", ["plain words alone"] * 9, 60)
    tally = tally_of(tokenizer, ["plain ЖЖ words 字"])
    assert (tally.unknown_tokens, tally.unknown_characters) == (2, 3)
    assert tally.unknown == ("ЖЖ", "字") and tally.longest_unknown == 2
    assert tally.deleted_characters == 0


def test_tallies_add_up():
    one = Tally(characters=3, tokens=2, unknown_tokens=1, unknown=("x",), longest_unknown=5)
    two = Tally(characters=4, tokens=8, deleted=("é",), unknown=("x", "y"), longest_unknown=2)
    total = one + two
    assert (total.characters, total.tokens, total.longest_unknown) == (7, 10, 5)
    assert total.unknown == ("x", "y") and total.unknown_token_share == 0.1
    assert Tally().shares() == dict.fromkeys(total.shares(), 0.0)


def unknown(share, **changes):
    """A tally in which that share of the text is unknown."""
    number = int(1000 * share)
    tally = Tally(characters=1000, tokens=1000, unknown_tokens=number, unknown_characters=number)
    return lost_text.of_characters([("a.txt", tally), ("b.txt", Tally())], settings(**changes))


@pytest.mark.parametrize("share, said, refused", [(0.005, 0, 0), (0.1, 1, 0), (0.3, 0, 1)])
def test_a_hundredth_is_said_and_a_fifth_refused(share, said, refused, caplog):
    caplog.set_level(logging.WARNING, "cramjax")
    if refused:
        with pytest.raises(UserError, match=r"30.0% of the tokens.*data\.allow_loss=True"):
            lost_text.judge(unknown(share), settings(), set())
        lost_text.judge(unknown(share), settings(allow_loss=True), set())
        said = 1
    else:
        lost_text.judge(unknown(share), settings(), set())
    assert len(caplog.records) == said


def test_a_loss_is_said_once(caplog):
    said = set()
    for _ in range(2):
        lost_text.judge(unknown(0.1), settings(), said)
    assert len(caplog.records) == 1 and said == {"unknown"}


@pytest.mark.parametrize(
    "changes, cause",
    [
        ({}, "raise data.vocab_size"),
        ({"tokenizer": "x.json"}, "x.json has no entries"),
        ({"language": "zh"}, "data.vocab_size=300"),
    ],
)
def test_the_cause_and_the_cure_are_named(changes, cause):
    (loss,) = [loss for loss in unknown(0.5, **changes) if loss.share]
    assert cause in loss.sentence and "most of it in a.txt" in loss.sentence


def test_a_filter_that_one_sets_is_meant():
    dropped = {"min_chars": 80, "duplicate": 80, "compressibility": 80, "not_json": 80}
    losses = lost_text.of_documents(dropped, 80, settings(compressibility=0.25))
    assert [loss.is_meant for loss in losses] == [True, True, False, False]
    assert {loss.share for loss in losses} == {0.2}


def test_half_of_the_documents_without_ascii_is_refused(tmp_path):
    ideographs = [text.replace("，", "").replace("。", "") for text in chinese(40)]
    source = FakeSource(parts_n=1, documents_n=40, texts=tuple(ideographs))
    data = settings(cache_dir=str(tmp_path), language="cramming", compressibility=None)
    with pytest.raises(UserError, match=r"data\.ascii_only.*set data\.language"):
        prepare.prepare(data, [source], n_workers=1)

    # The same command goes on, and says what it lost.
    data.allow_loss = True
    manifest = prepare.read_manifest(prepare.prepare(data, [source], n_workers=1))
    assert manifest["dropped"] == {"no_tokens": 40}
    assert manifest["deleted_character_share"] > 0.1 and manifest["unknown_token_share"] == 0
    assert ("dropped: no_tokens", "40 (50.00% of documents)") in lost_text.rows(manifest)


def test_more_characters_than_entries_say_how_many_are_needed():
    texts = ["".join(chr(0x4E00 + number) for number in range(2490))] * 3
    with pytest.raises(UserError, match=r"raise it to at least 249\d"):
        trained("unigram", texts, 1024)


def test_a_tokenizer_that_does_not_know_the_text_is_refused_before_it_is_encoded(tmp_path):
    trained("wordpiece", ["plain words alone"] * 9, 60).save(str(tmp_path / "tokenizer.json"))
    data = settings(cache_dir=str(tmp_path / "data"), tokenizer=str(tmp_path / "tokenizer.json"))
    source = FakeSource(parts_n=1, documents_n=0, texts=tuple(chinese(40)))
    executor = InThisProcess()
    with pytest.raises(UserError, match=r"tokenizer\.json has no entries for them"):
        prepare.prepare(data, [source], executor=executor)
    assert not any(job.startswith("encoded/") for job in executor.done)


def test_damaged_records_are_refused_before_the_tokenizer_is_trained(tmp_path):
    source = FakeSource(parts_n=2, documents_n=20, bad=20)
    data = settings(cache_dir=str(tmp_path))
    executor = InThisProcess()
    with pytest.raises(UserError, match=r"50\.0% of the documents \(40\) are not JSON"):
        prepare.prepare(data, [source], executor=executor)
    assert not any(job.startswith("sample/") for job in executor.done)
