"""The files of a prepared folder, and who may write them.

prepare.json            options; the folder keeps to them
encoder/                the encoder of its embeddings
videos.jsonl            a `VideoRecord` per video: its file's state and hash, and whether it is in dev
work/                   videos prepared since the shards were packed, and their records
shards/NNNNNN.jsonl     a shard's name, hash and sums, then a line per video with its clips
shards/NNNNNN-HASH.tar  the arrays of the clips; a new content has a new name
index.jsonl             a line per clip that training reads
statistics.safetensors, report.json
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.bundle import file_sha256
from models.networks.encoder import JointEncoder
from training.prepare.sources import PrepareError

FORMAT = 2
NEEDED = ("state", "sha256", "dev")  # fields of a record that are always written


@dataclass(frozen=True)
class PrepareOptions:
    """What a prepared folder keeps to.

    Attributes:
        clip_s: length of clips in seconds.
        shards: number of shards; a video's shard follows from it.
        speech: whether the share of speech is measured.
    """

    clip_s: float = 5.0
    frames_per_s: float = 1.0
    shards: int = 1024
    speech: bool = False


@dataclass(frozen=True)
class VideoRecord:
    """A video that was prepared or skipped.

    Attributes:
        state: size and times of its file.
        sha256: of its content; "" if it could not be read.
        captions_id: the id of its clips, if captions belong to them.
        skipped: why it has no clips, or None.
        retry: the reason may not hold next time (limits, crashes).
        dev: whether it belongs to dev; kept once given.
    """

    video: str
    state: tuple[int, ...]
    sha256: str
    captions_id: str | None = None
    skipped: str | None = None
    retry: bool = False
    dev: bool | None = None

    @property
    def id(self) -> str:
        return self.captions_id or video_id(self.sha256)


def video_id(sha256: str, captions: Iterable[str] = ()) -> str:
    """Return the id of a video's clips: they follow from its content and captions."""
    texts = list(captions)
    return hashlib.sha256((sha256 + json.dumps(texts)).encode()).hexdigest()[:32] if texts else sha256[:32]


def shard_of(identity: str, shards: int) -> int:
    """Return the number of a video's shard, in the order of ids."""
    return int(identity[:8], 16) * shards >> 32


def part_path(out: Path, identity: str) -> Path:
    """Return the file of a video that no shard holds yet: a tar, a line of JSON and its length."""
    return out / "work" / identity[:2] / f"{identity}.part"


def read_part(path: Path) -> dict[str, Any]:
    """Return the line of a video's own file."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(8), "big")
        file.seek(-8 - size, os.SEEK_END)
        line: dict[str, Any] = json.loads(file.read(size))
    return line


def sidecar(out: Path, shard: int) -> Path:
    """Return the file about a shard."""
    return out / "shards" / f"{shard:06d}.jsonl"


def read_sidecar(out: Path, shard: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what is known of a shard and a line per video, both empty if the shard is missing."""
    path = sidecar(out, shard)
    if not path.is_file():
        return {}, []
    with path.open() as file:
        header, *videos = map(json.loads, file)
    return (header, videos) if (path.parent / header["shard"]).is_file() else ({}, [])


def prepared_ids(out: Path) -> set[str]:
    """Return the ids of all videos that have clips in a folder."""
    ids = {path.stem for path in (out / "work").glob("*/*.part")}
    for path in (out / "shards").glob("*.jsonl"):
        with path.open() as file:
            header = json.loads(file.readline())
        if (path.parent / header["shard"]).is_file():
            ids.update(header["ids"])
    return ids


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a prepared folder.

    Raises:
        PrepareError: another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"another process prepares {out}; wait for it or use another folder") from None
        yield


def claim(out: Path, options: PrepareOptions, part: str | None) -> None:
    """Record the options of `out`, or check that they are the recorded ones.

    Raises:
        PrepareError: `out` was started with other options, or before this format.
    """
    wanted = {"format": FORMAT, **asdict(options)} | ({"part": part} if part else {})
    path = out / "prepare.json"
    if not path.is_file():
        (out / "shards").mkdir(exist_ok=True)
        write_atomic(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    if "format" not in found:
        raise PrepareError(
            f"{out} was prepared by an earlier version: training reads it, but to change it prepare its "
            "videos again into another folder"
        )
    different = [
        f"{name} {found.get(name)}, not {wanted.get(name)}"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    if different:
        raise PrepareError(f"{out} was started with {'; '.join(different)}; use another folder")


def read_options(out: Path) -> tuple[PrepareOptions, str | None]:
    """Return the options of a prepared folder, and which part it is.

    Raises:
        PrepareError: it is no prepared folder, or one of an earlier version.
    """
    path = out / "prepare.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.pop("format", None) != FORMAT:
        raise PrepareError(f"{out} is no folder that this version prepared; prepare its videos again")
    part = found.pop("part", None)
    return PrepareOptions(**found), part


def keep_encoder(out: Path, save: Callable[[Path], object]) -> None:
    """Save an encoder in `out`, or check that it is the saved one.

    Args:
        save: writes the encoder to a new folder.

    Raises:
        PrepareError: `out` has another encoder.
    """
    kept, temporary = out / "encoder", out / "encoder.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save(temporary)
    if not kept.is_dir():
        os.replace(temporary, kept)
        return
    same = encoder_contents(temporary) == encoder_contents(kept)
    shutil.rmtree(temporary)
    if not same:
        raise PrepareError(f"{out} was started with another encoder; use another folder")


def encoder_contents(folder: Path) -> dict[str, Any]:
    """Return the settings of an encoder without library versions, and {file: hash} of its weights."""
    config = folder / JointEncoder.config_name
    settings = json.loads(config.read_text()) if config.is_file() else {}
    known: dict[str, Any] = {k: v for k, v in settings.items() if k == "_class_name" or not k.startswith("_")}
    return known | {p.name: file_sha256(p) for p in folder.iterdir() if p != config}


def journal(out: Path) -> Path:
    """Return the file of the records of an unfinished run."""
    return out / "work" / "records.jsonl"


def append_record(out: Path, record: VideoRecord) -> None:
    """Note a video that is done."""
    journal(out).parent.mkdir(exist_ok=True)
    with journal(out).open("a") as file:
        file.write(record_line(record))


def read_records(path: Path) -> dict[str, VideoRecord]:
    """Return the record of each video in a file, which may be missing."""
    if not path.is_file():
        return {}
    with path.open() as file:
        # A killed run may leave half a line at the end.
        lines = [json.loads(text) for text in file if text.endswith("\n")]
    return {line["video"]: VideoRecord(**line | {"state": tuple(line["state"])}) for line in lines}


def record_line(record: VideoRecord) -> str:
    """Return a record as a line of JSON; fields at their default are left out."""
    return json.dumps({k: v for k, v in vars(record).items() if v or k in NEEDED}) + "\n"


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that it is either the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
