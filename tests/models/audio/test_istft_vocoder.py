import json

import numpy as np
import pytest
import torch

from models import BundleError, ClipSynthPipeline
from models.audio.corrections import find_harmonics
from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import MelSpectrogram

MEL = MelSpectrogram()
TINY = {"dim": 16, "depth": 1, "noise_channels": 4}


def vocoder(**settings):
    torch.manual_seed(0)
    return IstftVocoder(**TINY | settings).eval()


@torch.inference_mode()
def test_a_spectrum_comes_back_as_the_same_waveform():
    network, sound = vocoder(), torch.randn(2, 20 * 160, generator=torch.Generator().manual_seed(0))
    back = network._waveform(network._spectrum(sound), 20 * 160)
    torch.testing.assert_close(back, sound, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_equal_mels_give_equal_sounds_alone_and_in_a_batch():
    network = vocoder()
    mels = torch.randn(3, 30, 64, generator=torch.Generator().manual_seed(0)) - 4
    made = network(mels)
    assert made.shape == (3, 4800)
    assert made.dtype == torch.float32
    assert torch.equal(made, network(mels))
    torch.testing.assert_close(network(mels[1:2]), made[1:2], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_mel_that_stands_still_does_not_repeat():
    made = vocoder()(torch.full((1, 100, 64), -3.0))[:, 3200:-3200]
    repeats = torch.corrcoef(torch.cat([made[:, 160:], made[:, :-160]]))[0, 1]
    assert repeats.abs() < 0.5


@torch.inference_mode()
def test_the_tones_of_the_mel_are_heard_at_their_pitch():
    seconds = torch.arange(16000) / 16000
    tone = 0.3 * torch.cos(2 * torch.pi * 2230 * seconds)[None]
    log_mel = MEL(tone)
    found = find_harmonics(log_mel, MEL).sinusoids
    spectrum = torch.fft.rfft(found[0, 2000:14000]).abs()
    assert spectrum.argmax().item() * 16000 / 12000 == pytest.approx(2230, abs=15)
    network = vocoder()
    torch.nn.init.zeros_(network.head.weight)
    network.head.bias.copy_(torch.tensor([-9.0, 0.0, -9.0, 0.0]).repeat_interleave(321))
    torch.testing.assert_close(network(log_mel), found, atol=0.05, rtol=0.05)


def test_weights_are_saved_and_loaded(tmp_path):
    network = vocoder(with_sinusoids=False)
    network.mean.fill_(-4.0)
    network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = IstftVocoder.from_pretrained(tmp_path).eval()
    assert (loaded.config.model_in_dim, loaded.config.sampling_rate, loaded.config.hop_length) == (
        64,
        16000,
        160,
    )
    mel = torch.full((1, 10, 64), -3.0)
    with torch.inference_mode():
        assert torch.equal(loaded(mel), network(mel))


def test_half_precision_changes_little():
    network, mel = vocoder(), torch.randn(1, 20, 64) - 4
    with torch.inference_mode():
        full = network(mel)
        half = network.half()(mel.half())
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.05 * full.abs().max()


def test_a_window_that_is_no_multiple_of_the_hop_is_refused():
    with pytest.raises(ValueError, match="multiple of `hop_length` 160"):
        IstftVocoder(n_fft=500)


def test_a_pipeline_saves_and_loads_it(tiny_pipeline, tmp_path):
    parts = {
        name: getattr(tiny_pipeline, name) for name in ("encoder", "condition_encoder", "denoiser", "mel")
    }
    pipe = ClipSynthPipeline(**parts, vocoder=vocoder())
    pipe.manifest = tiny_pipeline.manifest
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vocoder"] == [
        "models.parts",
        "IstftVocoder",
    ]
    loaded = ClipSynthPipeline.from_pretrained(tmp_path)
    made = [
        p("a dog", duration_s=0.5, generator=torch.Generator().manual_seed(0)).audios[0]
        for p in (pipe, loaded)
    ]
    np.testing.assert_allclose(*made, atol=1e-4, rtol=0)
    assert made[0].std() > 0


def test_a_vocoder_of_another_hop_does_not_fit(tiny_pipeline):
    parts = {
        name: getattr(tiny_pipeline, name) for name in ("encoder", "condition_encoder", "denoiser", "mel")
    }
    with pytest.raises(BundleError, match=r"vocoder: does not fit .* 80 samples per frame, they have 160"):
        ClipSynthPipeline(**parts, vocoder=vocoder(hop_length=80))
