"""A step of the iSTFT vocoder: a spectral energy distance, later also discriminators.

The discriminators, with hinge loss and feature matching, are those of Vocos (Siuzdak 2023).
"""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from torch import nn

from models.audio.corrections import find_harmonics
from models.audio.mel import MelSpectrogram
from training.data.clips import ClipSet
from training.loop import marked, update
from training.recipe import Recipe
from training.state import TrainingState, learning_rate
from training.vocoder.discriminators import Discriminators, feature_distance, hinge_loss
from training.vocoder.energy_distance import energy_distance
from training.vocoder.networks import untrained_network

WARMUP_STEPS = 200  # of the discriminators before the vocoder is trained by them
ADVERSARIAL_WEIGHT, FEATURE_WEIGHT = 0.1, 0.2
DISCRIMINATOR_RATE = 0.5  # of the vocoder's learning rate
MAX_NORM = 10.0  # of gradients


def untrained_parts(recipe: Recipe, clips: ClipSet, mel: MelSpectrogram) -> dict[str, nn.Module]:
    """Return a vocoder with the statistics of the training clips, its discriminators and its average."""
    vocoder = untrained_network(recipe, clips, mel)
    average = copy.deepcopy(vocoder).eval().requires_grad_(False)
    discriminators = Discriminators(periods=())
    return {"vocoder": vocoder, "discriminators": discriminators, "average": average}


class IstftStep:
    """Take one step of the vocoder, its running average and, from `adversarial_from` on, discriminators."""

    def __init__(
        self, recipe: Recipe, mel: MelSpectrogram, accelerator: Accelerator, state: TrainingState
    ) -> None:
        self.recipe, self.mel, self.accelerator, self.state = recipe, mel, accelerator, state
        vocoder, discriminators, self.average = state.parts.values()
        self.own = vocoder
        self.vocoder, self.discriminators = map(accelerator.prepare_model, (vocoder, discriminators))

    def __call__(self, n: int, mels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Take step n on log-mels (B, F, M) and waveforms (B, F * hop); return the mean distance of the two.

        It computes in fp32: a rounded phase is noise.
        """
        v, device = self.recipe.vocoder, self.accelerator.device
        rate = learning_rate(v, n)
        for optimizer, share in zip(self.state.optimizers, (1.0, DISCRIMINATOR_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = share * rate
        mels, target = mels.to(device), target.to(device)
        # A resumed run draws the same noise.
        seed = (self.recipe.seed * 1_000_003 + n) * 4096 + self.accelerator.process_index
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(2 * len(target), target.shape[1], generator=g).to(device)
        tones = find_harmonics(mels, self.mel).sinusoids
        self.vocoder.train()
        made = self.vocoder(mels.repeat(2, 1, 1), noise, tones.repeat(2, 1))
        loss, near = energy_distance(made, target, self.mel)
        if n >= v.adversarial_from:
            loss = loss + self._adversarial(n, made[: len(target)], target)
        norm = update(self.accelerator, self.state.optimizers[0], self.vocoder, loss, MAX_NORM)
        decay = min(v.ema_decay, (n + 1) / (n + 11))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.own.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return marked(near, norm)

    def _adversarial(self, n: int, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Take a step of the discriminators; return the adversarial and feature losses of `made`."""
        self.discriminators.requires_grad_(True)
        judged = [self.discriminators(x) for x in (target, made.detach())]
        update(self.accelerator, self.state.optimizers[1], self.discriminators, hinge_loss(*judged), MAX_NORM)
        if n < self.recipe.vocoder.adversarial_from + WARMUP_STEPS:
            return made.new_zeros(())
        # The generator's gradient passes through; their own is not needed.
        self.discriminators.requires_grad_(False)
        with torch.no_grad():
            real = self.discriminators(target)
        maps = self.discriminators(made)
        adversarial = torch.stack([-judgement[-1].mean() for judgement in maps]).mean()
        return ADVERSARIAL_WEIGHT * adversarial + FEATURE_WEIGHT * feature_distance(real, maps)
