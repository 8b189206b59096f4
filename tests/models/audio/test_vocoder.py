import torch

import models.audio.vocoder as vocoder_module
from models.audio.mel import MelSpectrogram
from models.audio.vocoder import build_vocoder, vocode

MEL = MelSpectrogram()
HOP = MEL.config.hop_length
LEVEL = -3.0


def repeats(waveforms):
    """Return the correlation of waveforms with themselves a frame later, of their middles."""
    middle = waveforms[:, 20 * HOP : -20 * HOP]
    return torch.corrcoef(torch.cat([middle[:, HOP:], middle[:, :-HOP]]))[0, 1].item()


@torch.inference_mode()
def test_a_constant_mel_does_not_repeat_every_frame():
    torch.manual_seed(0)
    vocoder = build_vocoder(MEL, upsample_initial_channel=32).eval()
    vocoder.mean.fill_(LEVEL)
    for weight in vocoder.parameters():  # at first they are so small that biases alone would be heard
        torch.nn.init.normal_(weight, std=0.1)
    still = torch.full((1, 100, MEL.config.n_mels), LEVEL)
    assert repeats(vocoder(still)) > 0.99
    made = vocode(vocoder, still, MEL)
    assert abs(repeats(made)) < 0.5
    assert torch.equal(made, vocode(vocoder, still, MEL))
    assert (MEL(made)[:, 10:90] - still[:, 10:90]).mean().abs() < 0.5


@torch.inference_mode()
def test_a_cpu_makes_few_long_rows_at_a_time(monkeypatch):
    vocoder = build_vocoder(MEL, upsample_initial_channel=16).eval()
    log_mel = torch.randn(5, 60, 64, generator=torch.Generator().manual_seed(0)) - 5
    together, sizes = vocode(vocoder, log_mel, MEL), []
    vocoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(vocoder_module, "CPU_FRAMES", 150)
    assert torch.allclose(vocode(vocoder, log_mel, MEL), together, atol=2e-3)
    assert sizes == [2, 2, 1]
