"""The judge of a folder of results: trained once on labelled training clips, then kept. It never hears a validation clip in training; a folder belongs to one set of clips."""

from __future__ import annotations

import os
from pathlib import Path

from rich.progress import track

from evaluation.audio import fingerprint
from evaluation.clips import read_clips, read_labels
from evaluation.embedders.classifier import SoundClassifier, train_classifier


def claim(folder: Path, clips: Path, labels: Path) -> None:
    """Note in `folder` which clips its judge and sounds are of.

    Raises:
        ValueError: it is of other clips, or of clips that have changed since.
    """
    read_labels(labels, "validation")
    sizes = {p.relative_to(clips).as_posix(): p.stat().st_size for p in sorted(clips.rglob("*.*"))}
    mark, file = fingerprint(labels.read_text(), sizes), folder / "clips.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(mark)
        os.replace(temporary, file)  # at once, for two runs may share a folder
    if file.read_text() != mark:
        raise ValueError(f"{folder} holds results of other clips than {clips} has now; choose another --out")


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
