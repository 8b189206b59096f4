"""Train the vocoder on the clips' own sound.

HiFi-GAN: log-mel and multi-resolution STFT distances (Yamamoto et al. 2020, eq. 5-7); from `adversarial_from`
on also discriminators (HiFi-GAN, Kong et al. 2020, eq. 5-6). The last steps use mels made by the denoiser.
The other architecture is in `istft.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset
from transformers import SpeechT5HifiGan

from models.audio.mel import MelSpectrogram
from models.audio.vocoder import Vocoder
from training.data.clips import DEV_FRAMES, Clips, ClipSet, crop, crop_mel, random_start
from training.loop import Run, autocast, check_rows, marked, prefetch, update
from training.progress import ProgressView
from training.recipe import Recipe, VocoderRecipe
from training.state import TrainingState, load_weights
from training.vocoder.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_distance,
)
from training.vocoder.energy_distance import RESOLUTIONS
from training.vocoder.istft import IstftStep, untrained_parts
from training.vocoder.networks import SERVED, untrained_network

MEL_WEIGHT = 2.0
SPECTRAL_WEIGHT = 5.0  # beside the adversarial losses
MAX_NORM = 10.0  # of gradients
# Differences below about -88 dB of full scale are inaudible, but the logarithm would make digital silence the
# largest part of the loss.
LOG_MEL_FLOOR = -8.0
MAGNITUDE_FLOOR = 1e-2
SILENT = 1e-3  # segments with a lower peak are skipped
DEV_CLIPS = 32


def mel_distance(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of log-mels (B, F, M) above `LOG_MEL_FLOOR`."""
    return F.l1_loss(made.clamp(min=LOG_MEL_FLOOR), target.clamp(min=LOG_MEL_FLOOR))


def stft_distance(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return spectral convergence plus log-magnitude L1 of waveforms (B, T), averaged over `RESOLUTIONS`."""
    total = made.new_zeros(())
    for n_fft, hop, window in RESOLUTIONS:
        a, b = (
            torch.stft(w, n_fft, hop, window, torch.hann_window(window, device=w.device), return_complex=True)
            .abs()
            .clamp(min=1e-7)  # the gradient of |0| is not finite
            for w in (made, target)
        )
        convergence = torch.linalg.norm(b - a) / torch.linalg.norm(b).clamp(min=MAGNITUDE_FLOOR)
        log_a, log_b = (x.clamp(min=MAGNITUDE_FLOOR).log() for x in (a, b))
        total = total + convergence + F.l1_loss(log_a, log_b)
    return total / len(RESOLUTIONS)


class VocoderClips(Protocol):
    """Mels (F, n_mels) and the waveforms (T,) that a vocoder shall make of them."""

    def __len__(self) -> int: ...
    def mel(self, i: int) -> torch.Tensor: ...
    def waveform(self, i: int) -> torch.Tensor: ...
    def describe(self, i: int) -> str: ...


class Segments(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Draw segments that are not silent; item n is the batch of step n and depends only on (seed, n)."""

    def __init__(
        self, sounds: VocoderClips, recipe: Recipe, hop: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_rows(recipe.vocoder.batch_size, world_size, "vocoder.batch_size")
        self.sounds, self.recipe, self.hop = sounds, recipe, hop
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-mels (B, segment_frames, M) and waveforms (B, segment_frames * hop) of this process."""
        v = self.recipe.vocoder
        rows = [self._row(n, row) for row in range(self.rank, v.batch_size, self.world_size)]
        return torch.stack([mel for _, mel, _ in rows]), torch.stack([wave for _, _, wave in rows])

    def describe(self, n: int) -> list[str]:
        return [self.sounds.describe(self._row(n, row)[0]) for row in range(self.recipe.vocoder.batch_size)]

    def _row(self, n: int, row: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Return the clip of a row of step n, its log-mel (segment_frames, M) and its waveform (T,)."""
        frames = self.recipe.vocoder.segment_frames
        g = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + n) * 4096 + row)
        for _ in range(20):  # ends even if all clips are silent
            i = int(torch.randint(len(self.sounds), (), generator=g))
            mel = self.sounds.mel(i)
            start = random_start(len(mel), frames, g)
            wave = crop(self.sounds.waveform(i), frames * self.hop, start * self.hop)
            if wave.abs().max() >= SILENT:
                break
        return i, crop_mel(mel, frames, start), wave


def learning_rate(v: VocoderRecipe, n: int) -> float:
    """Return the learning rate of step n: warm-up over 100 steps, then exponential decay."""
    return float(v.learning_rate * min(1.0, (n + 1) / 100) * 0.5 ** (n / v.half_life_steps))


def untrained_vocoder(recipe: Recipe, clips: ClipSet, mel: MelSpectrogram) -> SpeechT5HifiGan:
    vocoder = untrained_network(recipe, clips, mel)
    for weight in vocoder.parameters():
        if weight.ndim == 3:  # short runs do not recover from the default std of 0.01
            nn.init.kaiming_normal_(weight, a=0.1)
    nn.init.normal_(vocoder.conv_post.weight, std=0.01)
    return vocoder


