"""The effect of each remedy against the text gap, switched on alone in one bundle at request time.

The first row is a text that the bundle treats as if it were an image. Remedies that need training (noise on
embeddings, pseudo-texts) are bundles of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluation.metrics.bootstrap import Figure, difference, gap_closed
from evaluation.report.table import markdown_table
from evaluation.run.rows import Entry
from evaluation.studies.context import CLASS_ACCURACY, FAD, SECONDS, TEXT_AND_IMAGE, StudyContext
from evaluation.studies.study import metric_cell, metric_title, save, sweep
from evaluation.studies.variants import with_condition_encoder, with_settings
from evaluation.systems.bundle import Bundle, load_pipeline
from models.networks.condition_encoder import ConditionEncoder
from models.pipeline import ClipSynthPipeline

RAW = "raw text"
IMAGES = "images"
BARE = {
    "text_templates": False,
    "anchor_share": 0.0,
    "anchor_likeness": -1.0,
    "text_sigma": 0.0,
    "bank_share": 0.0,
    "prior_share": 0.0,
}
FitPrior = Callable[[ClipSynthPipeline], ConditionEncoder]


@dataclass(frozen=True)
class TextVariant:
    """One way to condition on texts.

    Attributes:
        settings: settings of the condition encoder; they replace those of `BARE`.
        prior: whether a prior is fitted first.
        bundle: another bundle, used with its own settings.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prior: bool = False
    bundle: Path | None = None


def text_variants(
    sigmas: Sequence[float], banks: Sequence[tuple[float, float]], *, prior: bool = False
) -> list[TextVariant]:
    """Return the remedies, each alone; those after "centred" work on centred embeddings.

    Args:
        sigmas: noise levels given to the network.
        banks: (share, tau) of the projection on training images.
        prior: whether the fitted prior is among them.
    """
    image, own = {"text_centring": "image"}, {"text_centring": "own"}
    found = [
        TextVariant(RAW, image),
        TextVariant("templates", image | {"text_templates": True}),
        TextVariant("anchors", image | {"anchor_share": 1.0}),
        TextVariant("mean shift", {"text_centring": "shift"}),
        TextVariant("centred", own),
    ]
    found += [TextVariant(f"sigma {s:g}", own | {"text_sigma": s}) for s in sigmas]
    for share, tau in banks:
        settings = own | {"bank_share": share, "bank_tau": tau}
        found.append(TextVariant(f"bank {share:g}, tau {tau:g}", settings))
    if prior:
        found.append(TextVariant("prior", own | {"prior_share": 1.0}, prior=True))
    return found


def parse_variant(spec: str) -> TextVariant:
    """Return the variant of "NAME=setting=value&setting=value" with YAML values; "prior" needs no value.

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
    return TextVariant(name, settings, prior)


def parse_bundle(spec: str) -> TextVariant:
    """Return the variant of "NAME=BUNDLE", a bundle with its own settings.

    Raises:
        ValueError: not of that form.
    """
    name, _, folder = spec.partition("=")
    if not (name and folder):
        raise ValueError(f"{spec!r} is not of the form NAME=BUNDLE")
    return TextVariant(name, bundle=Path(folder))


def build(variant: TextVariant, pipe: ClipSynthPipeline, fit_prior: FitPrior | None) -> ClipSynthPipeline:
    """Return the pipeline of a variant.

    Raises:
        ValueError: a setting does not exist, or the variant needs a prior and `fit_prior` is None.
    """
    if variant.bundle is not None:
        return load_pipeline(str(variant.bundle))
    if variant.prior:
        if fit_prior is None:
            raise ValueError(f"{variant.name}: a prior needs --prepared FOLDER to be fitted")
        pipe = with_condition_encoder(pipe, fit_prior(pipe))
    return with_settings(pipe, BARE | dict(variant.settings))


def ladder(
    context: StudyContext,
    bundle: Path,
    variants: Sequence[TextVariant],
    *,
    fit_prior: FitPrior | None = None,
    steps: int | None = None,
) -> str:
    """Write and return the table: class accuracy and FAD of texts and of images, and the gap closed.

    Args:
        variants: the others close the gap of the first one.
        fit_prior: fits a prior to a pipeline's images and returns the condition encoder with the prior.

    Raises:
        ValueError: two variants of one name, or a variant that cannot be built.
    """
    names = [variant.name for variant in variants]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants need different names, got {', '.join(names) or 'none'}")
    pipe = load_pipeline(str(bundle))

    def points() -> Iterator[tuple[tuple[str, str], Entry]]:
        yield (IMAGES, "image"), context.entry(Bundle(IMAGES, pipe, steps=steps), "image")
        for variant in variants:
            system = Bundle(variant.name, build(variant, pipe, fit_prior), steps=steps)
            yield (variant.name, "text"), context.entry(system, "text")
            if variant.bundle is not None:
                yield (variant.name, "image"), context.entry(system, "image")

    measured = sweep(context, points(), context.figures)
    rows: dict[str, dict[str, Any]] = {}
    for variant in variants:
        image = measured.get((variant.name, "image"), measured[IMAGES, "image"])
        row = {"settings": variant.settings, "text": measured[variant.name, "text"], "image": image}
        rows[variant.name] = row
        row |= _gaps(row, rows[names[0]])
    table, version = _table(context, rows), pipe.manifest.version
    return save(context, "ladder", rows, table, bundle=bundle, version=version, steps=steps)


def _gaps(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """Return text - image by metric, and the per cent of the first row's gap that are closed."""
    metrics = (CLASS_ACCURACY, FAD)
    gap, raw = ({m: difference(r["text"][m], r["image"][m]) for m in metrics} for r in (row, first))
    closed = {m: gap_closed(gap[m], raw[m]) for m in metrics if row is not first and raw[m].value != 0}
    return {"gap": gap, "closed": closed}


def _table(context: StudyContext, rows: Mapping[str, Mapping[str, Any]]) -> str:
    head, lines = ["Variant"], [[name] for name in rows]
    for metric in (CLASS_ACCURACY, FAD):
        head += [*(metric_title(metric, kind) for kind in TEXT_AND_IMAGE), "gap closed"]
        for line, row in zip(lines, rows.values(), strict=True):
            line += [*(metric_cell(row[kind], metric) for kind in TEXT_AND_IMAGE), _closed(row, metric)]
    for line, row in zip(lines, rows.values(), strict=True):
        line.append(metric_cell(row["text"], SECONDS))
    notes = [
        context.note(),
        "Each remedy alone. First row: a text that is treated as an image. From `centred` on: embeddings "
        "less the mean of their kind. Gap closed: 100 (1 - gap / the first row's gap); a dash if the "
        "interval of the first row's gap contains 0.",
    ]
    return markdown_table([*head, "s per sound"], lines, notes=notes)


def _closed(row: Mapping[str, Any], metric: str) -> str:
    """Return the per cent closed with their interval; a dash if the first row may have no gap."""
    figure = row["closed"].get(metric)
    if figure is None or not np.isfinite([figure.low, figure.high]).all():
        return "–"
    return f"{figure.value:.0f} % ({figure.low:.0f}–{figure.high:.0f})"
