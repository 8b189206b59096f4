from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.baselines.wav2clip import HOP, N_FFT, Wav2Clip, load_wav2clip
from tests.support.wav2clip_weights import published


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Wav2Clip().eval()


def test_published_names_load_as_pt_and_as_safetensors(model, tmp_path):
    torch.save(published(model), tmp_path / "a.pt")
    save_file(published(model)["state_dict"], tmp_path / "a.safetensors")
    sounds = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(sounds)
    for name in ("a.pt", "a.safetensors"):
        loaded = load_wav2clip(tmp_path / name)
        assert not loaded.training
        torch.testing.assert_close(loaded(sounds), expected)
    assert expected.shape == (2, 512)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(2))


def test_the_network_sees_the_standardised_log_power_spectrum(model):
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    seen = []
    handle = model.trunk.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        together = model(torch.from_numpy(np.stack([sound, 0.01 * sound])))
        alone = model(torch.from_numpy(sound)[None])
    handle.remove()
    padded = np.pad(sound.astype(np.float64), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = np.sin(np.pi * np.arange(N_FFT) / N_FFT) ** 2
    logs = np.log(np.abs(np.fft.rfft(frames * window)).T ** 2 + 1e-7)
    expected = (logs - logs.mean()) / logs.std(ddof=1)
    np.testing.assert_allclose(seen[0][0, 0].numpy(), expected, atol=2e-3)
    torch.testing.assert_close(together[:1], alone)  # a clip's scale is its own, not its batch's


class Foreign:
    pass


def test_other_files_are_rejected_by_name(model, tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        load_wav2clip(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"state_dict": {}, "options": Foreign()}, tmp_path / "code.pt")
    for name in ("text.pt", "text.safetensors", "code.pt"):
        with pytest.raises(ValueError, match=r"cannot be read as plain tensors.*state_dict"):
            load_wav2clip(tmp_path / name)
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    half = published(model)
    half["state_dict"]["audio_encoder.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(half, tmp_path / "colours.pt")
    for name in ("other.pt", "list.pt", "colours.pt"):
        with pytest.raises(ValueError, match="does not hold Wav2CLIP's weights"):
            load_wav2clip(tmp_path / name)
