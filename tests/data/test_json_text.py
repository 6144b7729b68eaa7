"""Records of JSON in every layout, and records that are too long to be decoded at once."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text_source import packed, read

from cramjax.data import json_text, plain_text, unpacking

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"text": TEXT},
        optional={
            "n": st.integers(),
            "{": TEXT,
            "more": st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
        },
    ),
    max_size=8,
)
LAYOUTS = {
    "lines": lambda dump, records: "\n".join(map(dump, records)),
    "list": lambda dump, records: dump(records),
    "list of lines": lambda dump, records: (
        "[\n" + ",\n".join(map(dump, records)) + "\n]\n" if records else "[]"
    ),
    "lists in lines": lambda dump, records: "\n".join(dump([record]) for record in records),
    "indented list": lambda dump, records: dump(records, indent=2),
    "indented objects": lambda dump, records: "\n".join(
        dump(record, indent=1) for record in records
    ),
    "objects without anything between": lambda dump, records: "".join(map(dump, records)),
}


@settings(max_examples=60, deadline=None)
@given(
    RECORDS,
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
    st.sampled_from([".json", ".jsonl"]),
    st.integers(1, 50),
)
def test_every_layout_gives_the_same_texts(
    tmp_path_factory, records, layout, ensure_ascii, suffix, block_bytes
):
    def dump(value, **options):
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    path = tmp_path_factory.mktemp("json") / f"a{suffix}"
    content = LAYOUTS[layout](dump, records)
    if layout == "objects without anything between" and len(records) > 1:
        content = "[" + content + "]"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "BLOCK_BYTES", block_bytes)
        assert read(path) == ([record["text"] for record in records], {})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=300), min_size=1, max_size=4),
    st.text('ab \\"{}é€😀\n', max_size=300),
    st.booleans(),
    st.integers(24, 100),
    st.booleans(),
)
def test_a_long_record_gives_its_text_in_pieces(
    tmp_path_factory, others, text, ensure_ascii, piece_bytes, in_list
):
    record = dict(zip("abcd", others, strict=False)) | {"text": text, "deep": [{"text": "no"}]}
    content = json.dumps(record, ensure_ascii=ensure_ascii)
    if in_list:
        content = f"[{content}]"
    path = tmp_path_factory.mktemp("long") / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "LONG_RECORD_BYTES", 200)
        patch.setattr(json_text, "_LONG_TEXT_BYTES", 20)
        patch.setattr(plain_text, "MAX_DOCUMENT_BYTES", piece_bytes)
        # Names of texts count as well: a record of many long ones may still be too long.
        patch.setattr(json_text, "LONG_RECORD_BYTES", 600)
        texts, dropped = read(path)
    assert not dropped
    assert "".join(texts) == text
    if len(content.encode()) > 600 and len(json.dumps(text, ensure_ascii=ensure_ascii)) > 60:
        assert all(len(piece.encode()) <= piece_bytes for piece in texts)


def test_a_long_record_of_short_values_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "LONG_RECORD_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    lines = [{"text": "before"}, {"text": "a", "tokens": ["word"] * 500}, {"text": "after"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read(path) == (["before", "after"], {"line_too_long": [f"{path}:2"]})


def test_a_value_of_a_list_that_is_too_long_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_text, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 64)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": text} for text in ("before", "x" * 3000, "after")]))
    assert read(path) == (["before", "after"], {"line_too_long": [f"{path}:1"]})


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_what_is_no_record_in_a_list_is_counted_and_the_others_are_kept(tmp_path, compression):
    path = tmp_path / f"a.json{compression}"
    content = '[{"text": "a"}, 7, "text", null, {"text": 3}, {"text" "b"}, {"n": 1}, {"text": "c"}'
    path.write_bytes(packed(content.encode(), compression))
    texts, dropped = read(path)
    assert texts == ["a", "c"]
    counts = {reason: len(places) for reason, places in dropped.items()}
    expected = {"no_text_field": 4, "text_not_a_string": 1, "not_json": 1, "truncated_list": 1}
    assert counts == expected
    path.write_bytes(packed(content[:-5].encode(), compression))
    assert read(path)[0] == ["a"]


def test_a_pretty_printed_object_is_a_record(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": "one\n{document}", "n": [1, {"a": 2}]}, indent=4))
    assert read(path) == (["one\n{document}"], {})


def test_lines_after_one_that_is_damaged_are_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cut off\n{"text": "a"}\n{"text": "b"}\n')
    assert read(path) == (["a", "b"], {"not_json": [f"{path}:1"]})
