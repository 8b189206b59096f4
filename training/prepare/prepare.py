"""Turn a folder of videos into shards of features, from frames and audio; texts only by `--captions`.

Run: clipsynth prepare VIDEOS OUT [--list MUSIC_solo_videos.json | --list vggsound.csv] [--captions CSV]
    [--workers N]

Writes `OUT/shards/NNNNNN.tar`, each with a `.jsonl` about its videos that marks the shard as complete. A
killed run continues after the complete shards and ends with the same bytes. One pass over the shards then
writes `index.jsonl` (without near-duplicates), `statistics.safetensors` and `report.json`.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.audio.attributes import measure
from models.audio.level import level
from models.audio.mel import MelSpectrogram
from models.bundle import file_sha256
from models.media.shards import ShardReader, member_offsets, write_shard
from models.media.video import VideoError
from models.networks.encoder import JointEncoder
from models.networks.load_encoder import load_encoder
from training.prepare.duplicates import fingerprint, near_duplicates
from training.prepare.process_pool import make_shards
from training.prepare.sources import PrepareError, Source, Sources, find_sources
from training.prepare.windows import Window, read_windows

MAX_NOTES = 5  # about one damaged video


@dataclass(frozen=True)
class PrepareOptions:
    """How to cut videos into clips; `clip_s` in seconds."""

    clip_s: float = 5.0
    frames_per_s: float = 1.0
    videos_per_shard: int = 64


def is_dev(origin: str) -> bool:
    """Return whether a video belongs to the tenth for dev, by the hash of its name."""
    return hashlib.sha256(os.fsencode(origin)).digest()[0] < 26


def prepare(
    videos: Path,
    out: Path,
    encoder: JointEncoder,
    *,
    options: PrepareOptions | None = None,
    listing: Path | None = None,
    captions: Path | None = None,
    workers: int = 0,
) -> Iterator[tuple[int, int]]:
    """Prepare `videos` into `out` or continue; yield (videos done, total) after each shard.

    Args:
        listing: the list of MUSIC or VGGSound; the report names the videos that the folder lacks.
        captions: CSV with columns file, caption (several rows per file allowed), for models that train on
            text.
        workers: number of processes; 0 uses this one.

    Raises:
        PrepareError: no videos, none usable, or `out` was started with other videos, options or another
            encoder.
    """
    options = options or PrepareOptions()
    found = find_sources(videos, listing)
    with locked(out):
        yield from _prepare(
            found, out, encoder, options, _read_captions(captions) if captions else {}, workers
        )


def _prepare(
    found: Sources,
    out: Path,
    encoder: JointEncoder,
    options: PrepareOptions,
    texts: dict[str, list[str]],
    workers: int,
) -> Iterator[tuple[int, int]]:
    sources = found.videos
    _claim(out, options, sources, texts)
    _keep_encoder(out, encoder)
    size = options.videos_per_shard
    batches = [(n, sources[i : i + size]) for n, i in enumerate(range(0, len(sources), size))]
    todo = {n: batch for n, batch in batches if not _sidecar(out, n).is_file()}
    done = len(sources) - sum(len(batch) for batch in todo.values())
    make = partial(_make_shard, out=out, options=options, texts=texts)
    made: Iterator[int]
    if workers == 0:
        made = (n for n, batch in todo.items() if make(n, batch, encoder=encoder) is None)
    else:
        made = make_shards(
            make,
            todo,
            workers=workers,
            notes=out / "shards",
            initializer=_start_worker,
            initargs=(out / "encoder",),
        )
    for n in made:
        done += len(todo[n])
        yield done, len(sources)
    yield len(sources), len(sources)
    _finish(out, len(batches), found, encoder)


_encoder: JointEncoder | None = None  # of a worker process


def _start_worker(encoder_folder: Path) -> None:
    global _encoder
    torch.set_num_threads(1)
    _encoder = load_encoder(encoder_folder)


def _sidecar(out: Path, n: int) -> Path:
    return out / "shards" / f"{n:06d}.jsonl"


def _make_shard(
    n: int,
    sources: list[Source],
    fatal: Collection[str] = (),
    note: Path | None = None,
    *,
    out: Path,
    options: PrepareOptions,
    texts: dict[str, list[str]],
    encoder: JointEncoder | None = None,
) -> None:
    """Write shard n, then its `.jsonl`: a line per clip, and one per video that failed, even in part.

    The file `note` names the present video; videos in `fatal` are skipped.
    """
    encoder = encoder or _encoder
    assert encoder is not None
    mel = MelSpectrogram()
    sample_rate = mel.config.sample_rate
    clips: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = []
    lines: list[dict[str, Any]] = []
    for source in sources:
        if source.name in fatal:
            lines.append({"video": source.name, "skipped": "its decoder crashes"})
            continue
        if note:
            note.write_bytes(os.fsencode(source.name))
        made, notes = len(clips), list[str]()
        try:
            for window in read_windows(
                source.path,
                sample_rate=sample_rate,
                frames_per_s=options.frames_per_s,
                clip_s=options.clip_s,
                notes=notes,
            ):
                key = f"{n:06d}{len(clips):06d}"
                metadata, arrays = _features(window, mel, encoder)
                metadata |= {"video": source.name, "dev": is_dev(source.origin)}
                if source.name in texts:
                    metadata["captions"] = texts[source.name]
                    arrays["captions"] = encoder.encode_text(texts[source.name]).half().cpu().numpy()
                clips.append((key, metadata, arrays))
                lines.append(
                    {"key": key, "fingerprint": fingerprint(arrays["mel"]).tobytes().hex(), **metadata}
                )
            if notes:
                lines.append({"video": source.name, "damaged": notes[:MAX_NOTES]})
        except Exception as error:
            # One video must not end the run.
            del clips[made:]
            lines = [line for line in lines if line["video"] != source.name]
            lines.append({"video": source.name, "skipped": reason(error)})
    shard = _sidecar(out, n).with_suffix(".tar")
    write_shard(shard, clips)
    offsets = member_offsets(shard)
    for line in lines:
        if "key" in line:
            line |= {"shard": shard.name, "arrays": offsets[line["key"]]}
    temporary = _sidecar(out, n).with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(temporary, _sidecar(out, n))
    if note:
        note.unlink()


def reason(error: Exception) -> str:
    """Return why a video is left out, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, VideoError) else f"{type(error).__name__}: {text}"


