"""Pages in a real browser: opened from disk, without an error, read, clicked and judged by axe."""

import json

import pytest

from cramjax.reporting import page, runs, subjects
from tests.reporting import browser as browsers
from tests.reporting import test_report_server as servers
from tests.reporting import workdirs

FIGURES = "Figures, named as in summary.json"


@pytest.fixture(scope="module")
def browser():
    with browsers.opened() as opened:
        yield opened


def written(folder, *paths, price=None):
    """Returns the address of the page about `paths` on disk."""
    path = folder / "page.html"
    path.write_text(page.render(page.make(subjects.find(paths), price=price)), encoding="utf-8")
    return path.as_uri()


def two_runs(folder):
    pieces = ["the ", {"truth": "cat", "guess": "dog"}, {"truth": "##s", "guess": "##s"}]
    samples = [{"step": 5, "eval_loss": 8.0, "texts": [pieces]}]
    stages = {"growth": {"stages": [{"until": 0.5, "depth": 0.5}]}}
    data = workdirs.dataset(folder)
    first = workdirs.run(folder, name="first", samples=samples, config=stages)
    workdirs.write(first / "environment.json", {"dataset": str(data), "devices": ["cpu"]})
    return first, workdirs.run(folder, name="second", lines=workdirs.metrics(40, 8.0))


def everything(folder):
    """Paths of each kind, whose texts hold markup."""
    paths = [*two_runs(folder), workdirs.sweep(folder), workdirs.finetuning(folder)]
    paths += [workdirs.track(folder), workdirs.compression(folder)]
    return [*paths, workdirs.plan(folder)]


def axe(view):
    """Returns the rules of accessibility that the page breaks, each with the first places."""
    axe_core = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    # The policy of the page keeps scripts out, also those of tests; the source is given by value.
    found = axe_core.Axe().run(view.page).response
    assert len(found["passes"]) > 20  # it has looked at the page
    places = {}
    for rule in found["violations"]:
        places[rule["id"]] = [node["html"] for node in rule["nodes"][:3]]
    return places


def test_the_page_opens_from_disk_and_shows_the_figures_of_the_summary(browser, tmp_path):
    first, second = two_runs(tmp_path)
    view = browsers.View(browser, written(tmp_path, first, second, price=0.5))
    shown = view.figures(FIGURES)
    for number, workdir in enumerate((first, second)):
        summary = json.loads((workdir / "summary.json").read_text())
        for key in ("eval_loss", "eval_accuracy", "unigram_loss", "tokens", "flops", "mfu"):
            assert shown[key][number] == summary[key], key
    assert view.page.locator("figure .chart svg").count() == view.page.locator("figure").count()
    assert view.page.locator("#samples ins").all_text_contents() == ["s"]
    assert not view.wrong


def test_runs_axes_scales_and_zoom_are_the_readers(browser, tmp_path):
    view = browsers.View(browser, written(tmp_path, *two_runs(tmp_path)))
    script = """() => {
        const holder = document.querySelector('figure[data-title="Loss"] .chart');
        const option = echarts.getInstanceByDom(holder).getOption();
        return {names: option.series.map(s => s.name), x: option.xAxis[0].type,
                label: option.xAxis[0].name, y: option.yAxis[0].type, zoom: option.dataZoom[0]};
    }"""
    before = view.page.evaluate(script)
    assert len(before["names"]) == 7 and before["x"] == before["y"] == "value"

    view.page.get_by_role("checkbox", name="second").uncheck()
    view.page.get_by_label("Along").select_option("elapsed_s")
    view.page.get_by_role("button", name="log y of Loss").click()
    after = view.page.evaluate(script)
    assert after["y"] == "log" and "time" in after["label"]
    assert after["names"] and not any("second" in name for name in after["names"])
    assert view.page.locator("thead th:visible", has_text="second").count() == 0
    seconds = view.page.locator('figure[data-title="Where the seconds went"] .chart svg')
    assert seconds.locator("text", has_text="first").count() == 1
    assert seconds.locator("text", has_text="second").all_text_contents() == ["seconds"]
    view.page.get_by_role("checkbox", name="second").check()
    assert len(view.page.evaluate(script)["names"]) == 7

    # With the keyboard alone: a value, a closer look, and the whole again.
    view.page.locator('figure[data-title="Loss"] .chart').focus()
    view.page.keyboard.press("ArrowRight")
    assert "held-out" in view.page.locator(".tip").first.text_content()
    view.page.keyboard.press("+")
    assert view.page.evaluate(script)["zoom"]["end"] == 75
    view.page.keyboard.press("Escape")
    assert view.page.evaluate(script)["zoom"]["end"] == 100
    figure = view.page.locator('figure[data-title="Loss"]')
    figure.get_by_text("Data as a table").click()
    assert figure.locator("tbody tr").count() > 40
    assert not view.wrong


