"""A continuation that is heard as one sound with its parent."""

from __future__ import annotations

import numpy as np
import torch

from models.audio.continuation import without_roughness
from models.audio.mel import MelSpectrogram


def rises(log_mel):
    return log_mel.diff(dim=1).clamp(min=0).mean(-1)[0]


def test_a_mel_of_noise_becomes_smooth():
    noise = np.random.default_rng(0).normal(size=16000).astype(np.float32) / 10
    log_mel = MelSpectrogram()(torch.from_numpy(noise)[None])
    smooth = without_roughness(log_mel)
    assert smooth.shape == log_mel.shape
    assert rises(smooth).mean() < 0.3 * rises(log_mel).mean()
    assert abs(smooth.mean() - log_mel.mean()) < 0.2


def test_a_step_stays_where_it_is():
    log_mel = torch.full((1, 40, 2), -9.0)
    log_mel[:, 17:] = 0.0
    torch.testing.assert_close(without_roughness(log_mel), log_mel)
