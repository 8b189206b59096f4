"""Train the vocoder on the clips' own sound: log-mel and multi-resolution STFT distances (Yamamoto et al. 2020, eq. 5-7)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import SpeechT5HifiGan

from models.mel import MelSpectrogram
from models.vocoder import build_vocoder
from training.data import Clips, ClipSet, crop, random_start
from training.loop import cpu_computes_bf16, load_state, load_weights, run_steps, save_state
from training.recipe import Recipe

RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # n_fft, hop, window in samples
MEL_WEIGHT = 2.0
# Below about -88 dB of full scale nobody hears a difference, yet the logarithm makes digital silence the largest part of the loss.
LOG_MEL_FLOOR = -8.0
MAGNITUDE_FLOOR = 1e-2
SILENT = 1e-3  # peak of a segment that is not worth training on


def mel_distance(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of log-mels (B, F, M) above `LOG_MEL_FLOOR`."""
    return F.l1_loss(made.clamp(min=LOG_MEL_FLOOR), target.clamp(min=LOG_MEL_FLOOR))


def stft_distance(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return spectral convergence plus log-magnitude L1 above `MAGNITUDE_FLOOR` of waveforms (B, T), averaged over `RESOLUTIONS`."""
    total = made.new_zeros(())
    for n_fft, hop, window in RESOLUTIONS:
        a, b = (
            torch.stft(w, n_fft, hop, window, torch.hann_window(window), return_complex=True)
            .abs()
            .clamp(min=1e-7)  # the gradient of |0| is not finite
            for w in (made, target)
        )
        convergence = torch.linalg.norm(b - a) / torch.linalg.norm(b).clamp(min=MAGNITUDE_FLOOR)
        log_a, log_b = (x.clamp(min=MAGNITUDE_FLOOR).log() for x in (a, b))
        total = total + convergence + F.l1_loss(log_a, log_b)
    return total / len(RESOLUTIONS)


class Segments:
    """Draws training segments; batch n depends on (seed, n) alone, so that a resumed run sees the same ones. Silent ones are passed over."""

    def __init__(self, clips: Clips, recipe: Recipe, hop: int) -> None:
        self.clips, self.recipe, self.hop = clips, recipe, hop

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-mels (B, segment_frames, M) and their waveforms (B, segment_frames * hop)."""
        v = self.recipe.vocoder
        length = v.segment_frames * self.hop
        g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
        mels, waves = [], []
        for attempt in range(20 * v.batch_size):
            i = int(torch.randint(len(self.clips), (), generator=g))
            mel = self.clips.mel(i)
            start = random_start(len(mel), v.segment_frames, g)
            wave = crop(self.clips.waveform(i), length, start * self.hop)
            if wave.abs().max() < SILENT and attempt < 19 * v.batch_size:  # a corpus of silence ends, too
                continue
            mels.append(crop(mel, v.segment_frames, start))
            waves.append(wave)
            if len(waves) == v.batch_size:
                break
        return torch.stack(mels), torch.stack(waves)


def train_vocoder(
    recipe: Recipe, clips: ClipSet, mel: MelSpectrogram, init: SpeechT5HifiGan | None = None
) -> SpeechT5HifiGan:
    """Train or resume; return the vocoder.

    Args:
        init: a trained vocoder to start from where there is no state to resume.

    Raises:
        ValueError: `init` is of another shape than the recipe's.
    """
    torch.manual_seed(recipe.seed)
    v = recipe.vocoder
    folder = Path(recipe.run) / "vocoder"
    vocoder = build_vocoder(mel, upsample_initial_channel=v.upsample_initial_channel)
    vocoder.mean.copy_(clips.mel_mean)
    vocoder.scale.copy_(clips.mel_std)
    for weight in (
        p for p in vocoder.parameters() if p.ndim == 3
    ):  # the class starts at std 0.01, from which short runs do not recover
        torch.nn.init.kaiming_normal_(weight, a=0.1)
    torch.nn.init.normal_(vocoder.conv_post.weight, std=0.01)
    optimizer = torch.optim.AdamW(vocoder.parameters(), lr=v.learning_rate, betas=(0.8, 0.99))
    first = 0
    state = load_state(folder / "state.pt")
    if state is not None:
        vocoder.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    elif init is not None:
        load_weights("vocoder", vocoder, init)
    bf16 = cpu_computes_bf16()
    conv_post = vocoder.conv_post.forward

    def conv_post_fp32(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(
            "cpu", enabled=False
        ):  # bf16's rounding would be heard as noise 54 dB below the sound
            return conv_post(x.float())

    vocoder.conv_post.forward = conv_post_fp32
    segments = Segments(clips.train, recipe, mel.config.hop_length)

    def step(n: int) -> float:
        mels, target = segments.draw(n)
        vocoder.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = vocoder(mels)[:, : target.shape[1]]
        loss = MEL_WEIGHT * mel_distance(mel(made), mel(target)) + stft_distance(made, target)
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = v.learning_rate * min(1.0, (n + 1) / 100) * 0.9995 ** (n / 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vocoder.parameters(), 10.0)
        optimizer.step()
        return loss.item()

    def save(n: int) -> None:
        save_state(
            {"step": n, "weights": vocoder.state_dict(), "optimizer": optimizer.state_dict()},
            folder / "state.pt",
        )

    run_steps(
        "vocoder",
        first=first,
        last=v.steps,
        step=step,
        save=save,
        save_every_s=recipe.save_every_s,
        log_path=folder / "loss.tsv",
    )
    del vocoder.conv_post.forward
    return vocoder.eval()
