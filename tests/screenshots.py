"""Pictures of the playground with the demo bundle: `make screenshots` writes docs/playground*.png, to be looked at."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from clipsynth.process import wait_until
from clipsynth.settings import Settings
from tests.browser import open_chromium
from tests.service import TIMEOUT_S, Serve

PROMPTS = ("an acoustic guitar", "somebody plays the drums")


def main(folder: Path) -> None:
    """Write a picture of each theme and of a phone."""
    with tempfile.TemporaryDirectory() as data, open_chromium() as browser:
        service = Serve(Settings().model, Path(data) / "data")
        try:
            assert wait_until(lambda: service.answers("/readyz"), timeout_s=TIMEOUT_S)
            service.wait_for_worker()
            for name, width, height, scheme in (
                ("playground", 1280, 860, "light"),
                ("playground-dark", 1280, 860, "dark"),
                ("playground-phone", 390, 844, "light"),
            ):
                page = browser.new_page(
                    base_url=service.url, viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page.goto("/")
                page.get_by_text("ready").first.wait_for()
                for prompt in PROMPTS:
                    page.get_by_label("What should it sound like?").fill(prompt)
                    page.keyboard.press("Control+Enter")
                    page.get_by_role("article", name=prompt).locator("img[src]").first.wait_for()
                page.wait_for_load_state("networkidle")
                picture = Image.open(io.BytesIO(page.screenshot()))
                picture.quantize(128).save(folder / f"{name}.png", optimize=True)
                page.close()
        finally:
            service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
