"""A folder of sounds made elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from evaluation.audio import check_sound, fingerprint, resample
from evaluation.clips import read_csv
from evaluation.interfaces import SAMPLE_RATE, Query, QueryKind, Sources, split_options

COLUMNS = ("file", "kind", "clip", "seed")


def read_audio(file: Path | io.BytesIO, name: str) -> np.ndarray:
    """Return the mean of a sound file's channels (T,) at `SAMPLE_RATE`.

    Raises:
        ValueError: not a sound file, or not finite; the message starts with `name`.
    """
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name} cannot be read as sound: {error}") from error
    return resample(check_sound(samples.mean(1), name), rate, SAMPLE_RATE)


class Folder:
    """Sounds made elsewhere. FOLDER/manifest.csv lists them in the columns file, kind, clip and seed.

    `clipsynth evaluate` writes its queries to queries.csv, with the same columns but `file`.
    """

    deterministic, generative = False, True

    def __init__(self, name: str, folder: Path, *, learned_from: str = "image") -> None:
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            raise ValueError(f"{folder} holds no {manifest.name} with the columns {', '.join(COLUMNS)}")
        rows = read_csv(manifest, COLUMNS)
        missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
        if missing:
            count = f"{len(missing)} of {len(rows)} files"
            raise ValueError(f"{manifest} names {missing[0]}, which is not there ({count})")
        rates = sorted({soundfile.info(folder / row["file"]).samplerate for row in rows})
        if len(rates) > 1:
            raise ValueError(f"{folder} mixes sample rates ({', '.join(map(str, rates))} Hz); use one")
        self.name, self.folder, self.training_query = name, folder, learned_from
        self.unlabeled = learned_from == "image"
        self.files = {(row["kind"], row["clip"], row["seed"]): folder / row["file"] for row in rows}
        self.kinds: frozenset[QueryKind] = frozenset(
            kind for kind in ("text", "image") if any(k == kind for k, _, _ in self.files)
        )
        stats = {row["file"]: (folder / row["file"]).stat() for row in rows}
        sizes = {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}
        self.version = fingerprint("folder", name, sizes, manifest.read_text())

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Folder:
        """Build from "FOLDER" or "FOLDER?learned_from=text"."""
        del sources
        place, options = split_options(argument, {"learned_from": str})
        return cls(name, Path(place), **options)

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        return [self._read(query, seed) for query, seed in zip(queries, seeds, strict=True)]

    def _read(self, query: Query, seed: int) -> np.ndarray:
        file = self.files.get((query.kind, query.clip, str(seed)))
        if file is None:
            raise ValueError(f"{self.folder}: no sound for the {query.kind} of {query.clip} with seed {seed}")
        return read_audio(file, str(file))
