"""A Chromium for tests of pages: the one of this machine, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Return the path of Chromium: CLIPSYNTH_TEST_CHROMIUM, or one on PATH."""
    return os.environ.get("CLIPSYNTH_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_chromium() -> Iterator[object]:
    """Yield a browser of Playwright; the test is skipped where there is no Chromium or no Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip(
            f"no Chromium: none of {', '.join(NAMES)} on PATH, and CLIPSYNTH_TEST_CHROMIUM is not set"
        )
    with playwright.sync_playwright() as driver:
        # As root Chromium needs --no-sandbox; /dev/shm is small in containers.
        browser = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"],
        )
        try:
            yield browser
        finally:
            browser.close()
