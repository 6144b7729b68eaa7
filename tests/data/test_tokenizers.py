"""Training, determinism, special tokens, SentencePiece twins, and agreement with transformers."""

import itertools
import json
import random

import numpy as np
import pytest
from text_source import document

from cramjax.data import normalization, tokenizers
from cramjax.data.encode import Encoder
from cramjax.data.sentencepiece_model import to_tokenizer
from cramjax.errors import UserError

TEXTS = [document(0, number) + " Café naïve. Ünder ``quoted''" for number in range(300)]
ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def garbage():
    """Texts of random characters from several scripts, and some difficult ones."""
    ranges = [
        (32, 127),
        (0xA0, 0x3000),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0, 0xD800),
        (0xE000, 0x110000),
    ]
    chooser = random.Random(0)

    lines = []
    for _ in range(150):
        characters = [chr(chooser.randrange(*chooser.choice(ranges))) for _ in range(60)]
        lines.append("".join(characters))

    return [
        *lines,
        "",
        "   ",
        "[SEP] [MASK] in [UNK] text",
        "a\x00b\ufeffc",
        "ﬁ ① ＡＢＣ",
        "x" * 500,
        "e\u0301\u0323" * 30,
    ]


@pytest.fixture(scope="module", params=itertools.product(tokenizers.KINDS, (True, False)), ids=str)
def trained(request):
    """(kind, lowercase and ascii_only, tokenizer, SentencePiece model)."""
    kind, flag = request.param
    tokenizer, model = tokenizers.train(
        kind, TEXTS, vocab_size=200, lowercase=flag, ascii_only=flag
    )
    return kind, flag, tokenizer, model


def test_special_tokens_come_first_and_frame_a_text(trained):
    kind, _, tokenizer, model = trained
    assert tokenizers.special_ids(tokenizer) == ROLES
    assert tokenizer.get_vocab_size() <= 200
    single, pair = tokenizer.encode("kara"), tokenizer.encode("kara", "mora")
    assert single.ids[0] == ROLES["cls"] and single.ids[-1] == ROLES["sep"]
    assert pair.ids.count(ROLES["sep"]) == 2 and set(pair.type_ids) == {0, 1}
    assert (model is None) == (kind == "wordpiece")


def test_lowercase_and_ascii_only_are_honoured(trained):
    kind, flag, tokenizer, _ = trained
    entries = set("".join(tokenizer.get_vocab())) - set("".join(tokenizers.SPECIAL_TOKENS.values()))
    assert ("é" in entries) != flag
    assert any(character.isupper() for character in entries) != flag
    if flag:
        assert tokenizer.encode("CAFÉ").ids == tokenizer.encode("cafe").ids


def test_training_is_reproducible(trained):
    kind, flag, tokenizer, model = trained
    again, model_again = tokenizers.train(
        kind, iter(TEXTS), vocab_size=200, lowercase=flag, ascii_only=flag
    )
    assert tokenizers.canonical_json(again) == tokenizers.canonical_json(tokenizer)
    assert model_again == model


def test_saved_and_loaded_it_gives_the_same_ids(trained, tmp_path):
    _, _, tokenizer, model = trained
    tokenizers.save(tokenizer, tmp_path, model)
    loaded, _ = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizers.canonical_json(loaded) == (tmp_path / "tokenizer.json").read_text()
    for text in garbage():
        assert loaded.encode(text).ids == tokenizer.encode(text).ids
    assert (tmp_path / "tokenizer.model").exists() == (model is not None)


def test_transformers_gives_the_same_ids(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    _, _, tokenizer, model = trained
    tokenizers.save(tokenizer, tmp_path, model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*garbage(), *TEXTS[:20]]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
        assert theirs(text, "kara")["token_type_ids"] == tokenizer.encode(text, "kara").type_ids
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.sep_token) == (4, 0, "[SEP]")
    assert len(theirs) == tokenizer.get_vocab_size()


def test_sentencepiece_gives_the_same_ids(trained, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    kind, flag, tokenizer, model = trained
    if model is None:
        pytest.skip("wordpiece is not SentencePiece's")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    cramming = normalization.normalizer(lowercase=True, ascii_only=True)
    plain = ["", "   ", " two  spaces ", "x" * 500, "漢字 kana かな", "ＡＢＣ ①"]
    tokenizer = to_tokenizer(model)
    for text in [*plain, *TEXTS]:
        # SentencePiece has no such rule: the chain is in tokenizer.json alone.
        if flag:
            text = cramming.normalize_str(text)
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text)
    (tmp_path / "m.model").write_bytes(model)
    assert tokenizers.load(tmp_path / "m.model")[1] == model


def test_a_small_corpus_gives_a_small_vocabulary():
    for kind in tokenizers.KINDS:
        tokenizer, _ = tokenizers.train(
            kind, TEXTS[:3], vocab_size=5000, lowercase=True, ascii_only=True
        )
        assert 10 < tokenizer.get_vocab_size() < 1000


