"""Open the index of a prepared folder: arrays for what training reads of each clip, lines on demand.

`columns.safetensors` beside `index.jsonl` holds the arrays. It is made again when the index or the
correspondence changes.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.bundle import file_sha256

INDEX, CORRESPONDENCE, COLUMNS = "index.jsonl", "agreement.json", "columns.safetensors"
FORMAT = "1"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayPlace:
    """Where one array of each clip lies: number of its shard, offset and size (N,); size 0: it has none."""

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray


class ClipIndex:
    """The lines of an index as columns over all clips (N,).

    Attributes:
        dev: whether a clip is held out.
        duration_s: length of a clip.
        correspondence: quantile of its correspondence; NaN without a score.
        attributes: measured values (N, A) under `attribute_names`; NaN where a clip has none.
        places: by name of the array.
        shards: names of the shards.
        hashes: sha256 of the files that the columns come from.
    """

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, np.ndarray],
        known: Mapping[str, str],
        files: tuple[str, ...],
    ) -> None:
        self._path, self._columns = folder / INDEX, columns
        self.dev, self.duration_s = columns["dev"], columns["duration_s"]
        self.attributes, self.correspondence = columns["attributes"], columns["correspondence"]
        if CORRESPONDENCE not in files:
            self.correspondence = np.full(len(self.dev), math.nan)
        self.attribute_names, self.shards = json.loads(known["attributes"]), json.loads(known["shards"])
        self.places = {
            name: ArrayPlace(*(columns[f"{name}.{field}"] for field in ("shard", "offset", "size")))
            for name in json.loads(known["arrays"])
        }
        self.hashes = {name: known[name] for name in files}

    def __len__(self) -> int:
        return len(self.dev)

    def lines(self, rows: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the whole lines of clips."""
        # Opened each time: safe for several threads and after a fork.
        with self._path.open("rb") as file:
            for row in rows:
                first, after = self._columns["line"][row : row + 2].tolist()
                file.seek(first)
                yield _parsed(self._path, row, file.read(after - first))


def open_index(folder: Path, *, correspondence: bool = True) -> ClipIndex:
    """Open the index of a prepared folder, by default with the correspondence of its clips if it is known.

    Raises:
        ValueError: the index or the correspondence is damaged, or they do not belong together.
    """
    scored = correspondence and (folder / CORRESPONDENCE).is_file()
    files = (INDEX, CORRESPONDENCE) if scored else (INDEX,)
    hashes = {name: file_sha256(folder / name) for name in files}
    path = folder / COLUMNS
    if path.is_file():
        try:
            with safe_open(path, "np") as file:
                known = file.metadata() or {}
                if known.get("format") == FORMAT and hashes.items() <= known.items():
                    columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    return ClipIndex(folder, columns, known, files)
        except SafetensorError:
            logger.warning("%s is damaged and made again", path)
    return _make(folder, hashes)


def _make(folder: Path, hashes: Mapping[str, str]) -> ClipIndex:
    """Read every line, and write the columns if the folder allows it."""
    scores = _scores(folder, hashes[INDEX]) if CORRESPONDENCE in hashes else {}
    places: dict[str, list[tuple[int, int, int]]] = {}
    shards: dict[str, int] = {}
    names: dict[str, int] = {}
    rows: list[tuple[bool, float, float]] = []
    measured: list[dict[str, float]] = []
    starts = [0]
    for n, text in enumerate(_texts(folder / INDEX)):
        line = _parsed(folder / INDEX, n, text)
        starts.append(starts[-1] + len(text))
        try:
            rows.append((line["dev"], line["duration_s"], scores.get(line["key"], math.nan)))
            measured.append(line.get("attributes", {}))
            other = line.get("shards", {})
            for name, (offset, size) in line["arrays"].items():
                shard = shards.setdefault(other.get(name, line["shard"]), len(shards))
                place = places.setdefault(name, [])
                place.extend([(0, 0, 0)] * (n - len(place)))
                place.append((shard, offset, size))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder / INDEX, n, repr(error)) from error
        for name in measured[-1]:
            names.setdefault(name, len(names))
    if not rows:
        raise ValueError(f"{folder / INDEX} is empty; prepare again")
    columns = {
        "line": np.array(starts, np.int64),
        "dev": np.array([row[0] for row in rows]),
        "duration_s": np.array([row[1] for row in rows]),
        "correspondence": np.array([row[2] for row in rows]),
        "attributes": np.array([[m.get(name, math.nan) for name in names] for m in measured], np.float64),
    }
    for name, place in places.items():
        place.extend([(0, 0, 0)] * (len(rows) - len(place)))
        table = np.array(place, np.int64)
        columns |= {f"{name}.shard": table[:, 0].astype(np.int32), f"{name}.offset": table[:, 1].copy()}
        columns[f"{name}.size"] = table[:, 2].astype(np.int32)
    known = {
        "format": FORMAT,
        "attributes": json.dumps(list(names)),
        "shards": json.dumps(list(shards)),
        "arrays": json.dumps(list(places)),
        **hashes,
    }
    temporary = folder / f"{COLUMNS}.{os.getpid()}"
    try:
        save_file(columns, temporary, known)
        os.replace(temporary, folder / COLUMNS)
    except (OSError, SafetensorError) as error:
        logger.info("%s is not kept (%s)", folder / COLUMNS, error)
        temporary.unlink(missing_ok=True)
    return ClipIndex(folder, columns, known, tuple(hashes))


def _texts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _parsed(path: Path, n: int, text: bytes) -> dict[str, Any]:
    try:
        line: dict[str, Any] = json.loads(text)
        return line
    except ValueError as error:
        raise _damaged(path, n, str(error)) from error


def _damaged(path: Path, n: int, reason: str) -> ValueError:
    return ValueError(f"{path}: line {n + 1} is damaged ({reason}); prepare again")


def _scores(folder: Path, index: str) -> dict[str, float]:
    """Return {key: quantile} of the correspondence of the index with this hash.

    Raises:
        ValueError: the file is damaged or belongs to another index.
    """
    path = folder / CORRESPONDENCE
    try:
        record = json.loads(path.read_text())
        belongs, scores = record["index"], {key: found[1] for key, found in record["clips"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); run: clipsynth correspondence {folder}") from error
    if belongs != index:
        raise ValueError(f"{path} belongs to other clips; run: clipsynth correspondence {folder}")
    return scores
