import pytest
import torch

from models.audio.corrections import add_noise_texture, correct_to_mel
from models.audio.mel import MelSpectrogram

RATE = 16000
MEL = MelSpectrogram()
NOISE = 0.1 * torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(1))
MIDDLE = slice(50, 150)  # frames


def motion(log_mel):
    """Return how far bands move from frame to frame, in nepers."""
    return log_mel[:, MIDDLE].diff(dim=1).square().mean().sqrt().item()


def still(waveform):
    """Return the mel of a waveform as a denoiser that predicts means has it."""
    log_mel = MEL(waveform)
    return log_mel.mean(1, keepdim=True).expand_as(log_mel)


def tone(frequency):
    return 0.2 * torch.sin(2 * torch.pi * frequency * torch.arange(2 * RATE) / RATE)[None]


def test_a_smooth_mel_gets_noise_at_its_levels():
    rest = still(NOISE)
    assert motion(rest) == pytest.approx(0, abs=1e-6)
    grained = add_noise_texture(rest, MEL)
    # The fit gives a part of what it is asked for; all of it would be what noise has.
    assert motion(MEL(NOISE)) < motion(grained) < 2 * motion(MEL(NOISE))
    torch.testing.assert_close(grained.mean(1), rest.mean(1), atol=0.15, rtol=0)


def test_a_sound_fitted_to_the_result_varies_as_noise():
    rest, other = still(NOISE), 0.1 * torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(2))
    smooth, grained = (
        MEL(correct_to_mel(other, target, MEL)) for target in (rest, add_noise_texture(rest, MEL))
    )
    assert motion(smooth) < 0.75 * motion(MEL(NOISE))
    assert motion(grained) == pytest.approx(motion(MEL(NOISE)), rel=0.2)


def test_a_less_smooth_mel_gets_less_noise():
    rest, noise = still(NOISE), MEL(NOISE)
    little = rest + 0.3 * (noise - rest)
    added = (add_noise_texture(little, MEL) - little)[:, MIDDLE].std()
    assert 0 < added < (add_noise_texture(rest, MEL) - rest)[:, MIDDLE].std()


def test_recorded_noise_is_unchanged():
    assert torch.equal(add_noise_texture(MEL(NOISE), MEL), MEL(NOISE))


def test_a_tone_is_unchanged():
    log_mel = MEL(tone(697) + 0.001 * NOISE)
    loudest = log_mel.mean((0, 1)).argmax()
    near = slice(loudest - 1, loudest + 2)
    assert torch.equal(add_noise_texture(log_mel, MEL)[:, :, near], log_mel[:, :, near])


def test_rows_are_independent_and_deterministic():
    rows = torch.cat([still(NOISE), MEL(tone(440)), MEL(NOISE)])
    together = add_noise_texture(rows, MEL)
    assert torch.equal(together, add_noise_texture(rows, MEL))
    alone = torch.cat([add_noise_texture(rows[i : i + 1], MEL) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_rounding_does_not_change_the_texture():
    rest = still(NOISE)
    g = torch.Generator().manual_seed(2)
    for share in (0.0, 0.5, 0.55, 0.6, 0.65, 0.7):
        log_mel = rest + share * (MEL(NOISE) - rest)
        other = log_mel + 1e-5 * torch.randn(log_mel.shape, generator=g)
        torch.testing.assert_close(
            add_noise_texture(other, MEL), add_noise_texture(log_mel, MEL), atol=1e-3, rtol=0
        )


def test_a_sound_may_be_longer_than_the_stored_noise():
    log_mel = MEL(NOISE).mean(1, keepdim=True).expand(1, 1500, -1)
    assert motion(add_noise_texture(log_mel, MEL)[:, 1200:1400]) > 0.1
