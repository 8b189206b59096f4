"""`clipsynth evaluate`: judge a bundle by an independent classifier, for text and for image queries.

Run: clipsynth evaluate --clips VIDEOS --queries queries.json
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from evaluation.agreement import (
    Agreement,
    image_queries,
    judge,
    read_phrases,
    synthesize,
    text_queries,
    to_json,
    to_markdown,
)
from evaluation.classifier import SoundClassifier, train_classifier
from evaluation.clips import LabelledClip, read_clips, read_labels
from models.pipeline import ClipSynthPipeline


def get_classifier(folder: Path, clips: Path, labels: Path) -> SoundClassifier:
    """Return the classifier kept in `folder`; train it on the "train" split first where there is none."""
    if not (folder / "classifier.json").is_file():
        wanted = read_labels(labels, "train")
        train = list(
            track(
                ((c.waveform, c.label) for c in read_clips(clips, wanted)), "read training clips", len(wanted)
            )
        )
        train_classifier([w for w, _ in train], [label for _, label in train]).save(folder)
    return SoundClassifier.load(folder)


def evaluate(
    bundle: Path,
    *,
    clips: Path,
    labels: Path,
    queries: Path,
    out: Path,
    per_class: int = 10,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> str:
    """Write `results.json` and `results.md` to `out` and return the Markdown table: real validation clips, text queries, image queries.

    Pictures and real sounds are those of the "validation" split, which neither the generator nor the classifier has seen.

    Raises:
        ValueError: labels, videos or queries that cannot be used, or a query whose class the labels do not have.
    """
    classifier = get_classifier(out, clips, labels)
    phrases = read_phrases(queries)
    unknown = sorted(set(phrases) - set(classifier.labels))
    if unknown:
        raise ValueError(f"{queries}: the labels have no class {unknown[0]!r}")
    validation: list[LabelledClip] = list(read_clips(clips, read_labels(labels, "validation")))
    pictures: dict[str, list[Image.Image]] = defaultdict(list)
    for clip in validation:
        pictures[clip.label].append(clip.frame)

    results: dict[str, Agreement] = {
        "real validation clips": judge(
            classifier, [c.waveform for c in validation], [c.label for c in validation]
        )
    }
    pipe = ClipSynthPipeline.from_pretrained(bundle)
    pipe.set_progress_bar_config(disable=True)
    for name, asked in (
        ("text queries", text_queries(phrases, per_class)),
        ("image queries", image_queries(pictures, per_class)),
    ):
        sounds: list[np.ndarray] = list(
            track(
                synthesize(
                    pipe, asked, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
                ),
                name,
                len(asked),
            )
        )
        results[name] = judge(classifier, sounds, [query.label for query in asked])
    chance = 1 / len(classifier.labels)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(to_json(results, chance))
    table = to_markdown(results, chance)
    (out / "results.md").write_text(table + "\n")
    return table
