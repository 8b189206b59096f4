"""Train the iSTFT vocoder by a spectral energy distance and discriminators.

The multi-resolution discriminators (hinge loss and feature matching) are those of Vocos.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import MelSpectrogram
from training.data.clips import crop, crop_mel, random_start
from training.vocoder.discriminators import ResolutionDiscriminator, feature_distance
from training.vocoder.energy_distance import RESOLUTIONS, energy_distance
from training.vocoder.train import SILENT, VocoderClips


@dataclass
class IstftOptions:
    """Options of a training.

    A step makes `batch_size` segments of `segment_frames` mel frames, each with two noises.
    From step `adversarial_from` on the discriminators are trained, and from `adversarial_warmup` steps later
    the vocoder is trained by them. The learning rate rises over `warmup_steps`, and falls as a cosine over
    the last `decay_steps` of `steps`.
    """

    steps: int = 10_000
    batch_size: int = 8
    segment_frames: int = 96
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_steps: int = 2_000
    repulsion: float = 1.0
    ema_decay: float = 0.999
    adversarial_from: int = 10**9
    adversarial_warmup: int = 200
    adversarial_weight: float = 0.1
    feature_weight: float = 0.2
    discriminator_width: int = 4
    discriminator_rate: float = 5e-4
    seed: int = 0

    def rate(self, n: int) -> float:
        """Return the share of the learning rate at step n."""
        rise = min(1.0, (n + 1) / self.warmup_steps)
        left = (self.steps - n) / self.decay_steps
        fall = 0.5 - 0.5 * float(torch.cos(torch.tensor(torch.pi * min(1.0, max(0.0, left)))))
        return rise * max(fall, 1e-3)


class ToneSounds(VocoderClips, Protocol):
    """VocoderClips whose steady tones (T,) are known beforehand, by `models.audio.corrections`."""

    def tones(self, i: int) -> torch.Tensor: ...


Segment = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
PARTS = ("vocoder", "average", "discriminators", "optimizer", "referee")  # of a saved state


def segments(sounds: ToneSounds, options: IstftOptions, hop: int, first: int = 0) -> Iterator[Segment]:
    """Yield log-mels (B, F, M), waveforms (B, T) and tones (B, T) from step `first` on.

    A step's segments depend only on the seed and its number.
    """
    frames = options.segment_frames
    for n in range(first, options.steps):
        rows = []
        for row in range(options.batch_size):
            g = torch.Generator().manual_seed((options.seed * 1_000_003 + n) * 4096 + row)
            for _ in range(20):
                i = int(torch.randint(len(sounds), (), generator=g))
                start = random_start(len(sounds.mel(i)), frames, g)
                wave = crop(sounds.waveform(i), frames * hop, start * hop)
                if wave.abs().max() >= SILENT:
                    break
            tones = crop(sounds.tones(i), frames * hop, start * hop)
            rows.append((crop_mel(sounds.mel(i), frames, start), wave, tones))
        mels, waves, sinusoids = (torch.stack(x) for x in zip(*rows, strict=True))
        yield mels, waves, sinusoids


class ResolutionDiscriminators(nn.Module):
    """One discriminator per resolution of the spectral distance; their feature maps on waveforms (B, T)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(ResolutionDiscriminator(*r, width) for r in RESOLUTIONS)

    def forward(self, waveforms: torch.Tensor) -> list[list[torch.Tensor]]:
        return [member(waveforms) for member in self.members]


