"""Duplicates among the documents of all groups, against the rule followed document by document."""

import collections
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.data import dedup, duplicates, jobs
from cramjax.data.clean import CleanRules
from cramjax.data.duplicates import CompareJob, Index, IndexJob
from cramjax.data.source import Part
from cramjax.data.spool import Group, ReadJob


class Texts:
    """A source of given texts, a list for each part."""

    spec = "fake:texts"
    weight = 1.0
    revision = None

    def __init__(self, parts):
        self._parts = parts

    def read(self, part, drop):
        return iter(self._parts[int(part.name)])


def groups_of(folder, parts, with_signatures=True):
    """Read `parts`, lists of texts, and make a group of each."""
    source = Texts(parts)
    groups = []
    for number in range(len(parts)):
        job = ReadJob(
            source=source,
            part=Part(source=0, name=str(number), key=str(number), n_bytes=None),
            key=(0, number),
            stem=folder / "spool" / str(number),
            rules=CleanRules(normalize=True, min_chars=0, max_chars=None),
            with_signatures=with_signatures,
            limit_bytes=None,
        )
        n_bytes = jobs.do(job)["bytes"]
        groups.append(Group(number=number, source=0, jobs=(job,), limit_bytes=n_bytes))
    return groups


def dropped_by_jobs(folder, parts, *, exact, near, n_ranges):
    """Returns bool [n] for exact and near duplicates, by the jobs under test."""
    groups = groups_of(folder, parts, with_signatures=near is not None)
    indexes = []
    for group in groups:
        stem = folder / "index" / str(group.number)
        record = jobs.do(IndexJob(group=group, stem=stem, exact=exact, near=near))
        indexes.append(Index(number=group.number, stem=stem, runs=tuple(record["runs"])))
    stems = []
    for number in range(n_ranges):
        stem = folder / "comparison" / str(number)
        job = CompareJob(
            number=number,
            n_ranges=n_ranges,
            indexes=tuple(indexes),
            stem=stem,
            exact=exact,
            near=near,
        )
        jobs.do(job)
        stems.append(stem)

    found = []
    for ending in ("exact", "near"):
        of_groups = [np.empty(0, bool)]
        for index in indexes:
            n_documents = sum(index.runs)
            of_groups.append(duplicates.dropped_in(index.number, n_documents, stems, ending))
        found.append(np.concatenate(of_groups))
    return found


def dropped_by_the_rule(parts, threshold):
    """Returns bool [n] for exact and near duplicates, one document after the other."""
    texts = [text for part in parts for text in part]
    seen = set()
    is_exact = []
    for text in texts:
        is_exact.append(text in seen)
        seen.add(text)

    signatures = dedup.signatures(texts)
    is_near = np.zeros(len(texts), bool)
    for keys in dedup.band_keys(signatures, threshold):
        leaders = collections.defaultdict(list)
        for number, key in enumerate(keys.tolist()):
            own = leaders[key][: duplicates._MAX_LEADERS]
            if any((signatures[number] == signatures[one]).mean() >= threshold for one in own):
                is_near[number] = True
            else:
                leaders[key].append(number)
    return np.array(is_exact, bool), is_near


def similar_texts(rng, n):
    """Make texts of which many are exact or near duplicates of others, or share half with them."""
    texts = []
    for _ in range(n):
        words = rng.integers(0, 50_000, 60).astype(str)
        kind = rng.integers(4)
        if texts and kind:
            words = np.array(texts[rng.integers(len(texts))].split())
            n_changed = (0, 0, 1, 20)[kind]
            words[rng.integers(0, len(words), n_changed)] = "changed"
        texts.append(" ".join(words))
    return texts


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([0.5, 0.8]), st.data())
def test_the_jobs_follow_the_rule_whatever_the_parts_and_sizes(
    tmp_path_factory, seed, n_ranges, threshold, data
):
    texts = similar_texts(np.random.default_rng(seed), 40)
    cuts = sorted(data.draw(st.lists(st.integers(0, 40), max_size=3)))
    parts = [list(part) for part in np.split(np.array(texts, object), cuts)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_RUN_DOCUMENTS", "_RANGE_DOCUMENTS", "_COMPARED_DOCUMENTS"):
            patch.setattr(duplicates, name, data.draw(st.integers(3, 20), label=name))
        patch.setattr(duplicates, "_MAX_LEADERS", data.draw(st.integers(1, 5)))
        patch.setattr("cramjax.data.spool._BLOCK_ROWS", 7)
        folder = tmp_path_factory.mktemp("jobs")
        found = dropped_by_jobs(folder, parts, exact=True, near=threshold, n_ranges=n_ranges)
        expected = dropped_by_the_rule(parts, threshold)
    assert found[0].tolist() == expected[0].tolist()
    assert found[1].tolist() == expected[1].tolist()


def test_exact_duplicates_alone(tmp_path):
    texts = similar_texts(np.random.default_rng(3), 60)
    found = dropped_by_jobs(tmp_path, [texts[:25], texts[25:]], exact=True, near=None, n_ranges=2)
    assert found[0].tolist() == dropped_by_the_rule([texts], 0.8)[0].tolist()
    assert 5 < found[0].sum() < 50 and not found[1].any()


def texts_of_similarity(rng, n, share):
    """Make `n` pairs of texts of 300 words, with the first `share` of the words in common."""
    words = rng.integers(0, 50_000, (n, 2, 300)).astype(str)
    n_same = round(300 * share)
    words[:, 1, :n_same] = words[:, 0, :n_same]
    return [" ".join(pair[0]) for pair in words], [" ".join(pair[1]) for pair in words]


@pytest.mark.parametrize(
    "share, low, high", [(0.97, 0.99, 1.0), (0.75, 0.0, 0.05), (0.0, 0.0, 0.0)]
)
def test_near_duplicates_found(tmp_path, share, low, high):
    """A share of common words is a Jaccard similarity of share / (2 - share) of the shingles."""
    parts = texts_of_similarity(np.random.default_rng(1), 300, share)
    _, is_near = dropped_by_jobs(tmp_path, parts, exact=False, near=0.8, n_ranges=1)
    assert not is_near[:300].any()
    assert low <= is_near[300:].mean() <= high


def test_the_end_of_the_share_is_the_end_of_the_documents(tmp_path):
    (group,) = groups_of(tmp_path, [[f"document number {number}" for number in range(20)]])
    sizes = [len(f"document number {number}") for number in range(20)]
    for limit_bytes in (0, 1, sizes[0], sizes[0] + 0.5, sum(sizes[:7]), sum(sizes)):
        cut_group = Group(number=0, source=0, jobs=group.jobs, limit_bytes=limit_bytes)
        stem = tmp_path / "index"
        record = jobs.do(IndexJob(group=cut_group, stem=stem, exact=True, near=0.8))
        n_expected = sum(sum(sizes[:number]) < limit_bytes for number in range(20))
        assert record["documents"] == n_expected and record["bytes"] == sum(sizes[:n_expected])
        assert pathlib.Path(f"{stem}.signatures").stat().st_size == 2 * 64 * n_expected