def test_markup_does_nothing_in_the_browser(browser, tmp_path):
    evil = workdirs.HOSTILE
    samples = [{"step": 1, "texts": [[evil, {"truth": evil, "guess": evil}]]}]
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    config = {evil: evil, "growth": {"stages": [{"until": 0.5, evil: evil}]}}
    workdir = workdirs.run(folder, name="<b>run", samples=samples, config=config)
    workdirs.write(workdir / "environment.json", {"command": evil, "git": evil, "host": evil})
    view = browsers.View(browser, written(tmp_path, workdir, *everything(tmp_path)))
    for title in (
        "Loss",
        "The grid",
        "Held-out loss of every entry",
        "Scripts",
        "Memory of a step by kind",
    ):
        chart = view.page.locator(f'figure[data-title="{title}"] .chart')
        chart.scroll_into_view_if_needed()
        chart.hover()
    for details in view.page.locator("details").all():
        details.locator("summary").click()
    assert view.page.locator("main img, main b, main script, header b, main i").count() == 0
    assert evil in view.page.locator("#samples").text_content()
    assert not view.wrong


@pytest.mark.parametrize(
    "size, scheme",
    [
        pytest.param(browsers.PHONE, "dark", id="phone-dark"),
        pytest.param(browsers.PHONE, "light", id="phone-light", marks=pytest.mark.slow),
        pytest.param(browsers.WIDE, "dark", id="wide-dark", marks=pytest.mark.slow),
        pytest.param(browsers.WIDE, "light", id="wide-light", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(browser, tmp_path, size, scheme):
    address = written(tmp_path, *everything(tmp_path), price=1.0)
    view = browsers.View(browser, address, size=size, scheme=scheme)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    view.keep(f"everything-{size[0]}-{scheme}")
    assert axe(view) == {}
    assert not view.wrong


def test_the_live_page_follows_a_run(browser, tmp_path):
    workdir = workdirs.run(tmp_path, lines=workdirs.metrics(10), is_finished=False)
    with servers.serving(workdir) as ask, pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers.server, "FOLLOW_S", 0.2)
        view = browsers.View(browser, ask.address, asks=True)
        view.page.locator("summary", has_text="All keys").click()
        line = workdirs.metrics(11)[-1] | {"eval_loss": 1.25, "eval_accuracy": 0.5}
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        view.page.locator('[data-value="1.25"]').first.wait_for()
        assert view.figures(FIGURES)["eval_loss"] == [1.25]
        # What the reader has opened stays open.
        assert view.page.locator("details[open]").count() == 1
        assert not view.wrong


def test_an_update_leaves_the_reader_where_he_was(browser, tmp_path):
    data = workdirs.dataset(tmp_path)
    lines = workdirs.metrics(10)
    workdir = workdirs.run(tmp_path, name="run" * 30, lines=lines, is_finished=False)
    workdirs.write(workdir / "environment.json", {"dataset": str(data)})

    def add(**values):
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(workdirs.metrics(11)[-1] | values) + "\n")

    with servers.serving(workdir) as ask, pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers.server, "FOLLOW_S", 0.1)
        view = browsers.View(browser, ask.address, size=browsers.PHONE, asks=True)
        view.page.locator("summary", has_text="most frequent").click()
        view.page.locator("thead button", has_text="share").focus()
        table = f'.scroll:has(table[data-title="{FIGURES}"])'
        view.page.locator(table).evaluate("frame => frame.scrollLeft = 30")
        script = "window.before = echarts.getInstanceByDom(document.querySelector('.chart'))"
        view.page.evaluate(f"() => {{ {script}; }}")
        add(eval_loss=1.25)
        view.page.locator('[data-value="1.25"]').first.wait_for(state="attached")
        assert view.page.evaluate("document.activeElement.textContent") == "share"
        assert view.page.locator(table).evaluate("frame => frame.scrollLeft") == 30
        assert not view.page.evaluate("before.isDisposed()")

        # A new chart makes the page anew, and nothing of the old one stays in memory.
        add(bleu=3.5)
        view.page.locator('figure[data-title="BLEU"] svg').first.wait_for()
        assert view.page.evaluate("before.isDisposed()")
        assert not view.wrong

        view.page.route("**/data.json", lambda route: route.abort())
        view.page.locator("#live", has_text="does not answer").wait_for()
        view.page.unroute("**/data.json")
        view.page.locator("#live", has_text="no news").wait_for()


