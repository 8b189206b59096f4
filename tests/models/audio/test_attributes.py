import numpy as np
import pytest
from scipy.signal import chirp

from models.audio.attributes import WINDOW, Scales, by_name, fundamentals, measure

RATE = 16000
TIME = np.arange(3 * RATE) / RATE
NOISE = np.random.default_rng(0).standard_normal(len(TIME)).astype(np.float32) * 0.05


@pytest.mark.parametrize("f0", [60.0, 110.0, 441.3, 987.0, 1900.0])
def test_the_fundamental_of_a_harmonic_tone_is_found(f0):
    tone = sum(np.sin(2 * np.pi * f0 * k * TIME) / k for k in (1, 2, 3))
    found = measure(0.3 * tone + 0.01 * NOISE, RATE)
    assert found["f0_hz"] == pytest.approx(f0, rel=0.01)
    assert found["voicing"] > 0.95


def test_a_missing_fundamental_is_found():
    tone = sum(np.sin(2 * np.pi * 200 * k * TIME) for k in (3, 4, 5))
    assert measure(0.1 * tone, RATE)["f0_hz"] == pytest.approx(200, rel=0.01)


def test_fundamentals_follow_a_glide():
    glide = chirp(TIME, 200, 3, 400)
    frames = np.lib.stride_tricks.sliding_window_view(glide, WINDOW)[::RATE]
    np.testing.assert_allclose(fundamentals(frames, RATE), [202, 269, 336], rtol=0.01)


def test_noise_has_no_pitch_no_onsets_and_a_flat_spectrum():
    found = measure(NOISE, RATE)
    assert found["f0_hz"] == found["voicing"] == 0
    assert found["onsets_per_s"] < 0.5
    assert found["flatness"] > 0.5
    assert found["centroid_hz"] == pytest.approx(4000, rel=0.05)
    assert found["loudness_dbfs"] == pytest.approx(20 * np.log10(0.05), abs=0.1)


@pytest.mark.parametrize("per_s", [1, 4, 8])
def test_bursts_are_counted(per_s):
    bursts = NOISE * 4 * np.exp(-20 * (TIME % (1 / per_s))) + 0.01 * NOISE
    assert measure(bursts, RATE)["onsets_per_s"] == pytest.approx(per_s, abs=0.7)


def test_silent_and_short_sounds_are_measured():
    assert measure(np.zeros(RATE, np.float32), RATE)["loudness_dbfs"] == -120
    assert measure(NOISE[:500], RATE)["loudness_dbfs"] == pytest.approx(-26, abs=1)


def test_a_hiss_has_no_pitch():
    assert "pitch" not in by_name(measure(NOISE, RATE))


def test_scales_convert_values_to_quantiles_and_back():
    scales = Scales.of({"brightness": float(n)} for n in range(101))
    assert list(scales.grids) == ["brightness"]
    assert scales.quantile("brightness", 25.0) == pytest.approx(0.25)
    assert scales.quantile("brightness", 1000.0) == 1
    assert scales.value("brightness", 0.75) == pytest.approx(75)
    again = Scales(scales.to_lists())
    assert again.quantiles({"brightness": 50.0, "pitch": 3.0}) == {"brightness": pytest.approx(0.5)}


def test_a_common_value_has_its_middle_quantile():
    scales = Scales.of({"density": value} for value in [0.0] * 50 + [1.0] * 50)
    assert scales.quantile("density", 0.0) == pytest.approx(0.25, abs=0.02)
    assert scales.quantile("density", 1.0) == pytest.approx(0.75, abs=0.02)
