"""Average the weights of a bundle and one fine-tuned from it (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from pathlib import Path

import torch

from models.pipeline import ClipSynthPipeline

LEARNED = ("condition_encoder", "denoiser")


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write the bundle `second` to `out` with weights (1 - share) * first + share * second.

    The weights are those of denoiser and condition encoder. Everything else (defaults, statistics, vocoder,
    index, card) comes from `second`; the card names the average.

    Raises:
        ValueError: a share outside 0..1, or parts of different shapes; the message names the tensor.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1, got {share}")
    one, other = (ClipSynthPipeline.from_pretrained(folder) for folder in (first, second))
    for part in LEARNED:
        weights = dict(getattr(one, part).named_parameters())
        for name, p in getattr(other, part).named_parameters():
            if name not in weights or weights[name].shape != p.shape:
                raise ValueError(f"{part}: the bundles have {name} in different shapes")
            p.data = torch.lerp(weights[name].data, p.data, share)
    for part in (*LEARNED, "vocoder"):
        getattr(other, part).half()
    other.save_pretrained(out)
    card = second / "README.md"
    if card.is_file():
        line = (
            f"- Weights of denoiser and condition encoder: average of these ({share:g}) and of bundle "
            f"{one.manifest.name} {one.manifest.version} ({1 - share:g}).\n"
        )
        (out / "README.md").write_text(card.read_text().replace("- Vocoder: ", line + "- Vocoder: ", 1))
