import numpy as np
import pytest
import torch

from models.audio.mel import MelSpectrogram
from models.retrieval.thumbnails import Thumbnails, layouts


def bursts(seed, seconds=2.0):
    """A sound (T,) of filtered noise that comes and goes."""
    rng = np.random.default_rng(seed)
    n = round(seconds * 16000)
    loud = np.interp(np.arange(n) / 2000, np.arange(n // 2000 + 2), rng.random(n // 2000 + 2))
    tone = np.sin(2 * np.pi * np.cumsum(rng.uniform(200, 4000, n // 4000 + 1).repeat(4000)[:n]) / 16000)
    return (0.4 * loud * tone).astype(np.float32)


@pytest.fixture(scope="module")
def mels():
    mel = MelSpectrogram()
    return [mel(torch.from_numpy(bursts(n))[None])[0].numpy() for n in range(40)]


@pytest.fixture(scope="module")
def images(mels):
    return Thumbnails.of(mels, [frozenset({str(n)}) for n in range(40)], frame_rate=100.0)


def test_images_find_a_copy_wherever_it_begins(images):
    mel = MelSpectrogram()
    for first in (0, 1234, 4321):  # between two frames of an image too
        copied = mel(torch.from_numpy(bursts(17)[first : first + 24000])[None])[0].numpy()
        [(number, distance), (_, second)] = images.nearest(copied, 2)
        assert number == 17
        assert distance < 0.02 < second
        assert distance < images.copy_distance(1.5)
    fresh = mel(torch.from_numpy(bursts(99)[:24000])[None])[0].numpy()
    assert images.nearest(fresh, 1)[0][1] > images.copy_distance(1.5)


def test_images_are_small_and_hold_no_sound(images):
    assert images.small.dtype == torch.int8
    assert images.small.shape == (40, 20, 32)  # 10 frames a second


def test_the_coarse_search_misses_no_nearer_clip(images, mels):
    for mel in mels[:5]:
        sound = mel[30:180]
        whole = images._search.distances(layouts(sound)).min(0)
        assert images.nearest(sound, 1)[0] == (whole.argmin(), pytest.approx(whole.min(), abs=1e-6))


def test_the_copy_threshold_depends_on_the_length(images, mels):
    assert images.copies[:, 0].tolist() == [0.5, 1.0, 2.0]
    assert images.copy_distance(0.5) < images.copy_distance(0.75) < images.copy_distance(2.0)
    assert images.copy_distance(9.0) == images.copy_distance(2.0)
    alike = Thumbnails.of(mels[:3], [frozenset("a")] * 3, frame_rate=100.0)
    assert alike.copy_distance(1.0) is None


def test_clips_of_other_lengths_and_silence_have_images(mels):
    short = [mels[0], mels[1][:60], np.full((150, 64), -11.5, np.float32)]
    images = Thumbnails.of(short, [frozenset({str(n)}) for n in range(3)], frame_rate=100.0)
    assert (images.small[2] == 0).all()
    assert images.nearest(mels[1][:60], 3)[0] == (1, pytest.approx(0, abs=0.01))
    assert len(images.nearest(mels[1], 9)) == 3
