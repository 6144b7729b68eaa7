"""loss.png from whole, partial and empty metrics."""

import json

import pytest

from cramjax.training import plots


def train_line(step):
    return {"step": step, "elapsed_s": step * 0.5, "tokens": step * 1000, "loss": 9 - step / 100}


def eval_line(step):
    return {
        "step": step,
        "elapsed_s": step * 0.5,
        "eval_loss": 9 - step / 100,
        "eval_accuracy": 0.1,
    }


def long_run():
    lines = []
    for step in range(10, 500, 10):
        lines += [train_line(step), eval_line(step + 5)]
    return lines


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [train_line(1)],
        [eval_line(0)],
        long_run(),
        [train_line(1) | {"loss": None}, {"step": 2, "skipped": 1}, train_line(3)],
    ],
)
@pytest.mark.parametrize("unigram_loss", [None, 7.0])
def test_a_picture_is_drawn_of_whatever_there_is(tmp_path, lines, unigram_loss):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    plots.plot_loss(path, tmp_path / "loss.png", unigram_loss)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_held_out_losses_stand_at_the_tokens_read_by_then(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots.figures, "save", lambda figure, path: drawn.append(figure))
    lines = [eval_line(0), train_line(10), eval_line(15), train_line(20), eval_line(30)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.plot_loss(path, tmp_path / "loss.png")

    over_tokens = drawn[0].axes[0]
    curves = {line.get_label(): line for line in over_tokens.lines}
    assert over_tokens.get_xlabel() == "tokens, thousands"
    assert list(curves["held-out"].get_xdata()) == [0, 15, 20]
    assert list(curves["train"].get_xdata()) == [10, 20]


def test_smoothing_keeps_length_ends_and_straight_lines():
    line = [float(n) for n in range(100)]
    assert plots.smoothed(line) == pytest.approx(line)
    assert plots.smoothed([]) == [] and plots.smoothed([3.0]) == [3.0]
    assert max(plots.smoothed([0.0] * 50 + [1.0] + [0.0] * 50)) < 0.5
