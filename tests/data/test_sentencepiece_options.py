"""SentencePiece with every option that changes ids: the same ids, or a refusal by name."""

import functools
import io
import random
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies

from cramjax.data import tokenizers
from cramjax.data.charsmap import sources
from cramjax.data.sentencepiece_model import to_tokenizer
from cramjax.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")
model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

WORDS = (
    "the cat sat on naïve café Straße 漢字 かな カタカナ слово Привет שלום مرحبا 123 4567 12,5 <x> "
    "ab<x> <0x41> foo_bar http://a.b 😀 👨\u200d👩\u200d👧 re-do don't unk"
).split()
GAPS = [" "] * 6 + ["", "  ", "   ", "\n", ", ", ". ", "\u00a0", "\u3000", "\t"]
LETTERS = "abcdexyztué漢字かпришמر0123456789 <>x/sk.,-_\n\t\r\u00a0\u3000▁😀\u0301①ＡÉİßàQИｶﾞ"

OPTIONS = {
    "plain": {},
    "split_by_whitespace": {"split_by_whitespace": False},
    "split_by_number": {"split_by_number": False},
    "split_by_unicode_script": {"split_by_unicode_script": False},
    "split_digits": {"split_digits": True},
    "treat_whitespace_as_suffix": {"treat_whitespace_as_suffix": True},
    "suffix and no split": {"treat_whitespace_as_suffix": True, "split_by_whitespace": False},
    "whitespace_only_pieces": {
        "allow_whitespace_only_pieces": True,
        "remove_extra_whitespaces": False,
    },
    "byte_fallback": {"byte_fallback": True, "character_coverage": 0.98},
    "user_defined_symbols": {"user_defined_symbols": ["<x>", "b<x", "\n"]},
    "user-defined letters": {"user_defined_symbols": ["a", "1", "é"]},
    "user-defined spaces": {
        "user_defined_symbols": ["▁▁", "▁the"],
        "remove_extra_whitespaces": False,
    },
    "user-defined and no split": {
        "user_defined_symbols": ["<x>", "12"],
        "split_by_whitespace": False,
    },
    "control_symbols": {"control_symbols": ["<c>"]},
    "add_dummy_prefix": {"add_dummy_prefix": False},
    "remove_extra_whitespaces": {"remove_extra_whitespaces": False},
    "neither": {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "identity": {"normalization_rule_name": "identity"},
    "identity and spaces": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "nfkc": {"normalization_rule_name": "nfkc"},
    "nmt_nfkc_cf": {"normalization_rule_name": "nmt_nfkc_cf"},
    "unk_piece": {"unk_piece": "cat", "unk_surface": " ?? "},
}
N_PIECES = {"unigram": 150, "bpe": 220, "char": 100}


def sentence(chooser):
    text = chooser.choice(["", "", " ", "  "])
    for _ in range(chooser.randrange(1, 14)):
        text += chooser.choice(WORDS) + chooser.choice(GAPS)
    return text


def corpus():
    chooser = random.Random(0)
    # Each character of the names of control symbols and bytes is a piece.
    return [sentence(chooser) for _ in range(1200)] + ["<unk></s> <0xABCDEF0123456789>"] * 200


@functools.cache
def train(kind, name):
    """Return a tiny model with an option."""
    settings = {"model_type": kind, "num_threads": 1, "minloglevel": 2} | OPTIONS[name]
    settings["vocab_size"] = N_PIECES[kind] + 256 * settings.get("byte_fallback", False)
    if kind == "unigram":
        settings["hard_vocab_limit"] = False
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, **settings
    )
    return model.getvalue()


@functools.cache
def twins(kind, name):
    """Return SentencePiece's own processor and our tokenizer."""
    model = train(kind, name)
    return sentencepiece.SentencePieceProcessor(model_proto=model), to_tokenizer(model)


def check_same(kind, name, text):
    theirs, ours = twins(kind, name)
    expected = theirs.encode(text)
    ids = ours.encode(text, add_special_tokens=False).ids
    if ids != expected and kind != "bpe":
        # Sums of scores in float32 and in float64 part ways at ties.
        sums = [sum(map(theirs.get_score, candidate)) for candidate in (ids, expected)]
        written = ["".join(map(theirs.id_to_piece, candidate)) for candidate in (ids, expected)]
        assert written[0] == written[1] and sums[0] == pytest.approx(sums[1], abs=1e-4)
    else:
        assert ids == expected
    # With white space as suffix, SentencePiece takes a space off the beginning of a text.
    if theirs.unk_id() not in ids and "suffix" not in name:
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    "kind, name",
    [(kind, name) for kind in ("unigram", "bpe") for name in OPTIONS]
    + [("char", "plain"), ("char", "byte_fallback"), ("char", "treat_whitespace_as_suffix")],
)
def test_every_option_gives_sentencepieces_ids(kind, name):
    chooser = random.Random(1)
    difficult = ["", " ", "  ", "▁", "▁▁a", " a ", "\n\na", "a\n", "<x>", " <x> b", "<x><x> a"]
    names = ["</s> a", "a<unk>b", "<0x41>", "x" * 300, "ｶﾞ b", "И\u0301 ́", "a\r\nb"]
    for text in [*difficult, *names, *(sentence(chooser) for _ in range(60))]:
        check_same(kind, name, text)


