"""Tokenizers that others made: what they lose in silence is refused, what they lack is added."""

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cramjax.data import tokenizers
from cramjax.data.adoption import check_unknown
from cramjax.errors import UserError

TEXTS = ["the cat sat on the mat", "naïve café 😀", "a mat and a cat"] * 20
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def tokenizer_of(model, before=None, decoder=None, normalizer=None):
    tokenizer = Tokenizer(model)
    if before is not None:
        tokenizer.pre_tokenizer = before
    if decoder is not None:
        tokenizer.decoder = decoder
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def trained(tokenizer, trainer):
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level(alphabet=ALPHABET):
    tokenizer = tokenizer_of(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    special = ["<|endoftext|>"]
    settings = {"vocab_size": 300, "initial_alphabet": alphabet, "show_progress": False}
    return trained(tokenizer, trainers.BpeTrainer(special_tokens=special, **settings))


def unigram(**settings):
    pieces = [("<unk>", 0.0), *((letter, -1.0) for letter in "▁nave"), *((b, -9.0) for b in BYTES)]
    return models.Unigram(pieces, unk_id=0, byte_fallback=True, **settings)


# Each knows every character of the text, or its bytes.
READY = {
    "byte-level, no decoder": lambda: byte_level(),
    "metaspace, no decoder": lambda: trained(
        tokenizer_of(models.Unigram(), pre_tokenizers.Metaspace("_", prepend_scheme="first")),
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    ),
    "spaces by a normaliser, no decoder": lambda: tokenizer_of(
        unigram(),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "bytes without their decoder": lambda: tokenizer_of(
        unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace()
    ),
    "bytes without their decoder, in a sequence": lambda: tokenizer_of(
        unigram(),
        pre_tokenizers.Metaspace(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    ),
    "wordpiece @@, no decoder": lambda: trained(
        tokenizer_of(
            models.WordPiece(continuing_subword_prefix="@@", unk_token="[UNK]"),
            pre_tokenizers.WhitespaceSplit(),
        ),
        trainers.WordPieceTrainer(
            vocab_size=60,
            special_tokens=["[UNK]"],
            continuing_subword_prefix="@@",
            show_progress=False,
        ),
    ),
    "wordpiece @@ with the decoder of ##": lambda: trained(
        tokenizer_of(
            models.WordPiece(continuing_subword_prefix="@@", unk_token="[UNK]"),
            pre_tokenizers.WhitespaceSplit(),
            decoders.WordPiece(prefix="##"),
        ),
        trainers.WordPieceTrainer(
            vocab_size=60,
            special_tokens=["[UNK]"],
            continuing_subword_prefix="@@",
            show_progress=False,
        ),
    ),
    "suffix of words, no decoder": lambda: trained(
        tokenizer_of(
            models.BPE(end_of_word_suffix="</w>", unk_token="[UNK]"),
            pre_tokenizers.WhitespaceSplit(),
        ),
        trainers.BpeTrainer(
            vocab_size=60, special_tokens=["[UNK]"], end_of_word_suffix="</w>", show_progress=False
        ),
    ),
    "words, no decoder": lambda: tokenizer_of(
        models.WordLevel({"naïve": 0, "café": 1, "😀": 2, "[UNK]": 3}, unk_token="[UNK]"),
        pre_tokenizers.WhitespaceSplit(),
    ),
}


@pytest.mark.parametrize("case", READY)
def test_ids_become_the_text_again_here_and_in_transformers(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    READY[case]().save(str(tmp_path / "tokenizer.json"))
    tokenizer, _ = tokenizers.load(tmp_path / "tokenizer.json")
    check_unknown(tokenizer, "")
    tokenizers.save(tokenizer, tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")

    ids = tokenizer.encode("naïve café 😀").ids
    special = tokenizers.special_ids(tokenizer)
    assert set(special) == {"pad", "unk", "cls", "sep", "mask"}
    assert ids[0] == special["cls"] and ids[-1] == special["sep"]
    assert tokenizer.decode(ids) == "naïve café 😀"
    assert theirs.decode(ids, skip_special_tokens=True) == "naïve café 😀"


def test_a_template_of_the_file_stays(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    pairs = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*pairs)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded, _ = tokenizers.load(tmp_path / "tokenizer.json")
    tokens = loaded.encode("cat", "mat").tokens
    assert tokens[0] == "<s>" and tokens.count("</s>") == 3 and "[CLS]" not in loaded.get_vocab()


CLEAN = normalizers.BertNormalizer()  # deletes characters of private use
NO_ENTRY = {
    "wordpiece": (models.WordPiece({"a": 0, "b": 1}, unk_token="[UNK]"), "'[UNK]' is no entry"),
    "words": (models.WordLevel({"a": 0, "b": 1}, unk_token="<none>"), "'<none>' is no entry"),
    "bpe": (models.BPE({"a": 0, "b": 1}, [], unk_token="<none>"), "'<none>' is no entry"),
    "bpe without": (models.BPE({"a": 0, "b": 1}, []), "would vanish"),
    "unigram": (models.Unigram([("a", -1.0), ("b", -2.0)]), "is an error"),
}


@pytest.mark.parametrize("case", NO_ENTRY)
@pytest.mark.parametrize("normalizer", [None, CLEAN])
def test_a_tokenizer_without_an_unknown_token_is_refused(case, normalizer, tmp_path):
    model, problem = NO_ENTRY[case]
    path = tmp_path / "tokenizer.json"
    # An added token of that name is no entry of the model.
    tokenizer = tokenizer_of(model, normalizer=normalizer)
    tokenizer.add_special_tokens(["[UNK]", "<none>", "<unk>"])
    tokenizer.save(str(path))
    with pytest.raises(UserError) as caught:
        check_unknown(tokenizers.load(path)[0], f"data.tokenizer={path}")
    assert problem in str(caught.value) and str(path) in str(caught.value)


def test_bytes_that_are_no_entries_would_vanish():
    check_unknown(byte_level(), "t.json")
    with pytest.raises(UserError, match=r"t\.json: .* would vanish"):
        check_unknown(byte_level([]), "t.json")
