"""Score how well the sound of each prepared clip fits its image, in `PREPARED/agreement.json`.

The score is learned from the clips without labels (`training/correspondence/network.py`), or it is the cosine
of Wav2CLIP's embedding of the sound and the mean embedding of the frames. The file has the form {"method",
"index": sha256 of the index, "clips": {key: [score, quantile 0..1 among the training clips]}}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from models.audio.mel import MelSpectrogram
from models.baselines.wav2clip import load_wav2clip
from models.bundle import file_sha256
from training.correspondence.network import CorrespondenceOptions, Pairs, cross_fit, sound_features
from training.data.clips import Clips, ClipSet, load_clips

FILE = "agreement.json"


def write_correspondence(folder: Path, wav2clip: Path | None = None) -> Path:
    """Score the clips of a prepared folder and return the path of its new `agreement.json`.

    Args:
        wav2clip: weights of Wav2CLIP; None trains a network on the clips.

    Raises:
        ValueError: no prepared folder, too few videos, or Wav2CLIP does not fit the clips.
    """
    clips = load_clips(folder, correspondence=False)
    if wav2clip:
        check_wav2clip_fits(folder)
        train, dev = wav2clip_scores(clips, wav2clip)
    else:
        train, dev = learned_scores(clips)
    quantiles = quantiles_among(train, train), quantiles_among(dev, train)
    found: dict[str, list[float]] = {}
    for split, scores, ranks in ((clips.train, train, quantiles[0]), (clips.dev, dev, quantiles[1])):
        for line, score, rank in zip(split.index, scores.tolist(), ranks.tolist(), strict=True):
            found.setdefault(line["key"], [round(score, 5), round(rank, 5)])
    record = {
        "method": "wav2clip" if wav2clip else "matching",
        "index": file_sha256(folder / "index.jsonl"),
        "clips": found,
    }
    temporary = folder / "agreement.tmp"
    temporary.write_text(json.dumps(record) + "\n")
    os.replace(temporary, folder / FILE)
    return folder / FILE


def quantiles_among(scores: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the share (N,) of `reference` (M,) below each score; equal values count half."""
    ordered = reference.sort().values
    left, right = (torch.searchsorted(ordered, scores, right=side) for side in (False, True))
    return (left + right) / (2 * len(ordered))


def learned_scores(
    clips: ClipSet, options: CorrespondenceOptions | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross-fitted scores of the training clips (N,) and scores of the dev clips (M,)."""
    train, dev = paired(clips)
    ours, theirs, _ = cross_fit(train, dev, options or CorrespondenceOptions())
    return ours, theirs


def wav2clip_scores(clips: ClipSet, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines of sound and mean frame, for the training clips (N,) and the dev clips (M,).

    Raises:
        ValueError: `load_wav2clip` rejects the file.
    """
    model = load_wav2clip(file)

    @torch.inference_mode()
    def scores(split: Clips) -> torch.Tensor:
        pairs = ((model(split.waveform(i)[None])[0], split.embeds(i).mean(0)) for i in range(len(split)))
        return torch.stack([F.cosine_similarity(sound, image, dim=0) for sound, image in pairs])

    return scores(clips.train), scores(clips.dev)


def check_wav2clip_fits(folder: Path) -> None:
    """Check that the clips were embedded with CLIP ViT-B/32, whose space Wav2CLIP shares.

    Raises:
        ValueError: another encoder embedded them.
    """
    config = json.loads((folder / "encoder" / "config.json").read_text())
    if config.get("_class_name") != "OpenClipEncoder" or not config["model_name"].startswith("ViT-B-32"):
        used = config.get("model_name") or config.get("_class_name")
        raise ValueError(
            f"Wav2CLIP is in the space of CLIP ViT-B/32, the clips of {folder} are in that of {used}; "
            "prepare them with --clip-model ViT-B-32, or omit --wav2clip"
        )


def paired(clips: ClipSet) -> tuple[Pairs, Pairs]:
    """Return the features of both splits, standardised with the statistics of the training clips."""
    frame_rate = MelSpectrogram().frame_rate
    tables = [
        (
            torch.stack([sound_features(split.mel(i), frame_rate) for i in range(len(split))]),
            torch.stack([split.embeds(i).mean(0) - clips.image_mean for i in range(len(split))]),
        )
        for split in (clips.train, clips.dev)
    ]
    numbers: dict[str, int] = {}
    pairs = []
    for split, columns in zip((clips.train, clips.dev), tables, strict=True):
        sounds, images = (_standardise(x, by) for x, by in zip(columns, tables[0], strict=True))
        videos = torch.tensor([numbers.setdefault(line["video"], len(numbers)) for line in split.index])
        pairs.append(Pairs(sounds, images, videos))
    return pairs[0], pairs[1]


def _standardise(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Standardise columns by the mean and deviation of `by`; columns constant in `by` stay near 0."""
    return ((x - by.mean(0)) / by.std(0).clamp(min=1e-4)).clamp(-10, 10)
