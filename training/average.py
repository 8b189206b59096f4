"""The average of two bundles' weights: of one that was trained on and the one that it began with, whose loss has a valley in common (Wortsman et al. 2022, WiSE-FT)."""

from __future__ import annotations

from pathlib import Path

import torch

from models.pipeline import ClipSynthPipeline

LEARNED = ("condition_encoder", "denoiser")


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write to `out` the bundle `second` with denoiser and condition encoder at (1 - share) of the first's weights and `share` of the second's.

    What is no weight of these (defaults, statistics, vocoder, index, card) is the second's; the card says what was averaged.

    Raises:
        ValueError: a share out of 0..1, or parts of different shapes; the message names the tensor.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1, got {share}")
    begun, ended = (ClipSynthPipeline.from_pretrained(folder) for folder in (first, second))
    for part in LEARNED:
        others = dict(getattr(begun, part).named_parameters())
        for name, p in getattr(ended, part).named_parameters():
            if name not in others or others[name].shape != p.shape:
                raise ValueError(f"{part}: the bundles have {name} in different shapes")
            p.data = torch.lerp(others[name].data, p.data, share)
    for part in (*LEARNED, "vocoder"):
        getattr(ended, part).half()
    ended.save_pretrained(out)
    card = second / "README.md"
    if card.is_file():
        line = (
            f"- Weights of denoiser and condition encoder: the average of these ({share:g}) and of bundle {begun.manifest.name} "
            f"{begun.manifest.version} ({1 - share:g}), from which they began or which began from them.\n"
        )
        (out / "README.md").write_text(card.read_text().replace("- Vocoder: ", line + "- Vocoder: ", 1))
