"""Sounds of two systems, to be rated."""

import csv

import numpy as np
import soundfile

RATE = 16000


def write_sound(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "PCM_16" if path.suffix == ".flac" else "FLOAT"
    soundfile.write(path, np.asarray(samples, np.float32), RATE, subtype=subtype)


def tone(amplitude, seconds=0.5):
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


def write_manifest(folder, rows):
    with (folder / "manifest.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("system", "query", "file"), *rows])
