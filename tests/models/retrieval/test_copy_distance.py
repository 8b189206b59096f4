import numpy as np
import pytest

from models.retrieval.copy_distance import (
    SLACK,
    Search,
    copy_distance,
    pick,
    pool,
    relative,
    to_other_sources,
)


def noise(seed, frames, bands=8):
    return np.random.default_rng(seed).standard_normal((frames, bands)).astype(np.float32)


def slowly(sounds, train):
    """The definition, one stretch at a time."""
    margin = round(len(sounds[0]) * SLACK / 2)
    found = np.ones((len(sounds), len(train)))
    for n, sound in enumerate(sounds):
        middle = sound[margin : len(sound) - margin].ravel()
        for t, clip in enumerate(train):
            size = len(sound) - 2 * margin
            stretches = (clip[first : first + size].ravel() for first in range(len(clip) - size + 1))
            found[n, t] = 1 - max(np.corrcoef(middle, x)[0, 1] for x in stretches)
    return found


def test_the_batched_search_equals_the_definition():
    train = [noise(n, 50 + n) - 20 * (n == 2) for n in range(5)]
    for frames in (40, 16):
        sounds = [noise(10, frames), train[1][3 : 3 + frames] + 0.5 * noise(11, frames)]
        assert Search(train).distances(sounds) == pytest.approx(slowly(sounds, train), abs=1e-5)


def test_a_shifted_and_louder_copy_is_found():
    train = [noise(n, 100) for n in range(5)]
    found = Search(train).distances([train[3][13:93] + 2.0, noise(9, 80), np.zeros((80, 8))])
    assert found[0].argmin() == 3
    assert found[0, 3] == pytest.approx(0, abs=1e-5)
    assert (found[1] > 0.7).all()
    assert (found[2] == 1).all()


def test_a_sound_longer_than_every_clip_is_compared():
    train = [noise(n, 30) for n in range(3)]
    longer = np.concatenate([noise(7, 10) - 2.0, train[1], noise(8, 10) - 2.0])
    search = Search(train)
    found = search.distances([longer])[0]
    assert found.argmin() == 1
    assert search.distances([train[0]])[0, 0] == pytest.approx(0, abs=1e-5)  # and a short one after it


def test_an_empty_comparison_is_rejected():
    with pytest.raises(ValueError, match="training clips"):
        Search([])
    with pytest.raises(ValueError, match="sounds"):
        Search([noise(0, 10)]).distances([])


def threshold(train, sources, length):
    picked = pick(train, length)
    apart = Search(train).distances([train[i][:length] for i in picked])
    return copy_distance(to_other_sources(apart, picked, sources))


def test_the_copy_threshold_ignores_the_same_source():
    first = [noise(n, 100) for n in range(6)]
    train = first + [m + 0.01 for m in first]  # each clip twice, from one source
    sources = [frozenset({str(i)}) for i in range(6)] * 2
    assert threshold(train, sources, 80) > 0.7
    assert threshold(train, [frozenset({str(i)}) for i in range(12)], 80) < 1e-3
    with pytest.raises(ValueError, match="another source"):
        threshold(train, [frozenset("a")] * 12, 80)


def test_relative_distance_marks_a_copy_not_a_crowd():
    copy, crowd = np.r_[0.01, np.full(60, 0.4)], np.full(61, 0.02)
    far = np.r_[0.2, 0.4, np.full(59, np.inf)]
    assert relative(np.stack([copy, crowd, far])) == pytest.approx(
        [0.01 / (0.01 + 49 * 0.4) * 50, 1.0, 0.2 / 0.3]
    )


def test_pooling_averages_frames_and_bands():
    small = pool(np.arange(24.0).reshape(6, 4), frames=2, bands=2)
    assert small.tolist() == [[2.5, 4.5], [10.5, 12.5], [18.5, 20.5]]
