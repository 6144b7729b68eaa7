"""Time and FLOPs to equal loss, from the files that two runs leave."""

import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.errors import UserError
from cramjax.training import equal_loss

LOSSES = (6.0, 5.0, 4.0)


def leave_run(folder, losses, *, step_s=100.0, unigram=7.0, more=""):
    """Write what a finished run leaves: an evaluation every `step_s` and 1e12 FLOPs."""
    folder.mkdir(parents=True)
    lines = []
    for number, loss in enumerate(losses, start=1):
        lines.append(
            {
                "step": number,
                "elapsed_s": step_s * number,
                "flops": 1e12 * number,
                "eval_loss": loss,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(more + text)
    summary = {
        "eval_loss": losses[-1],
        "unigram_loss": unigram,
        "elapsed_s": step_s * len(losses),
        "flops": 1e12 * len(losses),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def test_each_run_is_measured_at_the_others_final_loss(tmp_path):
    leave_run(tmp_path / "control", LOSSES)
    summary = leave_run(tmp_path / "grown", (5.5, 4.5, 3.5), step_s=50.0)
    found = equal_loss.against(tmp_path / "control", tmp_path / "grown", summary)
    assert found == {
        "workdir": str(tmp_path / "control"),
        "eval_loss": 4.0,
        "elapsed_s": 300.0,
        "flops": 3e12,
        # Half way between 4.5 and 3.5.
        "reached_after_s": 125.0,
        "reached_after_flops": 2.5e12,
        # The control never came to 3.5, and nothing is drawn on beyond its end.
        "control_reached_after_s": None,
        "control_reached_after_flops": None,
    }


def test_a_run_that_is_worse_has_no_time_and_its_control_has(tmp_path):
    leave_run(tmp_path / "control", LOSSES)
    summary = leave_run(tmp_path / "grown", (6.5, 5.5, 4.5))
    found = equal_loss.against(tmp_path / "control", tmp_path / "grown", summary)
    assert found["reached_after_s"] is None and found["reached_after_flops"] is None
    assert found["control_reached_after_s"] == 250.0


def test_a_run_that_came_to_nothing_is_no_goal(tmp_path):
    leave_run(tmp_path / "control", LOSSES)
    summary = leave_run(tmp_path / "grown", (6.5, None))
    found = equal_loss.against(tmp_path / "control", tmp_path / "grown", summary)
    assert found["reached_after_s"] is found["control_reached_after_s"] is None


HOSTILE = """not json
[]
{"step": 1, "eval_loss": "low", "elapsed_s": 1, "flops": 1}
{"step": 1, "eval_loss": true, "elapsed_s": 1, "flops": 1}
{"step": 1, "eval_loss": 0.1}
{"step": 1, "eval_loss": -Infinity, "elapsed_s": 1, "flops": 1}
{"step": 1, "eval_loss": NaN, "elapsed_s": 1, "flops": 1}
{"step": 1, "eval_loss": 0.1, "elapsed_s": null, "flops": 1}
{"step": 1, "eval_loss": 0.1, "elapsed_s": 1, "flops": 1e999}
{"step": 1, "eval_lo"""


def test_lines_that_are_none_are_left_out(tmp_path):
    leave_run(tmp_path / "run", LOSSES, more=HOSTILE + "\n")
    assert [line["eval_loss"] for line in equal_loss.curve(tmp_path / "run")] == list(LOSSES)
    assert equal_loss.curve(tmp_path / "nowhere") == []


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=20), st.floats(0.1, 10.0))
def test_what_is_reached_lies_on_the_curve_and_only_if_a_loss_is_as_low(losses, goal):
    curve = [{"eval_loss": loss, "elapsed_s": 10.0 * n} for n, loss in enumerate(losses, start=1)]
    at = equal_loss.reached(curve, "elapsed_s", goal)
    assert (at is None) == (min(losses) > goal)
    if at is not None:
        first = next(n for n, loss in enumerate(losses, start=1) if loss <= goal)
        assert 10.0 * max(first - 1, 1) <= at <= 10.0 * first


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "has no summary.json; when it has ended"),
        ("[", "summary.json"),
        ('{"eval_loss": 3}', "unigram_loss"),
        ('{"eval_loss": 3, "unigram_loss": 7, "elapsed_s": 0, "flops": 1}', "must be over 0"),
        ('{"eval_loss": 3, "unigram_loss": 8, "elapsed_s": 1, "flops": 1}', "on other text"),
    ],
)
def test_a_control_that_cannot_be_compared_leaves_null_and_one_sentence(tmp_path, content, said):
    summary = leave_run(tmp_path / "grown", LOSSES)
    (tmp_path / "control").mkdir()
    if content is not None:
        (tmp_path / "control" / "summary.json").write_text(content)
    with pytest.raises(UserError, match=said):
        equal_loss.against(tmp_path / "control", tmp_path / "grown", summary)

    growth = types.SimpleNamespace(control=str(tmp_path / "control"))
    told = []
    config = types.SimpleNamespace(growth=growth)
    found = equal_loss.compare_again(config, tmp_path / "grown", summary, told.append)
    assert found == summary | {"control": None} and said in told[0] and "\n" not in told[0]
    assert json.loads((tmp_path / "grown" / "summary.json").read_text()) == found
