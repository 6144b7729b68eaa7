"""Training, determinism, special tokens, SentencePiece twins, and agreement with transformers."""

import json
import random

import numpy as np
import pytest
from text_source import document

from cramjax.config.errors import UserError
from cramjax.data import encode, tokenizers

TEXTS = [document(0, number) + " Café naïve. Ünder ``quoted''" for number in range(300)]
ROLES = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def garbage():
    chooser = random.Random(0)
    ranges = [
        (32, 127),
        (0xA0, 0x3000),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0, 0xD800),
        (0xE000, 0x110000),
    ]
    lines = ["".join(chr(chooser.randrange(*chooser.choice(ranges))) for _ in range(60)) for _ in range(150)]
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


@pytest.fixture(scope="module", params=[(kind, flag) for kind in tokenizers.KINDS for flag in (True, False)], ids=str)
def trained(request):
    kind, flag = request.param
    return kind, flag, *tokenizers.train(kind, TEXTS, vocab_size=200, lowercase=flag, ascii_only=flag)


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
    again, model_again = tokenizers.train(kind, iter(TEXTS), vocab_size=200, lowercase=flag, ascii_only=flag)
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
    chain = tokenizers.cramming_normalizer(lowercase=True, ascii_only=True).normalize_str if flag else str
    plain = ["", "   ", " two  spaces ", "x" * 500, "漢字 kana かな", "ＡＢＣ ①"]
    tokenizer = tokenizers.from_sentencepiece(model)
    for text in [*plain, *TEXTS]:
        text = chain(text)
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text)
    (tmp_path / "m.model").write_bytes(model)
    assert tokenizers.load(tmp_path / "m.model")[1] == model


def test_a_small_corpus_gives_a_small_vocabulary():
    for kind in tokenizers.KINDS:
        tokenizer, _ = tokenizers.train(kind, TEXTS[:3], vocab_size=5000, lowercase=True, ascii_only=True)
        assert 10 < tokenizer.get_vocab_size() < 1000


def test_special_tokens_a_file_lacks_are_added(tmp_path):
    tokenizer, _ = tokenizers.train("wordpiece", TEXTS, vocab_size=150, lowercase=True, ascii_only=True)
    content = json.loads(tokenizer.to_str())
    content.update(added_tokens=[], post_processor=None)
    vocab = content["model"]["vocab"]
    renamed = {
        {"[SEP]": "</s>", "[PAD]": "<pad>"}.get(token, token): number
        for token, number in vocab.items()
        if token != "[MASK]"
    }
    content["model"]["vocab"] = renamed
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded, _ = tokenizers.load(tmp_path / "tokenizer.json")
    ids = tokenizers.special_ids(loaded)
    assert ids["sep"] == 3 and ids["pad"] == 0 and loaded.id_to_token(ids["mask"]) == "[MASK]"
    assert loaded.encode("kara </s>").ids[-2:] == [3, 3]


@pytest.mark.parametrize(
    "name, content", [("t.json", b"{}"), ("t.json", b"\xff"), ("t.model", b"junk"), ("gone.json", None)]
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
    pieces = encode.encode_documents(tokenizer, texts, piece_chars=100)
    assert [ids.tolist() for ids in pieces] == whole
    assert all(ids.dtype == np.uint32 for ids in pieces)


def test_names_of_special_tokens_in_a_text_are_text(trained):
    _, _, tokenizer, _ = trained
    texts = ["kara [SEP] [MASK] mora", "[PAD]", "[UNK][CLS]", "kara"]
    encoded = encode.encode_documents(tokenizer, texts)
    special = set(ROLES.values()) - {ROLES["unk"]}
    assert not any(special & set(ids.tolist()) for ids in encoded)
    assert all(len(ids) for ids in encoded)
