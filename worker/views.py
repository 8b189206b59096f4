"""What of a sound can be seen: a picture of its spectrogram, and its peaks for players to draw. Made once, beside the sound."""

from __future__ import annotations

import io
import json
import math

import numpy as np
from PIL import Image

RANGE_DB = 80.0  # below the loudest value, where the picture is black
HEIGHT = 128
MAX_POINTS = 1000
_COLOURS = np.interp(  # from silent to loud; evenly spaced anchors in RGB
    np.linspace(0, 4, 256)[:, None].repeat(3, 1) + np.arange(3) * 5,
    np.arange(15),
    np.array(
        [(0, 0, 8), (70, 16, 110), (190, 45, 90), (250, 140, 40), (255, 250, 200)], dtype=np.float64
    ).T.flatten(),
)
_PALETTE = _COLOURS.round().astype(np.uint8).tobytes()


def spectrogram_png(log_mel: np.ndarray) -> bytes:
    """Return a PNG of a log-mel (F, M) in nepers: a column per frame, low bands at the bottom, the loudest value brightest."""
    range_np = RANGE_DB * math.log(10) / 20
    level = np.clip((log_mel - log_mel.max()) / range_np + 1, 0, 1)
    if np.ptp(log_mel) == 0:  # silence has no loudest value
        level = np.zeros_like(level)
    image = Image.fromarray((255 * level.T[::-1]).round().astype(np.uint8), "L")
    image = image.resize((image.width, HEIGHT), Image.Resampling.BILINEAR)
    image.putpalette(_PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def peaks_json(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Return the minima and maxima of up to 1,000 stretches of a waveform (T,) in [-1, 1], in the JSON of BBC's audiowaveform (version 2, 16 bits)."""
    size = max(1, math.ceil(len(waveform) / MAX_POINTS))
    values = np.clip(waveform * 32767, -32768, 32767).round().astype(np.int64)
    starts = np.arange(0, len(values), size)
    pairs = np.stack([np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)], axis=1)
    fields = {
        "version": 2,
        "channels": 1,
        "sample_rate": sample_rate,
        "samples_per_pixel": size,
        "bits": 16,
        "length": len(pairs),
        "data": pairs.flatten().tolist(),
    }
    return json.dumps(fields, separators=(",", ":")).encode()
