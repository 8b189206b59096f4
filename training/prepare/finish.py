"""Pack the clips of videos into shards, and write index, statistics and report."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.media.shards import END, ShardReader
from training.data.index import open_index
from training.prepare import folder as files
from training.prepare.duplicates import near_duplicates
from training.prepare.folder import PrepareOptions, VideoRecord
from training.prepare.sources import PrepareError
from training.prepare.statistics import Sums

STATISTICS = "statistics.safetensors"
COPIED = 1 << 22  # bytes at a time
STILL = 0.001  # motion below it is a still image: a quarter of a grey level


@dataclass(frozen=True)
class Filters:
    """Clips that training leaves out: with less motion, if it is known; with a larger share of speech."""

    min_motion: float = 0.0
    max_speech: float = 1.0

    def reason(self, clip: Mapping[str, Any]) -> str | None:
        """Return the filter that leaves a clip out, or None."""
        if clip["motion"] is not None and clip["motion"] < self.min_motion:
            return "min_motion"
        return "max_speech" if clip.get("speech", 0.0) > self.max_speech else None


@dataclass(frozen=True)
class Place:
    """Where the clips of a video lie: `offset` of its members in a file, and the line about them."""

    path: Path
    offset: int
    line: dict[str, Any]


class Finisher:
    """Packs the videos of `records` from prepared folders into the shards of `out`.

    A video's clips come from the first folder that has them. Videos with the same content are one video,
    under the first of their names.
    """

    def __init__(
        self,
        out: Path,
        folders: Sequence[Path],
        records: Mapping[str, VideoRecord],
        options: PrepareOptions,
        filters: Filters,
    ) -> None:
        self._out, self._folders, self._shards, self._filters = out, folders, options.shards, filters
        self.records = dict(sorted(records.items()))
        self._video: dict[str, VideoRecord] = {}
        self._same: dict[str, str] = {}
        for name, record in self.records.items():
            if record.skipped is None:
                first = self._video.setdefault(record.id, record)
                if first is not record:
                    self._same[name] = first.video
        self._parts: dict[int, list[str]] = defaultdict(list)
        for path in (out / "work").glob("*/*.part"):
            if path.stem in self._video:
                self._parts[files.shard_of(path.stem, self._shards)].append(path.stem)

    def _places(self, shard: int) -> list[Place]:
        """Return the videos of a shard in order of their ids."""
        found: dict[str, Place] = {}
        for folder in self._folders:
            header, videos = files.read_sidecar(folder, shard)
            for line in videos:
                if line["id"] in self._video:
                    place = Place(folder / "shards" / header["shard"], line["offset"], line)
                    found.setdefault(line["id"], place)
        for identity in self._parts.get(shard, []):
            if identity not in found:
                path = files.part_path(self._out, identity)
                found[identity] = Place(path, 0, files.read_part(path))
        return [place for _, place in sorted(found.items())]

    def finish(self, text_mean: torch.Tensor, known: dict[str, Any], *, may_be_empty: bool = False) -> None:
        """Write everything that training reads; `known` is what else the report says.

        Needs 64 bytes per clip.

        Raises:
            PrepareError: there are no clips, and there must be; the report names the reasons.
        """
        prints, dev, used_clips = bytearray(), bytearray(), bytearray()
        report = _Report(known, self.records, self._same)
        for shard in range(self._shards):
            for place in self._places(shard):
                for clip in place.line["clips"]:
                    used_clips.append(report.filter(clip, self._filters))
                    dev.append(bool(self._video[place.line["id"]].dev))
                    if used_clips[-1]:
                        prints += bytes.fromhex(clip["fingerprint"])
        kept = np.frombuffer(used_clips, bool).copy()
        repeats = np.flatnonzero(kept)[list(near_duplicates(np.frombuffer(bytes(prints), np.uint16)))]
        kept[repeats] = False
        repeated = set(repeats.tolist())
        # Statistics are those of the training clips, if there are any.
        counted = kept & (np.frombuffer(bytes(dev), np.uint8) == 0)
        counted = counted if counted.any() else kept
        sums, used = Sums(), set[str]()
        with (self._out / "index.tmp").open("w") as index:
            start = 0
            for shard in range(self._shards):
                places = self._places(shard)
                if not places:
                    continue
                end = start + sum(len(place.line["clips"]) for place in places)
                header, videos = self._pack(shard, places, counted[start:end])
                used.update((header["shard"], files.sidecar(self._out, shard).name))
                sums += Sums(header["sums"])
                for line in videos:
                    record = self._video[line["id"]]
                    if line["damaged"]:
                        report.damaged[record.video] = line["damaged"]
                    for clip in line["clips"]:
                        start += 1
                        if start - 1 in repeated:
                            report.near_duplicates.append(f"{record.video} at {clip['start_s']:g} s")
                        if not kept[start - 1]:
                            continue
                        report.clips, report.seconds = report.clips + 1, report.seconds + clip["duration_s"]
                        index.write(json.dumps(_index_line(clip, line["offset"], record, header)) + "\n")
        report.write(self._out / "report.json")
        if not report.clips and not may_be_empty:
            (self._out / "index.tmp").unlink()
            reason = next(iter(report.skipped.values()), "every clip is filtered or repeats another")
            raise PrepareError(
                f"none of the videos is usable; first reason: {reason}; all: {self._out / 'report.json'}"
            )
        if report.clips:
            save_file(sums.tensors() | {"text_mean": text_mean}, self._out / "statistics.tmp")
            os.replace(self._out / "statistics.tmp", self._out / STATISTICS)
        os.replace(self._out / "index.tmp", self._out / "index.jsonl")
        if report.clips:
            # Writes the columns that training opens.
            open_index(self._out, correspondence=False)
        files.write_atomic(self._out / "videos.jsonl", "".join(map(files.record_line, self.records.values())))
        shutil.rmtree(self._out / "work", ignore_errors=True)
        for path in (self._out / "shards").iterdir():
            if path.name not in used:
                path.unlink()

    def _pack(
        self, shard: int, places: list[Place], counted: np.ndarray
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Write a shard unless it is there; return its header and the lines about its videos."""
        header, videos = files.read_sidecar(self._out, shard)
        ids = [place.line["id"] for place in places]
        changed = header.get("ids") != ids
        if changed:
            header, videos = _write_shard(self._out / "shards", shard, places), []
            offset = 0
            for place in places:
                videos.append(place.line | {"offset": offset})
                offset += place.line["bytes"]
        clips = [(clip, line["offset"]) for line in videos for clip in line["clips"]]
        chosen = [clip for clip, use in zip(clips, counted, strict=True) if use]
        digest = hashlib.sha256("".join(clip["key"] for clip, _ in chosen).encode()).hexdigest()
        if changed or header["summed"] != digest:
            header |= {"summed": digest, "sums": _sums(self._out, header["shard"], chosen).to_json()}
            lines = [header, *videos]
            files.write_atomic(
                files.sidecar(self._out, shard), "".join(json.dumps(line) + "\n" for line in lines)
            )
        for identity in self._parts.pop(shard, []):
            files.part_path(self._out, identity).unlink(missing_ok=True)
        return header, videos


