"""Four kinds of synthetic sounds, each with varied pitch, rhythm and level; and ways to spoil them."""

import numpy as np
from scipy.signal import butter, sosfilt

RATE = 16000
KINDS = ("hum", "chirp", "clicks", "gusts")


def synthetic(kind, rng, seconds=1.0):
    t = np.arange(round(seconds * RATE)) / RATE
    hz, beat = rng.uniform(150, 400), rng.uniform(3, 8)
    phase = rng.uniform(0, 2 * np.pi)
    if kind == "hum":
        x = sum(np.sin(2 * np.pi * k * hz * t + phase) / k for k in (1, 2, 3)) * (
            1 + 0.5 * np.sin(2 * np.pi * beat * t)
        )
    elif kind == "chirp":
        x = np.sin(2 * np.pi * 4 * hz * t + 20 * np.sin(2 * np.pi * beat * t + phase))
    elif kind == "clicks":
        x = np.exp(-((t * beat + phase) % 1) * 30) * rng.standard_normal(len(t))
    else:
        noise = sosfilt(butter(2, [hz, 4 * hz], "band", fs=RATE, output="sos"), rng.standard_normal(len(t)))
        x = noise * (1.2 + np.sin(2 * np.pi * 0.3 * beat * t + phase))
    x = x + 1e-3 * rng.standard_normal(len(t))
    return (0.5 * x / np.abs(x).max()).astype(np.float32)


def collection(per_kind, seed, seconds=1.0):
    rng = np.random.default_rng(seed)
    labels = [kind for kind in KINDS for _ in range(per_kind)]
    return [synthetic(kind, rng, seconds) for kind in labels], labels


def noisy(sounds, amount):
    rng = np.random.default_rng(9)
    return [(w + amount * rng.standard_normal(len(w))).astype(np.float32) for w in sounds]


def muffled(sounds, hz):
    sos = butter(6, hz, fs=RATE, output="sos")
    return [sosfilt(sos, w).astype(np.float32) for w in sounds]


def shuffled(sounds, pieces):
    rng = np.random.default_rng(9)
    found = []
    for w in sounds:
        parts = np.split(w, np.linspace(0, len(w), pieces + 1).astype(int)[1:-1])
        found.append(np.concatenate([parts[i] for i in rng.permutation(pieces)]))
    return found