def test_special_tokens_a_file_lacks_are_added(tmp_path):
    tokenizer, _ = tokenizers.train(
        "wordpiece", TEXTS, vocab_size=150, lowercase=True, ascii_only=True
    )
    content = json.loads(tokenizer.to_str())
    content.update(added_tokens=[], post_processor=None)

    # Two special tokens under other names, and no [MASK].
    vocab = content["model"]["vocab"]
    vocab["</s>"] = vocab.pop("[SEP]")
    vocab["<pad>"] = vocab.pop("[PAD]")
    del vocab["[MASK]"]

    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded, _ = tokenizers.load(tmp_path / "tokenizer.json")
    ids = tokenizers.special_ids(loaded)
    assert ids["sep"] == 3 and ids["pad"] == 0 and loaded.id_to_token(ids["mask"]) == "[MASK]"
    assert loaded.encode("kara </s>").ids[-2:] == [3, 3]


@pytest.mark.parametrize(
    "name, content",
    [("t.json", b"{}"), ("t.json", b"\xff"), ("t.model", b"junk"), ("gone.json", None)],
)
def test_a_wrong_file_is_a_sentence(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        tokenizers.load(path)


def test_long_documents_are_encoded_in_pieces_to_the_same_ids(trained):
    _, _, tokenizer, _ = trained
    texts = ["", "kara", " ".join(TEXTS[:40]), TEXTS[0]]
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    pieces, _ = Encoder(tokenizer, piece_chars=100).encode(texts)
    assert [ids.tolist() for ids in pieces] == whole
    assert all(ids.dtype == np.uint32 for ids in pieces)


def test_names_of_special_tokens_in_a_text_are_text(trained):
    _, _, tokenizer, _ = trained
    texts = ["kara [SEP] [MASK] mora", "[PAD]", "[UNK][CLS]", "kara"]
    encoded, _ = Encoder(tokenizer).encode(texts)
    special = set(ROLES.values()) - {ROLES["unk"]}
    assert not any(special & set(ids.tolist()) for ids in encoded)
    assert all(len(ids) for ids in encoded)


SENTINELS = 7


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_a_t5_tokenizer_has_t5s_special_tokens_and_sentinels_on_top(kind, tmp_path):
    texts = [f"the number {n} follows the number {n - 1} in story {n % 7}" for n in range(400)]
    tokenizer, model = tokenizers.train(
        kind, texts, vocab_size=120, lowercase=False, ascii_only=False, extra_ids=SENTINELS
    )
    size = tokenizer.get_vocab_size()
    assert size <= 120 and tokenizers.special_ids(tokenizer) == {"pad": 0, "unk": 2, "sep": 1}
    for number in range(SENTINELS):
        assert tokenizer.token_to_id(f"<extra_id_{number}>") == size - 1 - number
    assert tokenizer.token_to_id(f"<extra_id_{SENTINELS}>") is None
    assert tokenizer.token_to_id("[MASK]") is None

    ids = tokenizer.encode("the number <extra_id_1> follows").ids
    assert size - 2 in ids and ids[-1] == 1

    tokenizers.save(tokenizer, tmp_path, model)
    again, _ = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizers.canonical_json(again) == tokenizers.canonical_json(tokenizer)
    assert tokenizers.count_extra_ids(again) == SENTINELS
    assert (model is None) == (kind == "wordpiece")
    if model is not None:
        from_model, _ = tokenizers.load(tmp_path / "tokenizer.model", SENTINELS)
        assert from_model.encode("the number <extra_id_1> follows").ids == ids


def test_a_t5_tokenizer_loads_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = [f"the number {n} follows the number {n - 1}" for n in range(400)]
    tokenizer, model = tokenizers.train(
        "unigram", texts, vocab_size=90, lowercase=False, ascii_only=False, extra_ids=SENTINELS
    )
    tokenizers.save(tokenizer, tmp_path, model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the number <extra_id_0> follows"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    assert set(theirs(text)) == {"input_ids", "attention_mask"}


def test_sentinels_and_a_tokenizer_file(tmp_path):
    texts = [f"the number {n} follows the number {n - 1}" for n in range(400)]
    settings = {"vocab_size": 90, "lowercase": False, "ascii_only": False}
    bert, _ = tokenizers.train("wordpiece", texts, **settings)
    bert.save(str(tmp_path / "bert.json"))

    # Its tokens keep their names and ids; sentinels come after them.
    both, _ = tokenizers.load(tmp_path / "bert.json", SENTINELS)
    assert tokenizers.special_ids(both) == tokenizers.special_ids(bert)
    assert both.token_to_id("<extra_id_0>") == bert.get_vocab_size() + SENTINELS - 1

    t5, _ = tokenizers.train("wordpiece", texts, **settings, extra_ids=SENTINELS)
    t5.save(str(tmp_path / "t5.json"))
    assert tokenizers.load(tmp_path / "t5.json", SENTINELS)[0].get_vocab() == t5.get_vocab()
    with pytest.raises(UserError, match="has 7 sentinels"):
        tokenizers.load(tmp_path / "t5.json", 100)

    t5.add_tokens(["more"])
    t5.save(str(tmp_path / "below.json"))
    with pytest.raises(UserError, match="not as its last entry"):
        tokenizers.load(tmp_path / "below.json", SENTINELS)


def test_a_sentinel_in_a_text_is_text():
    texts = ["a <extra_id_3> b </s> c"] * 50
    tokenizer, _ = tokenizers.train(
        "wordpiece", texts, vocab_size=80, lowercase=False, ascii_only=False, extra_ids=5
    )
    (ids,), _ = Encoder(tokenizer).encode(texts[:1])
    size = tokenizer.get_vocab_size()
    assert not set(ids.tolist()) & ({0, 1} | set(range(size - 5, size)))