def only_neighbours_compose(text):
    """Tells if NFC moves no mark and joins no mark over another (see `charsmap_steps`)."""
    joined = ""
    for char in "".join(unicodedata.normalize("NFKC", char) for char in text):
        joined = joined[:-1] + unicodedata.normalize("NFC", joined[-1:] + char)
    return joined == unicodedata.normalize("NFKC", text)


@hypothesis.given(
    kind=strategies.sampled_from(["unigram", "bpe"]),
    name=strategies.sampled_from(sorted(OPTIONS)),
    parts=strategies.lists(strategies.sampled_from([*WORDS, *GAPS, *LETTERS]), max_size=12),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_text_gives_sentencepieces_ids(kind, name, parts):
    text = "".join(parts)
    hypothesis.assume(only_neighbours_compose(text))
    check_same(kind, name, text)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_what_transformers_reads_of_it_gives_the_same_text(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "m.model").write_bytes(train(kind, "byte_fallback"))
    tokenizer, model = tokenizers.load(tmp_path / "m.model")
    tokenizers.save(tokenizer, tmp_path / "saved", model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "naïve café 😀 Ω"
    ids = theirs(text)["input_ids"]
    assert ids == tokenizer.encode(text).ids
    assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == text


def changed(change, kind="unigram", name="plain"):
    """Return the bytes of a model after a change."""
    proto = model_pb2.ModelProto.FromString(train(kind, name))
    change(proto)
    return proto.SerializeToString()


def set_types(proto, types):
    for number, kind in types.items():
        proto.pieces[number].type = kind


@pytest.mark.parametrize(
    "option, change",
    [
        ("model_type=word", lambda proto: setattr(proto.trainer_spec, "model_type", 3)),
        ("UNUSED", lambda proto: set_types(proto, {5: 5})),
        ("unk_id", lambda proto: set_types(proto, {0: 3})),
        (
            "escape_whitespaces=False",
            lambda proto: setattr(proto.normalizer_spec, "escape_whitespaces", False),
        ),
        (
            "denormalization_rule_tsv",
            lambda proto: setattr(proto.denormalizer_spec, "precompiled_charsmap", b"1234"),
        ),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused_by_name(option, change, tmp_path):
    path = tmp_path / "odd.model"
    path.write_bytes(changed(change))
    with pytest.raises(UserError, match=option) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def own_rules(tmp_path, lines):
    rules = tmp_path / "rules.tsv"
    rules.write_text("".join(f"{line}\n" for line in lines))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()[:300]),
        model_writer=model,
        vocab_size=150,
        hard_vocab_limit=False,
        normalization_rule_tsv=str(rules),
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def test_own_rules_of_characters_are_read_or_refused(tmp_path):
    model = own_rules(tmp_path, ["61\t65", "49\t73 73", "E9\t65"])
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=model), to_tokenizer(model)
    for text in ["I sat on a café", "aI\u0301 ea"]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)
    with pytest.raises(UserError, match=r"normalization_rule_tsv has a rule for '->'"):
        to_tokenizer(own_rules(tmp_path, ["61\t65", "2D 3E\t2192"]))


def test_marks_keep_their_letters_under_the_standard_rules():
    """A library's shortcut lost the accent of И\u0301 under nmt_nfkc_cf, and took ｶﾞ apart."""
    own = sentencepiece.SentencePieceNormalizer(
        rule_name="nmt_nfkc_cf", escape_whitespaces=False, add_dummy_prefix=False
    )
    normalizer = twins("unigram", "nmt_nfkc_cf")[1].normalizer
    for text in ["И\u0301", "ｶﾞ", "Q\u0301", "①\u0301", "e\u0301", "\u1100\u1161\u11a8", "ＡＢ"]:
        assert normalizer.normalize_str(text) == own.normalize(text)


def test_the_rules_of_a_charsmap_are_found(tmp_path):
    model = own_rules(tmp_path, ["61\t65", "61 301\t65", "1F600\t3A 29", "E9\t65"])
    spec = model_pb2.ModelProto.FromString(model).normalizer_spec
    assert sorted(sources(spec.precompiled_charsmap)) == ["a", "a\u0301", "é", "😀"]
