"""Prepare one video: its windows become clips, in a file of their own that the shards are packed from."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from models.audio.attributes import measure
from models.audio.level import level
from models.audio.mel import MelSpectrogram
from models.media.shards import write_members
from models.networks.encoder import JointEncoder
from training.prepare.duplicates import fingerprint
from training.prepare.folder import PrepareOptions, VideoRecord, part_path, video_id
from training.prepare.windows import Ending, Opened, PlainWindow, decode_windows

MAX_NOTES = 5  # about one damaged video

# stream(generator function, *its arguments): the items, from a child process with limits.
Stream = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class Task:
    """A video to prepare.

    Attributes:
        path: as a string; the name need not be UTF-8.
        known: hashes of videos of the same size that are prepared with these captions.
    """

    name: str
    path: str
    captions: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class VideoPreparer:
    """Prepares videos one at a time into files below `out`."""

    def __init__(
        self,
        out: Path,
        options: PrepareOptions,
        encoder: JointEncoder,
        stream: Stream | None = None,
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Prepare videos.

        Args:
            stream: decodes in a process with limits; None decodes in this one.
            encode: returns the embeddings of pixels; None computes them with `encoder`.
        """
        self._out, self._options, self._encoder, self._stream = out, options, encoder, stream
        self._encode = encode or partial(encode_batches, encoder, size=None)
        self._mel = MelSpectrogram()

    def __call__(self, task: Task) -> VideoRecord:
        """Prepare a video and return its record; any error is its reason."""
        fields: dict[str, Any] = {"video": task.name, "state": (), "sha256": ""}
        try:
            fields["state"] = file_state(Path(task.path))
            for digest in self._prepare(task):
                captions_id = video_id(digest, task.captions) if task.captions else None
                fields |= {"sha256": digest, "captions_id": captions_id}
        except VideoSkipped as error:
            fields["skipped"] = str(error)
        except Exception as error:
            # One video must not end the run.
            fields |= {"skipped": " ".join(f"{type(error).__name__}: {error}".split()), "retry": True}
        return VideoRecord(**fields)

    def _prepare(self, task: Task) -> Iterator[str]:
        """Yield the hash of the video, and write its file."""
        items = self._items(task)
        opened = next(items)
        assert isinstance(opened, Opened)
        yield opened.sha256
        if opened.sha256 in task.known:
            return
        identity = video_id(opened.sha256, task.captions)
        path = part_path(self._out, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                line = self._write_clips(file, items, identity, task.captions)
                size = file.tell()
                text = json.dumps(line | {"bytes": size}).encode()
                file.write(text + len(text).to_bytes(8, "big"))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _items(self, task: Task) -> Iterator[Opened | PlainWindow | Ending]:
        options = self._options
        arguments = (
            task.path,
            task.known,
            self._mel.config.sample_rate,
            options.frames_per_s,
            options.clip_s,
        )
        if self._stream is None:
            return decode_windows(*arguments)
        return self._stream(decode_windows, *arguments)

    def _write_clips(
        self,
        file: BinaryIO,
        items: Iterator[Opened | PlainWindow | Ending],
        identity: str,
        captions: tuple[str, ...],
    ) -> dict[str, Any]:
        """Write the clips of a video to a tar file and return the line about it."""
        clips: list[dict[str, Any]] = []
        notes: list[str] = []
        for item in items:
            if isinstance(item, Ending):
                if item.error:
                    raise VideoSkipped(item.error)
                notes += item.notes
            elif isinstance(item, PlainWindow):
                metadata, arrays = self._features(item)
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    notes.append(f"features that are not finite from {item.start_s:g} s on")
                    continue
                if captions:
                    metadata["captions"] = list(captions)
                    arrays["captions"] = self._encoder.encode_text(list(captions)).half().cpu().numpy()
                key = f"{identity[:16]}-{len(clips):04d}"
                places = write_members(file, key, metadata, arrays)
                print_ = fingerprint(arrays["mel"]).tobytes().hex()
                clips.append({"key": key, "fingerprint": print_, **metadata, "arrays": places})
        if not clips:
            raise VideoSkipped(notes[0] if notes else "no usable window")
        return {"id": identity, "damaged": notes[:MAX_NOTES], "clips": clips}

    def _features(self, window: PlainWindow) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the metadata and arrays of a window."""
        sample_rate = self._mel.config.sample_rate
        waveform, gain = level(window.waveform)
        metadata = {
            "start_s": round(window.start_s, 6),
            "duration_s": len(waveform) / sample_rate,
            "gain": gain,
            "frames_s": window.frames_s,
            "attributes": measure(window.waveform, sample_rate),
            "motion": motion(window.images),
        }
        if self._options.speech:
            metadata["speech"] = speech_share(waveform, sample_rate)
        pixels = self._encoder.pixels([Image.fromarray(image) for image in window.images])
        arrays = {
            "waveform": (waveform * 32767).round().astype(np.int16),
            "mel": self._mel(torch.from_numpy(waveform)[None])[0].half().numpy(),
            "embeds": self._encode(pixels.numpy()),
        }
        return metadata, arrays


def encode_batches(encoder: JointEncoder, pixels: np.ndarray, *, size: int | None) -> np.ndarray:
    """Return the embeddings (N, D) fp16 of pixels (N, 3, S, S).

    Args:
        size: rows per call, the last call padded, so that a row's kernel does not depend on N; None for one
            call.
    """
    rows = []
    for start in range(0, len(pixels), size or len(pixels)):
        part = torch.from_numpy(pixels[start : start + (size or len(pixels))])
        padded = torch.cat([part, part.new_zeros((size or len(part)) - len(part), *part.shape[1:])])
        rows.append(encoder.encode_pixels(padded)[: len(part)].half().cpu())
    return np.asarray(torch.cat(rows).numpy())


def motion(images: Sequence[np.ndarray]) -> float | None:
    """Return how much images (H, W, 3) differ from one to the next: mean share of full scale, 0 if still.

    None of a single image.
    """
    if len(images) < 2:
        return None
    small = [
        np.asarray(Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BOX), np.float32)
        for image in images
    ]
    changes = [np.abs(a - b).mean() / 255 for a, b in itertools.pairwise(small)]
    return round(float(np.mean(changes)), 5)


def speech_share(waveform: np.ndarray, sample_rate: int) -> float:
    """Return the share of a sound (T,) in which someone speaks, by Silero VAD."""
    from silero_vad import get_speech_timestamps

    spoken = get_speech_timestamps(torch.from_numpy(waveform), _voice_detector(), sampling_rate=sample_rate)
    return round(sum(part["end"] - part["start"] for part in spoken) / len(waveform), 4)


@cache
def _voice_detector() -> Any:
    from silero_vad import load_silero_vad

    with warnings.catch_warnings():
        # Its package has the network as TorchScript, which torch calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return load_silero_vad()


class VideoSkipped(Exception):
    """The video cannot be used; the message is the reason."""


def file_state(path: Path) -> tuple[int, ...]:
    """Return size and times of a file, which change with its content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
