"""Sentence embeddings: sentence-transformers' loss and vectors, whole finetunings, and searches."""

import dataclasses
import functools
import json
import random

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import cramjax
from cramjax.errors import UserError
from cramjax.finetuning import heads, learning, prediction, training
from cramjax.finetuning.protocols import Protocol, Settings, choose_protocol
from cramjax.hub import sentence_files
from cramjax.inference import load
from cramjax.publishing.export import Options, export
from cramjax.tasks import catalogue, retrieval
from tests.finetuning import grammar
from tools import predict

QUICK = Settings(
    lr=1e-3,
    epochs=2,
    batch_size=16,
    dropout=0.0,
    attention_dropout=0.0,
    max_length=24,
    pooling="mean",
)
PROTOCOL = Protocol(name="quick", source="tests", settings=QUICK, n_seeds=1)
finetune = functools.partial(grammar.finetune, protocol=PROTOCOL)
SEARCH = {
    "name": "search",
    "head": "embeddings",
    "train": "train.jsonl",
    "validation": "dev.tsv",
    "text": ["asked", "found", "wrong"],
    "validation_text": ["a", "b"],
}


@pytest.fixture(scope="module")
def model():
    return grammar.model()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts mean the same if they have the same word of an animal."""
    folder = tmp_path_factory.mktemp("pairs")
    chooser = random.Random(0)
    rest = [word for word in grammar.WORDS if word not in ("cat", "dog", "bird")]

    def text(animal):
        words = [*chooser.choices(rest, k=3), animal]
        chooser.shuffle(words)
        return " ".join(words)

    rows = []
    for _ in range(60):
        animal, other = chooser.sample(["cat", "dog", "bird"], 2)
        rows.append({"asked": text(animal), "found": text(animal), "wrong": text(other)})
    grammar.write_lines(folder / "train.jsonl", map(json.dumps, rows))
    lines = ["a\tb\tscore"]
    for _ in range(40):
        first, second = chooser.choices(["cat", "dog", "bird"], k=2)
        lines.append(f"{text(first)}\t{text(second)}\t{5 * (first == second)}")
    grammar.write_lines(folder / "dev.tsv", lines)
    for name, more in (("search", {}), ("likeness", {"label": "score"})):
        (folder / f"{name}.yaml").write_text(json.dumps(SEARCH | {"name": name} | more))
    return folder


@pytest.fixture(scope="module")
def finetuned(model, data, tmp_path_factory):
    """Folder of a finetuning, and what it found."""
    out = tmp_path_factory.mktemp("finetuned")
    tasks = [str(data / f"{name}.yaml") for name in ("search", "likeness")]
    protocol = dataclasses.replace(PROTOCOL, settings=dataclasses.replace(QUICK, epochs=4))
    found, said = finetune(model, data, out, *tasks, protocol=protocol, save=True)
    return out, found, said


def place(finetuned, task="likeness"):
    return finetuned[0] / "models" / task / "point-0" / "seed-0"


def opened(model, data, splits=None, settings=QUICK):
    (task,) = catalogue.find([str(data / "search.yaml")])
    found = catalogue.open_task(task, None, lambda _: None)
    return learning.open_task(model, found.task, splits or found.splits, settings, print)


def batch_of(feed, examples, size):
    plan = feed.plan(examples)
    return feed.arrays(plan, plan.need, size)


def test_pairs_are_scored_by_what_the_validation_file_has(finetuned, data):
    out, found, said = finetuned
    assert "search: train has 60 rows, " in said[0] and "different answers" in said[0]
    assert said[3] == "likeness: validation has 40 rows, scores from 0 to 5"
    # The animal decides, and is found.
    assert found["likeness"]["spearman"]["median"] > 50
    assert found["likeness"].keys() >= {"spearman", "pearson"}
    assert found["search"].keys() >= {"mrr", "recall@1", "recall@10"}
    assert "search MRR" in (out / "results.md").read_text()

    header, *lines = (out / "predictions" / "likeness.tsv").read_text().splitlines()
    assert header == "index\tprediction\tlabel" and len(lines) == 40
    assert all(-1 <= float(line.split("\t")[1]) <= 1 for line in lines)
    ranks = [line.split("\t")[1] for line in (out / "predictions/search.tsv").open()][1:]
    assert min(map(int, ranks)) >= 1


def test_nothing_is_done_twice_and_other_columns_are_another_task(finetuned, model, data, tmp_path):
    out = finetuned[0]
    protocol = dataclasses.replace(PROTOCOL, settings=dataclasses.replace(QUICK, epochs=4))
    options = {"protocol": protocol, "save": True}
    _, said = finetune(model, data, out, str(data / "search.yaml"), **options)
    assert not [line for line in said if "examples" in line]
    own = tmp_path / "search.yaml"
    own.write_text(json.dumps(SEARCH | {"text": ["asked", "found"]}))
    with pytest.raises(UserError, match="runs/search"):
        finetune(model, data, out, str(own), **options)


@pytest.mark.slow
def test_the_loss_and_the_vectors_are_those_of_sentence_transformers(
    finetuned, model, data, tmp_path
):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.set_num_threads(1)
    export(place(finetuned), tmp_path / "out", tell=lambda _: None)
    stock = theirs.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    ours = prediction.load_finetuned(place(finetuned))

    rows = [json.loads(line) for line in (data / "train.jsonl").open()]
    texts = list(map(list, zip(*map(dict.values, rows), strict=True)))
    texts[0][1] = "cat " * 99  # is cut
    found = [cramjax.embed(ours, column) for column in texts]
    columns = [stock.encode(column, convert_to_tensor=True) for column in texts]
    for mine, other in zip(found, columns, strict=True):
        assert mine.dtype == np.float32 and mine.shape == (60, 32)
        np.testing.assert_allclose(mine, other.numpy(), atol=2e-5)

    # Texts that differ: theirs takes equal ones for wrong answers.
    (chosen,) = np.nonzero([len({*row.values()}) == 3 for row in rows])
    chosen = chosen[:5]
    loss = losses.MultipleNegativesRankingLoss(stock)
    for n_columns in (2, 3):
        triples = list(zip(*texts, strict=True))
        train = [{"idx": i, "texts": triples[i][:n_columns]} for i in chosen]
        assert len({text for row in train for text in row["texts"]}) == 5 * n_columns
        feed, objective = opened(model, data, {"train": train})
        total, weight = training.evaluator(objective)(ours.params, batch_of(feed, range(5), 8))
        expected = loss.compute_loss_from_embeddings(
            [column[chosen] for column in columns[:n_columns]], torch.zeros(5)
        )
        np.testing.assert_allclose(float(total / weight), float(expected), rtol=1e-4)


EMBEDDING = heads.encoder_part(catalogue.STS).objective


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    texts=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=5, max_size=5),
    n_columns=st.sampled_from([2, 3]),
    n_there=st.integers(1, 5),
)
def test_what_is_right_is_no_wrong_answer(texts, n_columns, n_there):
    texts = np.asarray(texts, np.int32)[:, :n_columns]
    weights = (np.arange(5) < n_there).astype(np.float32)
    vectors = np.random.default_rng(0).normal(size=(5 * n_columns, 4)).astype(np.float32)
    batch = {"texts": texts, "weights": weights, "scale": np.float32(3.0)}
    total, weight = _losses(vectors, batch)

    units = retrieval.unit(vectors).reshape(5, n_columns, 4)
    expected = 0.0
    for row in range(n_there):
        anchor, positive = texts[row, :2]
        own = 3.0 * units[row, 0] @ units[row, 1]
        logits = [own]
        for other in range(n_there):
            for column in range(1, n_columns):
                is_own = other == row and column == 1
                answers_too = column == 1 and texts[other, 0] == anchor
                if not (is_own or answers_too or texts[other, column] in (anchor, positive)):
                    logits.append(3.0 * units[row, 0] @ units[other, column])
        expected += np.log(np.exp(logits).sum()) - own
    np.testing.assert_allclose(float(total), expected, rtol=1e-4, atol=1e-5)
    assert weight == n_there


@jax.jit
def _losses(vectors, batch):
    return EMBEDDING(None, None).losses(vectors, batch)


def test_no_text_gives_no_gradient_and_numbers_all_the_same():
    texts = np.asarray([[0, 1], [2, 3], [-1, -1]], np.int32)
    weights = np.asarray([1, 1, 0], np.float32)
    batch = {"texts": texts, "weights": weights, "scale": np.float32(20.0)}
    vectors = jnp.zeros((6, 4)).at[:4].set(1.0)
    gradient = jax.jit(jax.grad(lambda vectors: _losses(vectors, batch)[0]))(vectors)
    assert np.isfinite(gradient).all() and not gradient[4:].any()


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_ranks_are_those_of_a_search(pairs, seed):
    units = retrieval.unit(np.random.default_rng(seed).normal(size=(8, 3)).astype(np.float32))
    places = retrieval.ranks(units, np.asarray(pairs))
    answers = {answer for _, answer in pairs}
    worst = []
    for (asking, answer), found in zip(pairs, places, strict=True):
        rivals = answers - {asking} - {right for other, right in pairs if other == asking}
        own = units[asking] @ units[answer]
        assert found == 1 + sum(units[asking] @ units[rival] > own for rival in rivals)
        worst.append(1 + len(rivals))
    # What is all alike, or no number, finds nothing.
    for units in (np.ones((8, 3), np.float32), np.full((8, 3), np.nan, np.float32)):
        assert retrieval.ranks(units, np.asarray(pairs)).tolist() == worst


def test_scores_of_ranks():
    assert retrieval.rank_scores([1, 2, 20, 1]) == {
        "mrr": pytest.approx(100 * 2.55 / 4),
        "recall@1": 50.0,
        "recall@10": 75.0,
    }


def test_a_text_has_one_embedding_whatever_stands_beside_it(model, tmp_path):
    texts = [" ".join(grammar.WORDS[: n % 11]) for n in range(30)]
    together = cramjax.embed(model, texts)
    np.testing.assert_allclose(cramjax.embed(model, texts[7:8]), together[7:8], atol=1e-5)
    units = cramjax.embed(model, texts, normalize=True)
    np.testing.assert_allclose(units, retrieval.unit(together), atol=1e-6)
    cut = cramjax.embed(model, texts[7:9], max_length=5)
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-5)
    assert cramjax.embed(model, []).shape == (0, 32)
    with pytest.raises(UserError, match="embed: takes a list of texts; put the text in brackets"):
        cramjax.embed(model, "the cat")
    with pytest.raises(UserError, match="embed: this model is a T5, which has no embeddings"):
        cramjax.embed(grammar.model("t5"), ["the cat"])


def test_files_hold_the_embeddings_in_order(finetuned, tmp_path, monkeypatch, capsys):
    # Small chunks, so that a file is several of them.
    monkeypatch.setattr(prediction, "CHUNK", 4)
    texts = ["the cat", "", "a big red dog", "boat", "the cat", "old bird"]
    grammar.write_lines(tmp_path / "in.txt", texts)
    expected = cramjax.embed(prediction.load_finetuned(place(finetuned)), texts)
    command = ["--checkpoint", str(place(finetuned)), "--input", str(tmp_path / "in.txt")]
    for suffix in (".npy", ".jsonl", ".tsv"):
        assert predict.main([*command, "--out", str(tmp_path / f"out{suffix}")]) == 0
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected)
    rows = [json.loads(line)["embedding"] for line in (tmp_path / "out.jsonl").open()]
    np.testing.assert_array_equal(np.asarray(rows, np.float32), expected)
    header, *lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert header == "embedding"
    np.testing.assert_array_equal(np.loadtxt(lines, np.float32), expected)

    (tmp_path / "in.txt").write_text("")
    assert predict.main([*command, "--out", str(tmp_path / "out.npy")]) == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 32)
    tags = learning.describe(dataclasses.replace(catalogue.CONLL, labels=("O",)), QUICK, 0)
    tagging = dataclasses.replace(load(place(finetuned)), finetuned=tags)
    monkeypatch.setattr(prediction, "load_finetuned", lambda _: tagging)
    capsys.readouterr()
    assert predict.main([*command, "--out", str(tmp_path / "tags.npy")]) == 2
    assert "this model of conll gives no embeddings; take .tsv" in capsys.readouterr().err


def test_an_export_is_a_folder_of_sentence_transformers(finetuned, tmp_path):
    out = tmp_path / "out"
    export(place(finetuned), out, tell=lambda _: None)
    export(place(finetuned), out, tell=lambda _: None)
    raw = json.loads((out / "config.json").read_text())
    assert raw["architectures"] == ["ModernBertModel"]
    modules = json.loads((out / "modules.json").read_text())
    assert [module["type"].split(".")[-1] for module in modules] == ["Transformer", "Pooling"]
    page = (out / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity\n" in page
    assert "library_name: sentence-transformers\n" in page
    assert "- type: spearmanr" in page and "SentenceTransformer(" in page

    texts = ["the cat is red", "dog"]
    ours = prediction.load_finetuned(place(finetuned))
    expected = cramjax.embed(ours, texts)
    for read in (prediction.load_finetuned, load):
        theirs = dataclasses.replace(read(out), precision=ours.precision)
        np.testing.assert_allclose(cramjax.embed(theirs, texts), expected, atol=1e-5)

    # As other models of the Hub have them.
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "x.Normalize"})
    (out / "modules.json").write_text(json.dumps(modules))
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    theirs = prediction.load_finetuned(out)
    assert theirs.finetuned["settings"]["pooling"] == "first"
    np.testing.assert_allclose(np.linalg.norm(cramjax.embed(theirs, texts), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "computes Transformer, Pooling, Dense; only"),
        (["Transformer", "Pooling"], {"pooling_mode": "max"}, "pools by 'max'; only the mean"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"pools by \['pooling_mode_",
        ),
        ([None], {}, "modules.json: lists no modules"),
    ],
)
def test_other_modules_are_refused(tmp_path, modules, pooling, message):
    listed = [{"type": name and f"a.{name}", "path": "1_Pooling"} for name in modules]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(UserError, match=message):
        sentence_files.read(tmp_path, lambda name, _: tmp_path / name)


@pytest.mark.slow
def test_torch_gives_the_same_embeddings(finetuned, tmp_path):
    pytest.importorskip("transformers")
    said = []
    export(place(finetuned), tmp_path / "out", Options(verify=True), tell=said.append)
    assert "embeddings within" in said[-1]


def test_sts_learns_from_pairs_that_are_alike(tmp_path):
    folder = grammar.write_glue(tmp_path, n_train=10, n_dev=6)
    said = []
    data = catalogue.open_task(catalogue.STS, str(folder), said.append)
    assert "STS: 5 of 10 training pairs have a score of 4 or more" in said[-1]
    assert {row["label"] for row in data.splits["train"]} == {5.0}
    assert [len(row["texts"]) for row in data.splits["validation"]] == [2] * 6
    assert data.task.headline == ("spearman",) and data.differences
    assert catalogue.noted_task(catalogue.notes(data.task)).kind == "embeddings"


def test_settings_follow_from_the_kind_of_task():
    protocol = choose_protocol("cramming", False, ["scale=50"], (), [catalogue.STS])
    settings = protocol.settings_at(protocol.points("sts")[0])
    assert (settings.pooling, settings.batch_size, settings.scale) == ("mean", 64, 50.0)
    assert not settings.single_as_pair
    with pytest.raises(UserError, match="finetuning setting scale=0.0: must be over 0"):
        choose_protocol("bert", False, ["sts.scale=0"], (), [catalogue.STS])


def test_a_batch_needs_negatives(model, data):
    one = dataclasses.replace(QUICK, microbatch_size=1)
    rows = [{"idx": i, "texts": ("the cat", f"a dog {i}")} for i in range(3)]
    with pytest.raises(UserError, match="search: a batch of one pair has no negatives; give"):
        opened(model, data, {"train": rows}, one)
    opened(model, data, settings=one)  # has hard negatives
    with pytest.raises(UserError, match="sts: is one of embeddings; a T5 has none, take an enc"):
        heads.check(catalogue.STS, is_t5=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "asked"}, "text names 1 columns where embeddings takes 2 or 3"),
        ({"text": ["a", "b", "c", "d"]}, "text names 4 columns where embeddings takes 2 or 3"),
        ({"text": ["asked", "answer"]}, "train.jsonl:1: has no 'answer', which .*search.yaml"),
        ({"validation_text": ["a"]}, "validation_text names 1 columns; give two"),
        ({"validation_text": ["a", "c"]}, r"dev.tsv:2: has no 'c', which .* \(found: a, b"),
        ({"label": "stars"}, "dev.tsv:2: has no 'stars'"),
        ({"label": "a"}, "a='.*' is no number, which a correlation needs"),
        ({"label": "score", "metric": "mrr"}, "metric='mrr': embeddings has spearman, pearson"),
        ({"metric": "spearman"}, "metric='spearman': embeddings has mrr, recall@1"),
        ({"head": "classification", "label": "x", "text": "a"}, "validation_text: classificat"),
        ({"labels": ["a", "b"]}, "labels: embeddings has none; leave the key out"),
    ],
)
def test_mistakes_are_one_sentence(data, tmp_path, change, message):
    own = tmp_path / "search.yaml"
    own.write_text(json.dumps(SEARCH | change))
    with pytest.raises(UserError, match=message):
        (task,) = catalogue.find([str(own)])
        catalogue.open_task(task, str(data), lambda _: None)


@pytest.mark.slow
def test_a_compression_is_judged_by_the_same_score(finetuned, data):
    from cramjax.compress.subjects import TaskSubject

    ours = load(place(finetuned))
    (task,) = catalogue.find([str(data / "likeness.yaml")])
    found = catalogue.open_task(task, None, lambda _: None)
    subject = TaskSubject(ours, found.task, found.splits, QUICK, lambda _: None)
    score = subject.score(ours.config, ours.params)
    assert score.metric == "spearman" and score.loss is None
    assert score.value == pytest.approx(finetuned[1]["likeness"]["spearman"]["median"], abs=0.01)