@pytest.mark.slow
def test_a_page_prints_in_light_colours(browser, tmp_path):
    view = browsers.View(browser, written(tmp_path, *two_runs(tmp_path)), scheme="dark")
    assert view.page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")
    script = "getComputedStyle(document.body).backgroundColor"
    assert view.page.evaluate(script) == "rgb(15, 19, 24)"
    view.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert view.page.evaluate(script) == "rgb(255, 255, 255)"
    view.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert view.page.evaluate(script) == "rgb(15, 19, 24)"


def drawn(view):
    """Returns title → number of drawn lines and signs of every chart of the page."""
    script = """figures => Object.fromEntries(figures.map(figure =>
        [figure.dataset.title, figure.querySelectorAll('.chart svg path').length]))"""
    return view.page.locator("figure").evaluate_all(script)


@pytest.mark.slow
@pytest.mark.parametrize("size", [browsers.WIDE, browsers.PHONE], ids=["wide", "phone"])
def test_the_page_of_a_real_track(browser, real_track, tmp_path, size):
    view = browsers.View(browser, written(tmp_path, real_track), size=size, scheme="dark")
    assert view.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    noted = json.loads((real_track / "track.json").read_text())["entries"]
    means = [sum(entry["losses"]) / 2 for entry in noted]
    shown = view.figures("Entries; costs are medians of the seeds")
    assert list(shown) == ["control", "cautious"]
    for mean, row, entry in zip(means, shown.values(), noted, strict=True):
        assert row[1] == pytest.approx(mean) and row[4] == entry["p"]
        assert row[5:8] == [entry["tokens"], entry["seconds"], entry["flops"]]
    chart = view.page.locator('figure[data-title="Held-out loss of every entry"] .chart')
    assert all(chart.locator("text", has_text=name).count() for name in shown)
    view.keep(f"real-track-{size[0]}")
    assert min(drawn(view).values()) > 0
    assert axe(view) == {}
    assert not view.wrong


@pytest.mark.slow
def test_the_page_of_a_real_sweep_and_of_a_t5(browser, real_track, t5_run, tmp_path):
    sweep = real_track / "00-control"
    view = browsers.View(browser, written(tmp_path, sweep, t5_run))
    for workdir in (t5_run, *sorted(path.parent for path in sweep.glob("*/summary.json"))):
        summary = json.loads((workdir / "summary.json").read_text())
        names = view.page.locator(f'table[data-title="{FIGURES}"] thead th').all_text_contents()
        shown = view.figures(FIGURES)
        for key in ("steps", "tokens", "eval_loss", "unigram_loss", "params"):
            assert shown[key][names.index(workdir.name)] == summary[key], key
    assert view.page.locator("#samples .texts > li").count() == 9
    view.keep("real-sweep-and-t5")
    assert min(drawn(view).values()) > 0
    assert axe(view) == {}
    assert not view.wrong


@pytest.mark.slow
def test_pages_of_real_runs(browser, small_run, tmp_path):
    view = browsers.View(browser, written(tmp_path, small_run, price=0.3))
    summary = json.loads((small_run / "summary.json").read_text())
    shown = view.figures(FIGURES)
    for key in ("steps", "tokens", "flops", "params", "eval_loss", "goodput", "train_loss"):
        assert shown[key] == [summary[key]], key
    n_evaluations = sum("eval_loss" in line for line in (small_run / "metrics.jsonl").open())
    assert view.page.locator("#samples .texts > li").count() == 3
    assert view.page.locator("#samples .texts > li").first.locator("dd").count() == min(
        n_evaluations, runs.MOST_READINGS
    )
    view.keep("real-run")
    assert axe(view) == {}
    assert not view.wrong
