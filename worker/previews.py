"""What of a sound can be seen: an image of its spectrogram, and its peaks for players to draw. Made once, beside the sound."""

from __future__ import annotations

import json
import math
import struct
import zlib

import numpy as np
from PIL import Image

RANGE_DB = 80.0  # below the loudest value, where the image is black
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
    loudest = log_mel.max()
    silent = log_mel.min() == loudest  # silence has no loudest value
    shades = np.zeros_like(log_mel) if silent else (log_mel - loudest) * (255 / range_np) + 255
    image = Image.fromarray(shades.T[::-1].clip(0, 255).round().astype(np.uint8))
    image = image.resize((image.width, HEIGHT), Image.Resampling.BILINEAR)
    return _png(np.asarray(image))


def _png(pixels: np.ndarray) -> bytes:
    """Return the PNG of pixels (H, W) of the palette (ISO/IEC 15948). Each is written as the difference to its left neighbour, in runs and
    Huffman codes alone: less than a quarter of the time that Pillow takes, which writes palette images unfiltered, and a third smaller.
    """
    height, width = pixels.shape
    lines = np.empty((height, 1 + width), np.uint8)
    lines[:, 0] = 1  # the filter "Sub"
    lines[:, 1] = pixels[:, 0]
    np.subtract(pixels[:, 1:], pixels[:, :-1], out=lines[:, 2:])
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits, of a palette
    chunks = [
        (b"IHDR", header),
        (b"PLTE", _PALETTE),
        (b"IDAT", packer.compress(lines.tobytes()) + packer.flush()),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def peaks_json(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Return the minima and maxima of up to 1,000 stretches of a waveform (T,) in [-1, 1], in the JSON of BBC's audiowaveform (version 2, 16 bits)."""
    size = max(1, math.ceil(len(waveform) / MAX_POINTS))
    values = np.rint(np.clip(waveform * 32767, -32768, 32767)).astype(np.int32)
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
