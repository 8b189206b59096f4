import numpy as np
import pytest

from models.media.video import AudioTrack, Damage, Frame, VideoError
from training.prepare.windows import cut_windows

RATE = 16000


def cut(items, clip_s=1.0, notes=None):
    return cut_windows(items, sample_rate=RATE, clip_s=clip_s, notes=[] if notes is None else notes)


def sounds(waveform, start_s=0.0, step=1000):
    return [AudioTrack(start_s + i / RATE, waveform[i : i + step]) for i in range(0, len(waveform), step)]


def frames(*times):
    return [Frame(t, f"image {t}") for t in times]


def test_windows_cover_the_sound_and_take_the_frames_on_screen():
    waveform = np.random.default_rng(0).standard_normal(round(2.7 * RATE)).astype(np.float32)
    items = sorted(sounds(waveform) + frames(0.0, 0.5, 1.5, 2.5), key=lambda item: item.time_s)
    windows = list(cut(items))
    np.testing.assert_array_equal(np.concatenate([w.waveform for w in windows]), waveform)
    assert [[round(f.time_s, 3) for f in w.frames] for w in windows] == [[0.0, 0.5], [-0.5, 0.5], [-0.5, 0.5]]
    assert [w.start_s for w in windows] == [0.0, 1.0, 2.0]


def test_the_order_of_streams_in_the_file_does_not_matter():
    waveform = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    orders = [
        sounds(waveform) + frames(0.2, 1.2, 2.2),
        frames(0.2, 1.2, 2.2) + sounds(waveform),
    ]
    results = [[(w.start_s, [f.image for f in w.frames]) for w in cut(order)] for order in orders]
    assert (
        results[0]
        == results[1]
        == [
            (0.0, ["image 0.2"]),
            (1.0, ["image 0.2", "image 1.2"]),
            (2.0, ["image 1.2", "image 2.2"]),
        ]
    )


def test_frames_are_timed_by_the_sounds_own_clock():
    waveform = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    (window,) = cut(sounds(waveform, start_s=10.0) + frames(10.0, 11.0), clip_s=2.0)
    assert [f.time_s for f in window.frames] == [0.0, 1.0]


def test_silence_and_scraps_are_left_out():
    loud = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    items = sounds(np.concatenate([loud, 0 * loud, loud, loud[: RATE // 4]])) + frames(0.0)
    assert [w.start_s for w in cut(items)] == [0.0, 2.0]
    for bad, reason in ((0 * loud, "silent"), (loud[:1000], "shorter")):
        with pytest.raises(VideoError, match=reason):
            list(cut(sounds(bad) + frames(0.0)))
    with pytest.raises(VideoError, match="no image"):
        list(cut(sounds(loud)))


def test_windows_with_absurd_samples_are_left_out():
    wave = np.random.default_rng(0).uniform(-1, 1, 4 * RATE).astype(np.float32)
    wave[RATE + 5], wave[2 * RATE + 5] = np.nan, 1e29
    notes = []
    kept = cut(sounds(wave) + frames(0.0), notes=notes)
    assert [w.start_s for w in kept] == [0.0, 3.0]
    assert notes == [
        "samples that are not finite from 1 s on",
        "samples up to 1e+29 times full scale from 2 s on",
    ]
    with pytest.raises(VideoError, match="not finite from 0 s on"):
        list(cut(sounds(wave * np.float32(np.inf)) + frames(0.0)))


def test_damage_is_noted():
    wave = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    notes = []
    assert len(list(cut([*sounds(wave), *frames(0.0), Damage("2 packets")], notes=notes))) == 1
    assert notes == ["2 packets"]
