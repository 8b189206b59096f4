"""Draw and play the demo bundle for the docs (`make screenshots`).

Writes docs/playground*.png, docs/sounds.png and docs/sounds/*.ogg.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.browser import open_chromium
from tests.support.service import TIMEOUT_S, Serve

STRIP = (
    "somebody plays the drums",
    "an acoustic guitar",
    "a dog barking",
    "a saxophone solo",
    "birds singing",
    "a violin",
)
ASKED = {  # of one prompt and seed: what an attribute does
    "acoustic-guitar-dull": ("an acoustic guitar", {"brightness": 0.1}),
    "acoustic-guitar-bright": ("an acoustic guitar", {"brightness": 0.9}),
    "accordion-clean": ("an accordion", {"noisiness": 0.1}),
    "accordion-noisy": ("an accordion", {"noisiness": 0.9}),
}
PROMPTS = ("an acoustic guitar", "somebody plays the drums")


def main(folder: Path) -> None:
    """Write an image of each theme and of a phone."""
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
                    card = page.get_by_role("article", name=prompt)
                    # Images load when they are near.
                    card.locator(".player").first.scroll_into_view_if_needed()
                    card.locator("img[src]").first.wait_for()
                page.evaluate("scrollTo(0, 0)")
                page.wait_for_load_state("networkidle")
                image = Image.open(io.BytesIO(page.screenshot()))
                image.quantize(128).save(folder / f"{name}.png", optimize=True)
                page.close()
        finally:
            service.stop()


def sounds(folder: Path) -> None:
    """Write the sounds of six prompts, and of two with attributes; and spectrograms of the six.

    All have seed 0 and the bundle's defaults.
    """
    import matplotlib.pyplot as plt
    import soundfile
    import torch

    from worker.output_files import spectrogram_png
    from worker.predictor import Predictor

    predictor = Predictor.setup(Settings())
    rate = predictor.manifest.sample_rate
    (folder / "sounds").mkdir(exist_ok=True)

    def make(name: str, prompt: str, attributes: dict[str, float] | None = None) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        [sound] = predictor.pipeline(prompt, generator=generator, attributes=attributes).audios
        soundfile.write(folder / "sounds" / f"{name}.ogg", sound, rate)
        return sound

    for name, (prompt, attributes) in ASKED.items():
        make(name, prompt, attributes)
    figure, axes = plt.subplots(2, 3, figsize=(9, 3.4), layout="constrained")
    for prompt, ax in zip(STRIP, axes.flat, strict=True):
        sound = make(prompt.removeprefix("an ").removeprefix("a ").replace(" ", "-"), prompt)
        image = Image.open(io.BytesIO(spectrogram_png(predictor.log_mel(sound)))).convert("RGB")
        ax.imshow(image, aspect="auto", extent=(0, len(sound) / rate, 0, 1))
        ax.set_title(prompt, fontsize=9)
        ax.set_yticks([])
        ax.tick_params(labelsize=7)
    figure.supxlabel("s", fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, dpi=100)
    Image.open(data).convert("RGB").quantize(128).save(folder / "sounds.png", optimize=True)


if __name__ == "__main__":
    sounds(Path(sys.argv[1]))
    main(Path(sys.argv[1]))
