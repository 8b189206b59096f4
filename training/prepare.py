"""A folder of videos to one data set file of features. Sees frames and audio only; a label has no way in.

Run: clipsynth prepare VIDEOS OUT
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models.encoders import JointEncoder
from models.video import VIDEO_SUFFIXES, VideoError, read_video

PEAK = 0.5  # AudioLDM's level: every clip's largest sample


class PrepareError(ValueError):
    """Nothing to prepare; the message is the reason."""


def level(waveform: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the waveform without DC at a peak of `PEAK`, and the gain that was applied."""
    centred = waveform - waveform.mean()
    gain = PEAK / float(np.abs(centred).max())
    return centred * gain, gain


def find_videos(folder: Path) -> list[Path]:
    """Return the videos below `folder`, sorted.

    Raises:
        PrepareError: there are none.
    """
    videos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise PrepareError(f"{folder} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return videos


def is_dev(source: str) -> bool:
    """Return whether a source belongs to the tenth that is held out for choices, by hash of its name."""
    return hashlib.sha256(source.encode()).digest()[0] < 26


def prepare(
    videos: Path, out: Path, encoder: JointEncoder, *, sample_rate: int = 16000
) -> Iterator[tuple[int, int]]:
    """Write `clips.safetensors`, `clips.jsonl`, `report.json` and the encoder to `out`; yield (done, total) after each video.

    Per clip i: `{i}.waveform` (T,) int16 and `{i}.embeds` (K, D) fp16, one row per frame. `text_mean` (D,) is the mean text embedding of a
    generic phrase list (the ImageNet classes), by which texts are centred at request time.

    Raises:
        PrepareError: no videos, or none usable.
    """
    tensors: dict[str, torch.Tensor] = {}
    clips: list[dict[str, object]] = []
    skipped: dict[str, str] = {}
    paths = find_videos(videos)
    for n, path in enumerate(paths, 1):
        source = path.relative_to(videos).as_posix()
        try:
            raw = read_video(path, sample_rate=sample_rate)
        except VideoError as error:
            skipped[source] = str(error)
        else:
            waveform, gain = level(raw.waveform)
            i = len(clips)
            tensors[f"{i}.waveform"] = torch.from_numpy((waveform * 32767).round().astype(np.int16))
            tensors[f"{i}.embeds"] = encoder.encode_image(raw.frames).half().cpu()
            clips.append(
                {
                    "source": source,
                    "duration_s": len(waveform) / sample_rate,
                    "gain": gain,
                    "dev": is_dev(source),
                }
            )
        yield n, len(paths)
    if not clips:
        raise PrepareError(
            f"none of the {len(paths)} videos of {videos} can be used; first reason: {next(iter(skipped.values()))}"
        )
    tensors["text_mean"] = generic_text_mean(encoder)
    encoder.save_pretrained(out / "encoder")
    save_file(tensors, out / "clips.safetensors")
    (out / "clips.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    (out / "report.json").write_text(json.dumps({"clips": len(clips), "skipped": skipped}, indent=2) + "\n")


def generic_text_mean(encoder: JointEncoder) -> torch.Tensor:
    """Return the mean (D,) of the encoder's text embeddings over "a photo of {class}" of the ImageNet classes."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES as names

    batches = [[f"a photo of {name}" for name in names[i : i + 100]] for i in range(0, len(names), 100)]
    return torch.cat([encoder.encode_text(batch) for batch in batches]).mean(0).cpu()
