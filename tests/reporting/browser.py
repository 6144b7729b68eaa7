"""A real browser for the tests of pages: Chromium through Playwright, or a skip that says why."""

import contextlib
import os
import pathlib
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, PHONE = (1280, 900), (390, 800)


def executable():
    """Returns the path of a browser; skips the test without one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return found


@contextlib.contextmanager
def opened():
    """Gives a browser that is closed at the end."""
    path = executable()
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        # Root has no sandbox. The pages are ours, and nothing of them comes from a network.
        flags = ["--no-sandbox", "--disable-gpu"] if os.geteuid() == 0 else ["--disable-gpu"]
        browser = driver.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


class View:
    """A page in a tab that notes what goes wrong in it.

    Attributes:
        page: Playwright's page.
        wrong: messages of errors and warnings of the console, errors of the script, and requests.
    """

    def __init__(self, browser, address, *, size=WIDE, scheme="light", asks=False):
        self.wrong = []
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        self.page = context.new_page()
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        if not asks:  # for news, as a live page does
            self.page.on("request", self._note_request)
        self._address = address
        self.page.goto(address)
        # The policy of a page lets nothing evaluate text, so this waits for an element.
        self.page.locator("main section").first.wait_for(state="attached")

    def _note_console(self, message):
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _note_request(self, request):
        if request.url != self._address and not request.url.startswith("data:"):
            self.wrong.append(f"asked for {request.url}")

    def figures(self, title):
        """Returns heading → numbers of a table's rows."""
        script = """table => Object.fromEntries([...table.tBodies[0].rows].map(row =>
            [row.cells[0].textContent, [...row.cells].slice(1).map(cell =>
                cell.dataset.value === undefined ? null : Number(cell.dataset.value))]))"""
        return self.page.locator(f'table[data-title="{title}"]').evaluate(script)

    def keep(self, name):
        """Keep a picture of the whole page in the folder `CRAMJAX_SCREENSHOTS`, if it is set."""
        folder = os.environ.get("CRAMJAX_SCREENSHOTS")
        if folder:
            path = pathlib.Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=path / f"{name}.png", full_page=True)
