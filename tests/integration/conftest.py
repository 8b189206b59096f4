"""Fixtures of a whole service: a browser, and its page."""

from __future__ import annotations

import pytest

from tests.support.browser import open_chromium
from tests.support.page import WAIT_MS, set_slider


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, served):
    """A fresh page that is ready. It fails the test on a script's error, and on a request to elsewhere."""
    service, _ = served
    service.wait_for_worker()
    context = browser.new_context(base_url=service.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
    page.on("request", lambda r: None if r.url.startswith((service.url, "blob:")) else wrong.append(r.url))
    page.goto("/")
    page.get_by_text("tiny · ready").wait_for()
    set_slider(page, "Duration", 0.5)
    set_slider(page, "Steps", 4)
    yield page
    context.close()
    assert wrong == []