@torch.no_grad()
def dev_distances(
    vocoder: nn.Module, mel: MelSpectrogram, clips: Clips, device: torch.device
) -> dict[str, float]:
    """Return mel and STFT distances on the first seconds of up to `DEV_CLIPS` dev clips."""
    mels, stfts = [], []
    samples = DEV_FRAMES * mel.config.hop_length
    for i in range(min(DEV_CLIPS, len(clips))):
        target = crop(clips.waveform(i), samples, 0)[None].to(device)
        made = vocoder(mel(target))[:, : target.shape[1]]
        mels.append(mel_distance(mel(made), mel(target)).item())
        stfts.append(stft_distance(made, target).item())
    return {"dev_mel": sum(mels) / len(mels), "dev_stft": sum(stfts) / len(stfts)}


def train_vocoder(
    recipe: Recipe,
    clips: ClipSet,
    mel: MelSpectrogram,
    accelerator: Accelerator,
    init: Vocoder | None = None,
    generated: VocoderClips | None = None,
    view: ProgressView | None = None,
) -> Vocoder:
    """Train or resume; return the vocoder, an iSTFT vocoder with averaged weights (EMA).

    Args:
        init: a trained vocoder to start from without a state to resume.
        generated: mels of the denoiser; if given, `finetune_steps` further steps train on them.
        view: shows the progress of all stages.

    Raises:
        ValueError: `init` or the saved state is of another shape than the recipe's.
    """
    torch.manual_seed(recipe.seed)
    v = recipe.vocoder
    folder = recipe.vocoder_folder
    is_istft = v.architecture == "istft"
    if is_istft:
        parts = untrained_parts(recipe, clips, mel)
    else:
        vocoder = untrained_vocoder(recipe, clips, mel)
        parts = {"vocoder": vocoder, "discriminators": Discriminators()}
    mel.to(accelerator.device)
    for part in parts.values():
        part.to(accelerator.device)
    trained = (parts["vocoder"], parts["discriminators"])
    optimizers = [torch.optim.AdamW(part.parameters(), betas=(0.8, 0.99)) for part in trained]
    state = TrainingState(folder, parts, optimizers)
    made = parts[SERVED[v.architecture]]
    if not state.resume() and init is not None:
        for part in (parts["vocoder"], made):
            load_weights("vocoder", part, init.state_dict())
    last = v.steps + (v.finetune_steps if generated is not None else 0)
    if state.step < last:
        title = "vocoder" if generated is None else "finetune"
        run = Run("vocoder", folder, recipe, accelerator, view, title)
        step = (IstftStep if is_istft else _HifiGanStep)(recipe, mel, accelerator, state)
        segments = Segments(
            generated or clips.train,
            recipe,
            mel.config.hop_length,
            accelerator.process_index,
            accelerator.num_processes,
        )
        upcoming = run.timed(prefetch(segments, range(state.step, last), recipe.workers))

        def evaluate(n: int) -> bool:
            made.eval()
            for name, value in dev_distances(made, mel, clips.dev, accelerator.device).items():
                run.log(name, n, value)
            return True

        with nullcontext() if is_istft else _fp32_output(made):
            run.steps(
                state,
                last,
                lambda n: step(n, *next(upcoming)),
                evaluate=evaluate,
                evaluate_every=v.evaluate_every,
                clips_per_step=v.batch_size,
                clips_of=segments.describe,
            )
    mel.cpu()
    return cast(Vocoder, made.cpu().eval())


class _HifiGanStep:
    """Take one step of the vocoder and, from `adversarial_from` on, its discriminators."""

    def __init__(
        self, recipe: Recipe, mel: MelSpectrogram, accelerator: Accelerator, state: TrainingState
    ) -> None:
        self.recipe, self.mel, self.accelerator, self.state = recipe, mel, accelerator, state
        self.vocoder, self.discriminators = map(accelerator.prepare_model, state.parts.values())

    def __call__(self, n: int, mels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        v = self.recipe.vocoder
        self.state.set_learning_rate(learning_rate(v, n))
        mels, target = mels.to(self.accelerator.device), target.to(self.accelerator.device)
        self.vocoder.train()
        with autocast(self.recipe, self.accelerator.device):
            made = self.vocoder(mels)[:, : target.shape[1]]
        loss = MEL_WEIGHT * mel_distance(self.mel(made), self.mel(target)) + stft_distance(made, target)
        spectral = loss
        if n >= v.adversarial_from:
            loss = SPECTRAL_WEIGHT * loss + self._adversarial(made, target)
        norm = update(self.accelerator, self.state.optimizers[0], self.vocoder, loss, MAX_NORM)
        return marked(spectral, norm)

    def _adversarial(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Take a step of the discriminators; return the adversarial and feature losses of `made`."""
        self.discriminators.requires_grad_(True)
        loss = discriminator_loss(self.discriminators(target), self.discriminators(made.detach()))
        update(self.accelerator, self.state.optimizers[1], self.discriminators, loss, MAX_NORM)
        # The generator's gradient passes through; their own is not needed.
        self.discriminators.requires_grad_(False)
        with torch.no_grad():
            real = self.discriminators(target)
        judged = self.discriminators(made)
        return adversarial_loss(judged) + 2 * feature_distance(real, judged)


@contextmanager
def _fp32_output(vocoder: SpeechT5HifiGan) -> Iterator[None]:
    """Let the vocoder's last layer compute in fp32; rounding to bf16 is audible noise at -54 dB."""
    layer, forward = vocoder.conv_post, vocoder.conv_post.forward

    def forward_fp32(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    layer.forward = forward_fp32
    try:
        yield
    finally:
        del layer.forward