def hinge_loss(real: list[list[torch.Tensor]], made: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return the discriminators' hinge loss, averaged over them."""
    losses = [
        (1 - r[-1]).clamp(min=0).mean() + (1 + m[-1]).clamp(min=0).mean()
        for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(losses).mean()


class IstftTrainer:
    """Vocoder, its running mean `average`, discriminators and their optimizers; one `step` at a time."""

    def __init__(self, vocoder: IstftVocoder, mel: MelSpectrogram, options: IstftOptions) -> None:
        self.vocoder, self.mel, self.options, self.done = vocoder, mel, options, 0
        self.average = copy.deepcopy(vocoder).eval().requires_grad_(False)
        self.discriminators = ResolutionDiscriminators(options.discriminator_width)
        self.optimizer, self.referee = (
            torch.optim.AdamW(part.parameters(), lr=rate, betas=(0.8, 0.99))
            for part, rate in (
                (vocoder, options.learning_rate),
                (self.discriminators, options.discriminator_rate),
            )
        )

    def step(self, mels: torch.Tensor, waves: torch.Tensor, tones: torch.Tensor) -> dict[str, float]:
        """Take a step on log-mels (B, F, M), waveforms (B, T) and tones (B, T); return losses by name."""
        o, n = self.options, self.done
        for optimizer, rate in ((self.optimizer, o.learning_rate), (self.referee, o.discriminator_rate)):
            optimizer.param_groups[0]["lr"] = rate * o.rate(n)
        noise = torch.randn(2 * len(waves), waves.shape[1])
        made = self.vocoder(mels.repeat(2, 1, 1), noise, tones.repeat(2, 1))
        loss, near = energy_distance(made, waves, self.mel, o.repulsion)
        values = {"loss": loss.item(), "near": near.item()}
        if n >= o.adversarial_from:
            loss = loss + self._against(made[: len(waves)], waves, values)
        self._update(self.optimizer, self.vocoder, loss)
        self.done += 1
        decay = min(o.ema_decay, self.done / (self.done + 10))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.vocoder.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return values

    def _against(self, made: torch.Tensor, waves: torch.Tensor, values: dict[str, float]) -> torch.Tensor:
        """Train the discriminators once; return what the vocoder loses to them."""
        o = self.options
        self.discriminators.requires_grad_(True)
        real = self.discriminators(waves)
        loss = hinge_loss(real, self.discriminators(made.detach()))
        self._update(self.referee, self.discriminators, loss)
        values["referee"] = loss.item()
        if self.done < o.adversarial_from + o.adversarial_warmup:
            return made.new_zeros(())
        self.discriminators.requires_grad_(False)
        judged = self.discriminators(made)
        adversarial = torch.stack([-maps[-1].mean() for maps in judged]).mean()
        matching = feature_distance(real, judged)
        values |= {"adversarial": adversarial.item(), "matching": matching.item()}
        return o.adversarial_weight * adversarial + o.feature_weight * matching

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, part: nn.Module, loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(part.parameters(), 10.0)
        optimizer.step()

    def state(self) -> dict[str, object]:
        """Return the state that `load` reads."""
        return {"done": self.done} | {name: getattr(self, name).state_dict() for name in PARTS}

    def load(self, state: dict[str, object]) -> None:
        """Continue from `state`."""
        self.done = int(state["done"])  # type: ignore[call-overload]
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])


def train_istft(
    trainer: IstftTrainer,
    sounds: ToneSounds,
    folder: Path,
    *,
    save_every_s: float = 180.0,
    evaluate: Callable[[IstftVocoder], dict[str, float]] | None = None,
    evaluate_every: int = 500,
) -> None:
    """Train to the last step, or resume from `folder/state.pt`.

    Writes the averaged vocoder to `folder/vocoder` and losses to `folder/log.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.pt"
    if path.is_file():
        trainer.load(torch.load(path, map_location="cpu", weights_only=True))
    saved = began = time.monotonic()
    recent: dict[str, list[float]] = {}
    hop = trainer.mel.config.hop_length
    for batch in segments(sounds, trainer.options, hop, trainer.done):
        for name, value in trainer.step(*batch).items():
            recent.setdefault(name, []).append(value)
        n = trainer.done
        if n % 50 == 0 or n == trainer.options.steps:
            line = {name: round(sum(x) / len(x), 4) for name, x in recent.items()}
            if evaluate and n % evaluate_every == 0:
                line |= evaluate(trainer.average)
            with (folder / "log.jsonl").open("a") as f:
                f.write(json.dumps({"step": n, "s": round(time.monotonic() - began, 1), **line}) + "\n")
            recent = {}
        if time.monotonic() - saved > save_every_s or n == trainer.options.steps:
            torch.save(trainer.state(), path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
            trainer.average.save_pretrained(folder / "vocoder")
            saved = time.monotonic()