def _features(
    window: Window, mel: MelSpectrogram, encoder: JointEncoder
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the metadata and arrays of a window."""
    sample_rate = mel.config.sample_rate
    waveform, gain = level(window.waveform)
    metadata = {
        "start_s": round(window.start_s, 6),
        "duration_s": len(waveform) / sample_rate,
        "gain": gain,
        "frames_s": [round(frame.time_s, 3) for frame in window.frames],
        "attributes": measure(window.waveform, sample_rate),
    }
    embeds = encoder.encode_image([frame.image for frame in window.frames])
    arrays = {
        "waveform": (waveform * 32767).round().astype(np.int16),
        "mel": mel(torch.from_numpy(waveform)[None])[0].half().numpy(),
        "embeds": embeds.half().cpu().numpy(),
    }
    return metadata, arrays


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


def _claim(out: Path, options: PrepareOptions, sources: list[Source], texts: dict[str, list[str]]) -> None:
    """Record the inputs of `out`, or check that they are the recorded ones."""
    names = "\n".join(f"{source.name} {texts.get(source.name, '')}" for source in sources)
    wanted = asdict(options) | {"videos": hashlib.sha256(os.fsencode(names)).hexdigest()}
    record = out / "prepare.json"
    if record.is_file() and json.loads(record.read_text()) != wanted:
        raise PrepareError(f"{out} was started with other videos or options; use another folder")
    (out / "shards").mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(wanted, indent=2) + "\n")


def _keep_encoder(out: Path, encoder: JointEncoder) -> None:
    """Save the encoder in `out`, or check that it equals the saved one."""
    kept, temporary = out / "encoder", out / "encoder.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    encoder.save_pretrained(temporary)
    if not kept.is_dir():
        os.replace(temporary, kept)
        return
    same = _contents(temporary) == _contents(kept)
    shutil.rmtree(temporary)
    if not same:
        raise PrepareError(f"{out} was started with another encoder; use another folder")


def _contents(encoder_folder: Path) -> dict[str, Any]:
    """Return the settings of an encoder without library versions, and {file: hash} of its weights."""
    config = encoder_folder / JointEncoder.config_name
    settings = json.loads(config.read_text()) if config.is_file() else {}
    known: dict[str, Any] = {k: v for k, v in settings.items() if k == "_class_name" or not k.startswith("_")}
    return known | {p.name: file_sha256(p) for p in encoder_folder.iterdir() if p != config}


def _read_captions(path: Path) -> dict[str, list[str]]:
    """Return {file: captions} of a CSV."""
    texts: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
        for row in csv.DictReader(f):
            if not row.get("file") or not row.get("caption"):
                raise PrepareError(f"{path} needs the columns file and caption in every row; got {row}")
            texts.setdefault(row["file"], []).append(row["caption"])
    return texts


def _lines(out: Path, num_shards: int) -> Iterator[dict[str, Any]]:
    for n in range(num_shards):
        with _sidecar(out, n).open() as f:
            yield from map(json.loads, f)


def _finish(out: Path, num_shards: int, found: Sources, encoder: JointEncoder) -> None:
    """Write the index, the statistics of the training clips and the report; needs 64 bytes per clip."""
    prints = bytearray()
    for line in _lines(out, num_shards):
        prints += bytes.fromhex(line.get("fingerprint", ""))
    repeats = near_duplicates(np.frombuffer(bytes(prints), np.uint16))
    train, dev = _Statistics(), _Statistics()
    reader = ShardReader(out / "shards")
    skipped = dict(found.skipped)
    damaged: dict[str, list[str]] = {}
    dropped: list[str] = []
    clips, seconds = 0, 0.0
    temporary = out / "index.tmp"
    with temporary.open("w") as index:
        number = -1
        for line in _lines(out, num_shards):
            if "skipped" in line:
                skipped[line["video"]] = line["skipped"]
                continue
            if "damaged" in line:
                damaged[line["video"]] = line["damaged"]
                continue
            number += 1
            if number in repeats:
                dropped.append(f"{line['video']} at {line['start_s']:g} s")
                continue
            clips, seconds = clips + 1, seconds + line["duration_s"]
            mel, embeds = (reader.read(line["shard"], *line["arrays"][name]) for name in ("mel", "embeds"))
            (dev if line["dev"] else train).add(mel, embeds, line["gain"])
            del line["fingerprint"]
            index.write(json.dumps(line) + "\n")
    report = {
        "clips": clips,
        "hours": round(seconds / 3600, 3),
        "skipped": skipped,
        "damaged": damaged,
        "near_duplicates": dropped,
        "missing": found.missing,
        "ignored": found.ignored,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if not clips:
        temporary.unlink()
        reason = next(iter(skipped.values()), "every clip repeats another")
        raise PrepareError(
            f"none of the videos is usable; first reason: {reason}; all: {out / 'report.json'}"
        )
    statistics = (train if train.clips else dev).tensors()
    text_mean = encoder.class_anchors.mean(0).cpu()  # centres texts at request time
    save_file(statistics | {"text_mean": text_mean}, out / "statistics.safetensors")
    os.replace(temporary, out / "index.jsonl")


class _Statistics:
    """Accumulate mean and deviation of mels per band, mean of embeddings, and mean log gain."""

    def __init__(self) -> None:
        self.frames, self.rows, self.clips = 0, 0, 0
        self.mel: Any = 0.0
        self.mel_squared: Any = 0.0
        self.embeds: Any = 0.0
        self.log_gain = 0.0

    def add(self, mel: np.ndarray, embeds: np.ndarray, gain: float) -> None:
        x = mel.astype(np.float64)
        self.frames, self.rows, self.clips = self.frames + len(x), self.rows + len(embeds), self.clips + 1
        self.mel, self.mel_squared = self.mel + x.sum(0), self.mel_squared + (x**2).sum(0)
        self.embeds = self.embeds + embeds.astype(np.float64).sum(0)
        self.log_gain += float(np.log(gain))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return float32 `mel_mean`, `mel_std` (M,), `image_mean` (D,) and `gain` ()."""
        mean = self.mel / max(self.frames, 1)
        values = {
            "mel_mean": mean,
            "mel_std": np.sqrt(np.maximum(self.mel_squared / max(self.frames, 1) - mean**2, 1e-6)),
            "image_mean": self.embeds / max(self.rows, 1),
            "gain": np.exp(self.log_gain / max(self.clips, 1)),
        }
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
