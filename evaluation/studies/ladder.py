"""The ladder of remedies against the text gap, each a setting of one bundle at request time: what is each worth, alone and together?

The bottom rung is a text that is given as if it were an image. Remedies of training (noise on embeddings, texts from a list of phrases) are bundles of their own, compared by `also`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluation.metrics.bootstrap import Figure
from evaluation.metrics.text_gap import gap_closed, text_gap
from evaluation.report.table import cell, percent
from evaluation.studies.setting import AGREEMENT, FAD, SECONDS, Setting, table
from evaluation.studies.variants import changed, with_condition_encoder
from evaluation.systems.bundle import Bundle, load_pipeline
from models.networks.condition_encoder import ConditionEncoder
from models.pipeline import ClipSynthPipeline

RAW = "raw text"
BARE = {
    "text_templates": False,
    "anchor_share": 0.0,
    "anchor_likeness": -1.0,
    "text_sigma": 0.0,
    "bank_share": 0.0,
    "prior_share": 0.0,
}
Prior = Callable[[ClipSynthPipeline], ConditionEncoder]


@dataclass(frozen=True)
class Rung:
    """A remedy: settings of the condition encoder over `BARE`, and whether the prior is fitted first. `bundle`: another one in which it was trained."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prior: bool = False
    bundle: Path | None = None


def rungs(
    sigmas: Sequence[float], banks: Sequence[tuple[float, float]], *, prior: bool = False
) -> list[Rung]:
    """Return the ladder, bottom first: what each remedy does alone, from `centred` on upon centred embeddings.

    Args:
        sigmas: noise levels told to the network. banks: (share, tau) of the projection on images.
    """
    own = {"text_centring": "own"}
    found = [
        Rung(RAW, {"text_centring": "image"}),
        Rung("templates", {"text_centring": "image", "text_templates": True}),
        Rung("anchors", {"text_centring": "image", "anchor_share": 1.0}),
        Rung("mean shift", {"text_centring": "shift"}),
        Rung("centred", own),
        *(Rung(f"sigma {s:g}", own | {"text_sigma": s}) for s in sigmas),
        *(
            Rung(f"bank {share:g}, tau {tau:g}", own | {"bank_share": share, "bank_tau": tau})
            for share, tau in banks
        ),
    ]
    if prior:
        found.append(Rung("prior", own | {"prior_share": 1.0}, prior=True))
    return found


def parse_rung(spec: str) -> Rung:
    """Return the rung of "NAME=setting=value&setting=value", YAML values; "prior" alone is a setting too.

    Raises:
        ValueError: not of that form.
    """
    name, equals, rest = spec.partition("=")
    settings: dict[str, Any] = {"text_centring": "own"}
    prior = False
    for part in rest.split("&"):
        key, given, value = part.partition("=")
        if part == "prior":
            prior, settings["prior_share"] = True, 1.0
        elif name and equals and key and given:
            settings[key] = yaml.safe_load(value)
        else:
            raise ValueError(f"{spec!r} is not of the form NAME=setting=value&setting=value")
    return Rung(name, settings, prior)


def also(spec: str) -> Rung:
    """Return the rung of "NAME=BUNDLE", a bundle as it is.

    Raises:
        ValueError: not of that form.
    """
    name, _, folder = spec.partition("=")
    if not (name and folder):
        raise ValueError(f"{spec!r} is not of the form NAME=BUNDLE")
    return Rung(name, bundle=Path(folder))


def build(rung: Rung, pipe: ClipSynthPipeline, prior: Prior | None) -> ClipSynthPipeline:
    """Return the pipeline of a rung.

    Raises:
        ValueError: a setting that there is not, or a prior that nothing fits.
    """
    if rung.bundle is not None:
        return load_pipeline(str(rung.bundle))
    if rung.prior:
        if prior is None:
            raise ValueError(f"{rung.name}: nothing here fits a prior")
        pipe = with_condition_encoder(pipe, prior(pipe))
    return changed(pipe, BARE | dict(rung.settings))


def ladder(
    setting: Setting,
    bundle: Path,
    wanted: Sequence[Rung],
    *,
    prior: Prior | None = None,
    steps: int | None = None,
) -> str:
    """Write and return the table: for each rung agreement and FAD of texts, against those of images, and how much of the raw gap is closed.

    Args:
        wanted: the rungs; the first one's gap is what the others close.
        prior: fits a prior to a pipeline's images and returns its condition encoder with it.

    Raises:
        ValueError: two rungs of one name, or one that cannot be built.
    """
    names = [rung.name for rung in wanted]
    if not wanted or len(set(names)) < len(names):
        raise ValueError(f"rungs need names of their own, got {', '.join(names) or 'none'}")
    pipe = load_pipeline(str(bundle))
    as_images = setting.figures(Bundle("pictures", pipe, steps=steps), "image")
    rows: dict[str, dict[str, Any]] = {}
    for rung in wanted:
        own = build(rung, pipe, prior)
        text = setting.figures(Bundle(rung.name, own, steps=steps), "text")
        image = (
            as_images
            if rung.bundle is None
            else setting.figures(Bundle(rung.name, own, steps=steps), "image")
        )
        rows[rung.name] = {"settings": dict(rung.settings), "text": text, "image": image}
        rows[rung.name] |= _gaps(rows[rung.name], rows[names[0]])
    return setting.write(
        "ladder",
        {"bundle": str(bundle), "version": pipe.manifest.version, "steps": steps},
        rows,
        _table(setting, rows),
    )


def _gaps(row: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """Return text - image by metric, and per cent closed of the bottom rung's gap where that has one."""
    gaps = {metric: text_gap(row["text"][metric], row["image"][metric]) for metric in (AGREEMENT, FAD)}
    bottom = {metric: text_gap(raw["text"][metric], raw["image"][metric]) for metric in gaps}
    closed = {m: gap_closed(gaps[m], bottom[m]) for m in gaps if row is not raw and bottom[m].value != 0}
    return {"gap": gaps, "closed": closed}


def _table(setting: Setting, rows: Mapping[str, Mapping[str, Any]]) -> str:
    head = [
        "Rung",
        "agreement, text ↑",
        "agreement, image ↑",
        "gap closed",
        "FAD, text ↓",
        "FAD, image ↓",
        "gap closed",
        "s per sound",
    ]
    lines = []
    for name, row in rows.items():
        line = [name]
        for metric, write in ((AGREEMENT, percent), (FAD, None)):
            shown = [cell(row[kind][metric], *([write] if write else [])) for kind in ("text", "image")]
            line += [*shown, _closed(row["closed"].get(metric))]
        lines.append([*line, cell(row["text"].get(SECONDS))])
    notes = [
        setting.note(),
        "Each remedy alone, over a text that is given as if it were an image (the first row); from `centred` on upon embeddings less their kind's mean. "
        "The phrases asked are those of the queries; gap closed: 100 (1 - gap / the first row's), a dash where the first row's gap may be none.",
    ]
    return table(head, lines, notes)


def _closed(figure: Figure | None) -> str:
    """Return per cent with their interval; a dash where the first row's own gap may be none."""
    if figure is None or not np.isfinite([figure.low, figure.high]).all():
        return "–"
    return f"{figure.value:.0f} % ({figure.low:.0f}–{figure.high:.0f})"
