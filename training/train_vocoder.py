"""Train the vocoder on the clips' own sound: log-mel and multi-resolution STFT distances (Yamamoto et al. 2020, eq. 5-7)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import SpeechT5HifiGan

from models.mel import MelSpectrogram
from models.vocoder import build_vocoder
from training.data import ClipSet, random_start
from training.loop import load_state, load_weights, run_steps, save_state
from training.recipe import Recipe

RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # n_fft, hop, window in samples
MEL_WEIGHT = 2.0


def stft_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return spectral convergence plus log-magnitude L1 of waveforms (B, T), averaged over `RESOLUTIONS`."""
    total = x.new_zeros(())
    for n_fft, hop, window in RESOLUTIONS:
        a, b = (
            torch.stft(w, n_fft, hop, window, torch.hann_window(window), return_complex=True)
            .abs()
            .clamp(min=1e-5)
            for w in (x, y)
        )
        total = total + torch.linalg.norm(b - a) / torch.linalg.norm(b) + F.l1_loss(a.log(), b.log())
    return total / len(RESOLUTIONS)


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
    frames = torch.cat([clip.mel for clip in clips.train])
    vocoder.mean.copy_(frames.mean(0))
    vocoder.scale.copy_(frames.std(0))
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
    hop = mel.config.hop_length
    length = v.segment_frames * hop

    def step(n: int) -> float:
        g = torch.Generator().manual_seed(recipe.seed * 1_000_003 + n)
        picks = torch.randint(len(clips.train), (v.batch_size,), generator=g).tolist()
        waves, mels = [], []
        for clip in (clips.train[i] for i in picks):
            start = random_start(len(clip.mel), v.segment_frames, g)
            mels.append(clip.mel[start : start + v.segment_frames])
            waves.append(
                F.pad(
                    clip.waveform[start * hop : start * hop + length],
                    (0, max(0, length - len(clip.waveform) + start * hop)),
                )
            )
        target = torch.stack(waves)
        vocoder.train()
        made = vocoder(torch.stack(mels))[:, :length]
        loss = MEL_WEIGHT * F.l1_loss(mel(made), mel(target)) + stft_distance(made, target)
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = v.learning_rate * min(1.0, (n + 1) / 100) * 0.9995 ** (n / 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vocoder.parameters(), 10.0)
        optimizer.step()
        return float(loss)

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
    return vocoder.eval()
