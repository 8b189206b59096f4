"""Images and peaks of waveforms."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from clipsynth.schemas.payload import JobPayload
from clipsynth.schemas.prompts import StoredParent
from models.audio.level import fade_ends
from models.audio.mel import MelSpectrogram
from worker.output_files import HEIGHT, MAX_POINTS, encode, faded, peaks_json, spectrogram_png


def log_mel(waveform):
    return MelSpectrogram()(torch.from_numpy(waveform)[None])[0].numpy()


def drawn(waveform):
    image = Image.open(io.BytesIO(spectrogram_png(log_mel(waveform))))
    assert (image.format, image.mode) == ("PNG", "P")
    return np.asarray(image)


def tone(hz, seconds=1.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(16000 * seconds)) / 16000)).astype(np.float32)


def test_a_tone_is_a_line_at_its_height():
    rows = []
    for hz in (300, 3000):
        image = drawn(tone(hz))
        assert image.shape == (HEIGHT, 100)
        assert image.max() > 250
        rows.append(int(image.mean(1).argmax()))
    assert rows[0] > HEIGHT / 2 > rows[1]


def test_time_runs_from_left_to_right():
    image = drawn(np.concatenate([np.zeros(8000, np.float32), tone(1000, 0.5)]))
    assert image[:, :45].max() < image[:, 55:].max()


def test_silence_is_black():
    assert drawn(np.zeros(8000, np.float32)).max() == 0


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 8000, 64_000])
def test_peaks_hold_every_sample(length):
    waveform = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    peaks = json.loads(peaks_json(waveform, 16000))
    pairs = np.array(peaks["data"]).reshape(-1, 2)
    size = peaks["samples_per_pixel"]
    assert peaks["length"] == len(pairs) == -(-length // size) <= MAX_POINTS
    each = np.arange(length) // size
    scaled = np.round(waveform * 32767)
    assert (pairs[each, 0] <= scaled).all()
    assert (scaled <= pairs[each, 1]).all()
    assert {pairs.min(), pairs.max()} == {scaled.min(), scaled.max()}


@pytest.mark.parametrize("samples", [0, 1, 2, 100, 16000])
def test_a_sound_begins_and_ends_in_silence(samples):
    loud = np.full(samples, 0.75, np.float32)
    found = fade_ends(loud, 16000)
    assert (len(found), loud.min(initial=0.75)) == (samples, 0.75)
    n = min(80, samples // 2)
    assert np.all(np.diff(found[: n + 1]) >= 0)
    np.testing.assert_array_equal(found[:n], found[::-1][:n])
    np.testing.assert_array_equal(found[n : samples - n], loud[n : samples - n])
    assert n == 0 or (found[0], found[-1]) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, (0, 0)),
        ({"loop": True}, (0.75, 0.75)),
        ({"parent": {"strength": 0}}, (0.75, 0.75)),
        ({"parent": {"strength": 0.5}}, (0, 0)),
        ({"parent": {"extend_s": 1}}, (0.75, 0)),
    ],
    ids=str,
)
def test_loops_and_parents_keep_their_ends(fields, ends):
    parent = StoredParent.model_construct(**fields["parent"]) if "parent" in fields else None
    payload = JobPayload.model_construct(**{"loop": False} | fields | {"parent": parent})
    found = faded(np.full(16000, 0.75, np.float32), payload, 16000)
    assert (found[0], found[-1]) == ends


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 0.1, 3.0])
def test_samples_are_rounded_as_libsndfile_does(scale):
    waveform = (scale * np.random.default_rng(0).normal(size=4000)).astype(np.float32)
    waveform[:5] = [1, -1, 1 - 2**-24, -2, 2]
    expected = io.BytesIO()
    soundfile.write(expected, waveform, 16000, "PCM_16", format="WAV")
    made = encode(waveform, 16000, "wav", comment="x")
    read = [soundfile.read(io.BytesIO(file), dtype="int16")[0] for file in (made, expected.getvalue())]
    assert (read[0] == read[1]).all()
