"""Compare vocoders of bundles with Griffin-Lim on real mels, by multi-resolution STFT distance.

python -m benchmarks.model.vocoder VIDEOS checkpoints/demo [--iterations 32]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import torch
import typer

from models.audio.level import level
from models.audio.mel import MelSpectrogram
from models.audio.vocoder import load_vocoder, vocode
from models.media.video import VIDEO_SUFFIXES, read_video
from training.vocoder.train import mel_distance, stft_distance

SECONDS = 4


def griffin_lim(mel: MelSpectrogram, iterations: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from log-mels (1, F, M) to waveforms (1, T).

    Non-negative least squares, then phases by fast Griffin-Lim (Perraudin et al. 2013).
    """
    c = mel.config
    # librosa centres frame i on sample i * hop; ours on i * hop + hop / 2
    lead = c.hop_length // 2

    def invert(log_mel: torch.Tensor) -> torch.Tensor:
        magnitude = librosa.feature.inverse.mel_to_stft(
            log_mel[0].exp().T.numpy(), sr=c.sample_rate, n_fft=c.n_fft, power=1.0, fmin=c.f_min, fmax=c.f_max
        )
        frames = {"hop_length": c.hop_length, "win_length": c.win_length, "n_fft": c.n_fft}
        wave = librosa.griffinlim(magnitude, n_iter=iterations, random_state=0, **frames)
        return torch.from_numpy(np.pad(wave, (lead, c.hop_length))).float()[None]

    return invert


@torch.no_grad()
def main(videos: Path, vocoders: list[Path], iterations: int = 32) -> None:
    """Print distances of the vocoders of bundles and of Griffin-Lim on the sounds of videos."""
    mel = MelSpectrogram()
    rate = mel.config.sample_rate
    files = sorted(p for p in videos.rglob("*") if p.suffix in VIDEO_SUFFIXES)
    waves = [level(read_video(f, sample_rate=rate).waveform)[0][: SECONDS * rate] for f in files]
    targets = [torch.from_numpy(w).float()[None] for w in waves]
    systems = {f"Griffin-Lim, {iterations} iterations": griffin_lim(mel, iterations)}
    for path in vocoders:
        alone = load_vocoder(path / "vocoder")
        systems |= {f"{path}, not corrected": alone, f"{path}": partial(vocode, alone, mel=mel)}
    print("| vocoder | STFT distance | 95 % interval | mel distance | s per clip |\n|---|---:|---|---:|---:|")
    for name, invert in systems.items():
        stfts, mels, started = [], [], time.perf_counter()
        made = [invert(mel(target)) for target in targets]
        seconds = (time.perf_counter() - started) / len(targets)
        for wave, target in zip(made, targets, strict=True):
            length = min(wave.shape[1], target.shape[1])
            wave, target = wave[:, :length], target[:, :length]
            stfts.append(stft_distance(wave, target).item())
            mels.append(mel_distance(mel(wave), mel(target)).item())
        mean, half = np.mean(stfts), 1.96 * np.std(stfts) / len(stfts) ** 0.5
        distances = f"{mean:.3f} | {mean - half:.3f}–{mean + half:.3f} | {np.mean(mels):.3f}"
        print(f"| {name} | {distances} | {seconds:.2f} |")
    print(f"\nN = {len(targets)} clips of {SECONDS} s")


if __name__ == "__main__":
    typer.run(main)
