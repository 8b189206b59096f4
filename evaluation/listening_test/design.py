"""The sounds of a listening test: blind, at one level, in a different order for each rater.

They come from a folder of `clipsynth evaluate` (its text queries), or from any folder with a manifest.csv
with the columns system, query and file.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from evaluation.clips import read_csv
from evaluation.interfaces import Query
from evaluation.plan import Sample, once
from models.audio.level import MAX_PEAK

COLUMNS = ("system", "query", "file")
TARGET_DBFS = -26.0  # level of speech tests (ITU-T P.56); lower for all sounds if one of them would clip
SILENT_DBFS = -70.0  # absolute gate of ITU-R BS.1770
BLOCK_S, HOP_S, RELATIVE_GATE_DB = 0.4, 0.1, 10.0  # blocks and relative gate of ITU-R BS.1770


@dataclass(frozen=True)
class RatedSound:
    """A sound of a system that answers a query."""

    system: str
    query: str
    file: Path


@dataclass(frozen=True)
class Item:
    """A sound to rate. `id` hides the system and changes with the sound; `gain` brings all to one level."""

    id: str
    system: str
    query: str
    file: Path
    gain: float

    def wav(self) -> bytes:
        """Return the levelled sound as a WAV file of 16 bits."""
        samples, rate = soundfile.read(self.file, dtype="float32")
        out = io.BytesIO()
        soundfile.write(out, samples * self.gain, rate, format="WAV", subtype="PCM_16")
        return out.getvalue()


def level_dbfs(samples: np.ndarray, rate: int) -> float:
    """Return the level of (T,) or (T, channels) in dB of full scale: the RMS without pauses.

    Pauses are found by the gates of ITU-R BS.1770, without its frequency weighting.
    """
    energy = np.square(samples, dtype=np.float64)
    energy = energy.mean(1) if energy.ndim == 2 else energy
    size, hop = min(len(energy), round(BLOCK_S * rate)), round(HOP_S * rate)
    blocks = np.array([energy[i : i + size].mean() for i in range(0, len(energy) - size + 1, hop)])
    loud = blocks[blocks > 10 ** (SILENT_DBFS / 10)]
    if not len(loud):
        return -np.inf
    gated = loud[loud > loud.mean() / 10 ** (RELATIVE_GATE_DB / 10)]
    return float(10 * np.log10(gated.mean()))


def match_levels(sounds: Sequence[RatedSound]) -> list[float]:
    """Return the gain of each sound that brings all to one level; silence has gain 1.

    The level is the highest one up to `TARGET_DBFS` at which no sound clips.

    Raises:
        ValueError: a file is not a sound, or has samples that are not finite.
    """
    levels, peaks = [], []
    for sound in sounds:
        try:
            samples, rate = soundfile.read(sound.file, dtype="float32")
        except (soundfile.LibsndfileError, OSError) as error:
            raise ValueError(f"{sound.file} cannot be read as sound: {error}") from error
        if not len(samples) or not np.isfinite(samples).all():
            raise ValueError(f"{sound.file}: no samples, or samples that are not finite")
        levels.append(level_dbfs(samples, rate))
        peaks.append(float(np.abs(samples).max()))
    loud = [n for n, level in enumerate(levels) if level > -np.inf]
    room = [levels[n] + 20 * np.log10(MAX_PEAK / peaks[n]) for n in loud]
    target = min([TARGET_DBFS, *room])
    return [10 ** ((target - level) / 20) if level > -np.inf else 1.0 for level in levels]


def read_folder(folder: Path) -> list[RatedSound]:
    """Return the sounds of a folder.

    Raises:
        ValueError: the folder is of neither kind, a column or file is missing, or a system lacks a sound.
    """
    if (folder / "manifest.csv").is_file():
        sounds = _read_manifest(folder)
    elif (folder / "results.json").is_file() and (folder / "queries.csv").is_file():
        sounds = _read_evaluation(folder)
    else:
        columns = ", ".join(COLUMNS)
        raise ValueError(
            f"{folder} has neither a manifest.csv ({columns}) nor results of `clipsynth evaluate`"
        )
    queries: Mapping[str, set[str]] = defaultdict(set)
    for sound in sounds:
        queries[sound.system].add(sound.query)
    every = set().union(*queries.values())
    for system, answered in queries.items():
        if missing := sorted(every - answered):
            count = f"{len(missing)} queries have none"
            raise ValueError(f"{folder}: {system} has no sound for {missing[0]!r} ({count})")
    if lost := [s.file for s in sounds if not s.file.is_file()]:
        raise ValueError(f"{folder}: {lost[0]} is not there ({len(lost)} of {len(sounds)} files)")
    return sounds


def _read_manifest(folder: Path) -> list[RatedSound]:
    rows = read_csv(folder / "manifest.csv", COLUMNS)
    return [RatedSound(row["system"], row["query"], folder / row["file"]) for row in rows]


def _read_evaluation(folder: Path) -> list[RatedSound]:
    """Return the answers of all systems with text queries to the first text query of each clip."""
    systems: Mapping[str, str] = json.loads((folder / "results.json").read_text())["settings"]["systems"]
    columns = ("kind", "clip", "seed", "label", "prompt", "duration_s")
    first: dict[str, dict[str, str]] = {}
    for row in read_csv(folder / "queries.csv", columns):
        if row["kind"] == "text":
            first.setdefault(row["clip"], row)
    samples = []
    for row in first.values():
        query = Query(row["label"], row["clip"], row["prompt"], duration_s=float(row["duration_s"]))
        samples.append(Sample(query, int(row["seed"])))
    sounds = []
    for system, version in systems.items():
        made = folder / "sounds" / version
        # Some systems, for example a reconstruction, have no text queries.
        if not any(made.glob("text-*.flac")):
            continue
        for sample in samples:
            files = [made / f"{s.stem}.flac" for s in (sample, once(sample))]
            file = next((f for f in files if f.is_file()), files[0])
            sounds.append(RatedSound(system, str(sample.query.prompt), file))
    if not sounds:
        raise ValueError(f"{folder} has no sounds of text queries")
    return sounds


def choose(sounds: Sequence[RatedSound], queries: int, seed: int) -> list[RatedSound]:
    """Return the sounds of `queries` random queries, one per query and system."""
    every = sorted({sound.query for sound in sounds})
    chosen = set(random.Random(seed).sample(every, min(queries, len(every))))
    first = {(s.system, s.query): s for s in reversed(sounds) if s.query in chosen}
    return [s for s in sounds if first.get((s.system, s.query)) is s]


def make_items(sounds: Sequence[RatedSound], seed: int) -> list[Item]:
    """Return an item for each sound, at one level.

    Raises:
        ValueError: a file is not a sound.
    """
    items = []
    for sound, gain in zip(sounds, match_levels(sounds), strict=True):
        content = hashlib.sha256(sound.file.read_bytes()).hexdigest()
        blind = hashlib.sha256(f"{seed}|{sound.system}|{sound.query}|{content}".encode()).hexdigest()[:16]
        items.append(Item(blind, sound.system, sound.query, sound.file, gain))
    return items


def order(items: Sequence[Item], seed: int, rater: str) -> list[Item]:
    """Return the items in this rater's order, the same at every call."""
    shuffled = sorted(items, key=lambda item: item.id)
    random.Random(f"{seed}|{rater}").shuffle(shuffled)
    return shuffled