def _write_shard(folder: Path, shard: int, places: list[Place]) -> dict[str, Any]:
    """Copy the members of videos into a new shard, named after its content; return its header."""
    temporary = folder / f"{shard:06d}.tmp"
    digest = hashlib.sha256()
    with temporary.open("wb") as file:

        def put(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        for place in places:
            with place.path.open("rb") as source:
                source.seek(place.offset)
                left = place.line["bytes"]
                while left:
                    data = source.read(min(left, COPIED))
                    if not data:
                        raise PrepareError(f"{place.path} is cut off; delete it and prepare again")
                    put(data)
                    left -= len(data)
        put(END)
        size = file.tell()
    name = f"{shard:06d}-{digest.hexdigest()[:16]}.tar"
    os.replace(temporary, folder / name)
    ids = [place.line["id"] for place in places]
    return {"shard": name, "sha256": digest.hexdigest(), "bytes": size, "ids": ids}


def _sums(out: Path, shard: str, clips: list[tuple[dict[str, Any], int]]) -> Sums:
    reader, sums = ShardReader(out / "shards"), Sums()
    for clip, start in clips:
        mel, embeds = (
            reader.read(shard, start + offset, size)
            for offset, size in (clip["arrays"][name] for name in ("mel", "embeds"))
        )
        sums.add(mel, embeds, clip["gain"])
    return sums


def _index_line(
    clip: dict[str, Any], start: int, record: VideoRecord, header: dict[str, Any]
) -> dict[str, Any]:
    """Return the line of a clip that training reads."""
    arrays = {name: (start + offset, size) for name, (offset, size) in clip["arrays"].items()}
    line = {"key": clip["key"], "video": record.video, "dev": record.dev, **clip}
    del line["fingerprint"]
    return line | {"shard": header["shard"], "arrays": arrays}


@dataclass
class _Report:
    known: dict[str, Any]
    records: Mapping[str, VideoRecord]
    same: Mapping[str, str]
    clips: int = 0
    seconds: float = 0.0
    damaged: dict[str, list[str]] = field(default_factory=dict)
    near_duplicates: list[str] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)
    # Of all clips: how many there are, of how many the motion is known, how many of these are still, and the
    # sum of their shares of speech.
    found: int = 0
    seen: int = 0
    still: int = 0
    speech: float | None = None

    @property
    def skipped(self) -> dict[str, str]:
        """{video: reason} of videos without clips."""
        own = {name: record.skipped for name, record in self.records.items() if record.skipped}
        return dict(sorted((self.known.get("skipped", {}) | own).items()))

    def filter(self, clip: Mapping[str, Any], filters: Filters) -> bool:
        """Count a clip, and return whether training uses it."""
        self.found += 1
        if clip["motion"] is not None:
            self.seen, self.still = self.seen + 1, self.still + (clip["motion"] < STILL)
        if "speech" in clip:
            self.speech = (self.speech or 0.0) + clip["speech"]
        reason = filters.reason(clip)
        if reason is not None:
            self.filtered[reason] += 1
        return reason is None

    def write(self, path: Path) -> None:
        values = {
            "clips": self.clips,
            "hours": round(self.seconds / 3600, 3),
            "still_share": round(self.still / self.seen, 4) if self.seen else None,
            "speech_share": None if self.speech is None else round(self.speech / self.found, 4),
            "filtered": dict(self.filtered),
            "skipped": self.skipped,
            "damaged": dict(sorted(self.damaged.items())),
        }
        others = self.known | {"same_file": self.same, "near_duplicates": self.near_duplicates} | values
        files.write_atomic(path, json.dumps(values | dict(sorted(others.items())), indent=2) + "\n")
