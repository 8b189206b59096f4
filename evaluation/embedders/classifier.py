"""The judge: a small classifier trained on the sound of labelled clips, apart from the generator.

Its input is log-mels at a fixed peak, so loudness does not matter, clamped at `FLOOR`, so inaudible noise
does not matter. Architecture after PANNs' CNN6 (Kong et al. 2020, table 2) at 1/8 width, with SpecAugment
(Park et al. 2019) in training. A folder of results keeps one judge and belongs to one set of clips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import nn

from evaluation.audio import fingerprint
from evaluation.clips import read_clips, read_labels
from models.audio.level import PEAK
from models.audio.mel import MelSpectrogram

FRAMES = 400  # 4 s
FLOOR = -8.0  # log-mel; about 75 dB below a clip's loudest bands


class SoundClassifier(nn.Module):
    """Log-mels (B, F, 64) to logits (B, len(labels))."""

    def __init__(self, labels: Sequence[str], width: int = 24, embed_dim: int = 128) -> None:
        super().__init__()
        self.labels = list(labels)
        self.mel = MelSpectrogram()
        channels = [1, width, 2 * width, 3 * width, 4 * width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 5, padding=2, stride=2, bias=False), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b in pairwise(channels)
            )
        )
        self.embed = nn.Linear(channels[-1], embed_dim)
        self.head = nn.Linear(embed_dim, len(self.labels))

    def log_mel(self, waveforms: Sequence[np.ndarray]) -> torch.Tensor:
        """Return log-mels (B, F, 64) of waveforms (T,) of one length in float, at a peak of `PEAK`."""
        x = torch.from_numpy(np.stack([w - w.mean() for w in waveforms])).float()
        return self.mel(x * (PEAK / x.abs().amax(-1, keepdim=True).clamp(min=1e-6))).clamp(min=FLOOR)

    def embeddings(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return (B, embed_dim): mean over bands, then mean plus maximum over time, as in PANNs."""
        x = self.blocks((log_mel[:, None] + 4) / 2).mean(3)
        return F.relu(self.embed(F.dropout(x.mean(2) + x.amax(2), 0.3, self.training)))

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embeddings(log_mel))
        return logits

    @torch.no_grad()
    def probabilities(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Return (N, len(labels)) of waveforms (T,) at 16 kHz; lengths may differ."""
        self.eval()
        return np.concatenate([self(self.log_mel([w])).softmax(-1).numpy() for w in waveforms])

    def save(self, folder: Path) -> None:
        """Write `classifier.safetensors` and `classifier.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "classifier.safetensors")
        (folder / "classifier.json").write_text(json.dumps({"labels": self.labels}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> SoundClassifier:
        """Read what `save` wrote."""
        classifier = cls(json.loads((folder / "classifier.json").read_text())["labels"])
        classifier.load_state_dict(load_file(folder / "classifier.safetensors"))
        return classifier.eval()


def mask_bands(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mask a random stretch of up to 60 frames, and one of up to 10 bands, of log-mels (B, F, M)."""
    x, floor = x.clone(), float(x.min())
    for row in x:
        for size, widest in ((row.shape[0], 60), (row.shape[1], 10)):
            width = int(torch.randint(widest + 1, (), generator=generator))
            start = int(torch.randint(size - width + 1, (), generator=generator))
            if size == row.shape[0]:
                row[start : start + width] = floor
            else:
                row[:, start : start + width] = floor
    return x


def train_classifier(
    waveforms: Sequence[np.ndarray], labels: Sequence[str], *, epochs: int = 30, seed: int = 0
) -> SoundClassifier:
    """Train on waveforms (T,) at 16 kHz with their labels.

    Random crops of 4 s, SpecAugment, AdamW with a one-cycle schedule, label smoothing 0.1.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    classifier = SoundClassifier(sorted(set(labels)))
    mels = [classifier.log_mel([w])[0] for w in waveforms]
    target = torch.tensor([classifier.labels.index(label) for label in labels])
    batch = min(32, len(mels))
    steps = epochs * (len(mels) // batch)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    classifier.train()
    for _ in range(epochs):
        order = torch.randperm(len(mels), generator=generator)
        for picks in order.split(batch)[: len(mels) // batch]:
            crops = []
            for mel in (mels[i] for i in picks):
                padded = F.pad(mel, (0, 0, 0, max(0, FRAMES - len(mel))), value=float(mel.min()))
                start = int(torch.randint(len(padded) - FRAMES + 1, (), generator=generator))
                crops.append(padded[start : start + FRAMES])
            logits = classifier(mask_bands(torch.stack(crops), generator))
            loss = F.cross_entropy(logits, target[picks], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def claim(folder: Path, clips: Path, labels: Path) -> None:
    """Note in `folder` to which clips its judge and sounds belong.

    Raises:
        ValueError: they belong to other clips, or to clips that have changed since.
    """
    read_labels(labels, "validation")
    files = (p for p in sorted(clips.rglob("*.*")) if p.is_file())
    sizes = {p.relative_to(clips).as_posix(): p.stat().st_size for p in files}
    mark, file = fingerprint(labels.read_text(), sizes), folder / "clips.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(mark)
        # Atomic: two runs may share a folder.
        os.replace(temporary, file)
    if file.read_text() != mark:
        raise ValueError(f"{folder} holds results of other clips than {clips}; choose another --out")


def get_classifier(folder: Path, clips: Path, labels: Path) -> SoundClassifier:
    """Return the judge kept in `folder`; train it on the "train" split first if there is none.

    The judge never hears a validation clip in training.
    """
    if not (folder / "classifier.json").is_file():
        wanted = read_labels(labels, "train")
        clips_of = track(read_clips(clips, wanted), "read training clips", len(wanted))
        waveforms, classes = zip(*((clip.waveform, clip.label) for clip in clips_of), strict=True)
        train_classifier(waveforms, classes).save(folder)
    return SoundClassifier.load(folder)
