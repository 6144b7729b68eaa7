"""`data.keep` on files: every format filters alike, and what is left out is counted."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from test_text_source import data
from text_source import FakeSource, document

from cramjax.config import languages, mistakes, schema
from cramjax.config.keep import Keep
from cramjax.data import plan, prepare, tfds_source
from cramjax.data.sources import open_sources
from cramjax.errors import UserError

RECORDS = [{"text": document(1, number), "score": number % 5} for number in range(300)]


def write(path, records):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("\n".join(map(json.dumps, records)))


def read(path, expression):
    config = data(f"text:{path}")
    config.keep = expression
    (source,) = open_sources(config)
    reasons = []
    texts = []
    for part in source.parts():
        texts += source.read(part, lambda reason, where: reasons.append((reason, where)))
    return texts, reasons


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_every_format_of_records_is_filtered(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, RECORDS)
    texts, reasons = read(path, "score >= 3")
    assert texts == [record["text"] for record in RECORDS if record["score"] >= 3]
    assert reasons == [("keep", "")] * 180

    with pytest.raises(UserError, match=r"no record has a field 'quality' \(found: .*score, text"):
        read(path, "quality > 1")


def test_the_filtered_are_counted_and_not_named(tmp_path, caplog):
    write(tmp_path / "a.jsonl", RECORDS)
    config = schema.defaults().data
    config.update(languages.choices(config))
    config.update(source=f"text:{tmp_path}/a.jsonl", cache_dir=str(tmp_path / "data"))
    config.update(vocab_size=300, heldout_fraction=0.1)
    everything = plan.plan_preparation(config, open_sources(config)).fingerprint
    config.keep = "score != 3"
    assert plan.plan_preparation(config, open_sources(config)).fingerprint != everything

    manifest = prepare.read_manifest(prepare.prepare(config, n_workers=1))
    assert manifest["dropped"] == {"keep": 60} and manifest["documents"] == 240
    assert "skipped" not in caplog.text


def test_no_filter_leaves_the_fingerprint_alone(tmp_path):
    config = schema.defaults().data
    config.update(languages.choices(config))
    fingerprinted = plan.plan_preparation(config, [FakeSource()]).fingerprint
    config.keep = None
    assert plan.plan_preparation(config, [FakeSource()]).fingerprint == fingerprinted


def test_text_without_fields_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a\n\nb")
    with pytest.raises(UserError, match="a.txt: has no fields to compare with data.keep"):
        read(tmp_path / "a.txt", "score > 1")
    config = data("installed-docs")
    config.keep = "score > 1"
    with pytest.raises(UserError, match="installed-docs: has no fields"):
        open_sources(config)


def test_a_mistake_in_it_is_found_with_all_others():
    config = schema.defaults()
    config.data.keep = "len(text) > 3"
    (mistake,) = [line for line in mistakes.find(config) if "data.keep" in line]
    assert "may compare fields" in mistake and "len(text)" in mistake


def test_examples_of_tfds_are_compared_as_what_they_mean():
    example = {"lang": b"en", "n": np.int64(3), "tags": np.array([b"a", b"b"], object)}
    plain = tfds_source._plain(example)
    assert Keep("lang == 'en' and n > 2 and 'b' in tags").accepts(plain)
