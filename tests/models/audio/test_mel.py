import librosa
import numpy as np
import pytest
import torch

from models.audio.mel import MelSpectrogram


def test_the_mel_equals_librosas():
    waveform = 0.1 * np.random.default_rng(0).standard_normal(64000).astype(np.float32)
    padded = np.pad(waveform, 432, mode="reflect")
    magnitude = np.abs(librosa.stft(padded, n_fft=1024, hop_length=160, win_length=1024, center=False))
    filters = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=0, fmax=8000)
    golden = np.log(np.maximum(filters @ magnitude, 1e-5)).T
    mel = MelSpectrogram()(torch.from_numpy(waveform)[None])[0].numpy()
    assert mel.shape == (400, 64)
    np.testing.assert_allclose(mel, golden, atol=2e-4)


def test_there_is_a_frame_for_every_whole_hop():
    mel = MelSpectrogram()
    for samples in (8000, 16001, 64159, 64160):
        assert mel(torch.randn(1, samples)).shape[1] == samples // mel.config.hop_length


def test_a_too_short_waveform_is_rejected():
    with pytest.raises(ValueError, match="waveform"):
        MelSpectrogram()(torch.zeros(1, 100))
