"""Remakes the pictures of pages in docs: the top of a page, and the same on a dark phone.

    python -m tests.reporting.screenshots docs runs/quickstart runs/lower_lr

It needs Chromium and Playwright. The first argument is the folder of the pictures, the others are
what the page is about.
"""

import pathlib
import sys
import tempfile

from cramjax.reporting import page, subjects
from tests.reporting import browser

WHOLE, PHONE = (1200, 820), (390, 844)


def main(folder, *paths):
    found = subjects.find([pathlib.Path(path) for path in paths])
    text = page.render(page.make(found, price=0.35))
    with tempfile.TemporaryDirectory() as scratch, browser.opened() as opened:
        path = pathlib.Path(scratch) / "page.html"
        path.write_text(text, encoding="utf-8")

        wide = browser.View(opened, path.as_uri(), size=WHOLE).page
        wide.evaluate("document.getElementById('results').hidden = true")
        wide.screenshot(path=f"{folder}/report.png")
        small = browser.View(opened, path.as_uri(), size=PHONE, scheme="dark").page
        small.locator("#samples").scroll_into_view_if_needed()
        small.evaluate("document.getElementById('samples').scrollIntoView()")
        small.screenshot(path=f"{folder}/report_phone.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
