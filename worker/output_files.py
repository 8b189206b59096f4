"""The files of an output: audio in every format, a spectrogram image, and waveform peaks for a player.

Equal samples and comment give equal bytes, except in OGG, whose stream number is random.
"""

from __future__ import annotations

import io
import json
import math

import numpy as np
import soundfile
from PIL import Image

from clipsynth.schemas.generation import Format, JobPayload
from models.audio.level import fade_ends

CONTAINERS: dict[Format, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "wav_24": ("WAV", "PCM_24"),
    "wav_float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
# The spectrogram is black this far below its loudest value.
RANGE_DB = 80.0
HEIGHT = 128
MAX_POINTS = 1000
# RGB from silent to loud, interpolated to 256 colours.
_ANCHORS = [(0, 0, 8), (70, 16, 110), (190, 45, 90), (250, 140, 40), (255, 250, 200)]
_COLOURS = [
    np.interp(np.linspace(0, 4, 256), np.arange(5), channel) for channel in zip(*_ANCHORS, strict=True)
]
_PALETTE = np.stack(_COLOURS, axis=1).round().astype(np.uint8).tobytes()


def encode(waveform: np.ndarray, sample_rate: int, output_format: Format, *, comment: str) -> bytes:
    """Encode a waveform (T,) as a mono file with a comment.

    Raises:
        ValueError: the waveform is not finite.
    """
    if not np.isfinite(waveform).all():
        raise ValueError("the model produced a waveform that is not finite")
    container, subtype = CONTAINERS[output_format]
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", sample_rate, 1, subtype=subtype, format=container) as sound:
        sound.software = "CLIPSynth"
        sound.comment = comment
        sound.write(_pcm16(waveform) if (container, subtype) == ("WAV", "PCM_16") else waveform)
    return _without_time(file.getvalue()) if subtype == "FLOAT" else file.getvalue()


def _pcm16(waveform: np.ndarray) -> np.ndarray:
    """Return the 16-bit samples that libsndfile makes of float32 ones, which takes it six times as long."""
    scaled = np.rint(waveform.astype(np.float32, copy=False) * np.float32(2**31))
    # The largest float32 below 2^31.
    clipped: np.ndarray = np.clip(scaled, -(2.0**31), 2.0**31 - 128).astype(np.int32) >> 16
    return clipped.astype(np.int16)


def faded(waveform: np.ndarray, payload: JobPayload, sample_rate: int) -> np.ndarray:
    """Return a waveform (T,) with short fades, but none at the ends of a loop or of its parent's sound."""
    if payload.loop or payload.is_copy:
        return waveform
    is_continuation = payload.parent is not None and payload.parent.extend_s is not None
    return fade_ends(waveform, sample_rate, begin=not is_continuation)


def decode(data: bytes, sample_rate: int) -> np.ndarray:
    """Return the waveform (T,) of a mono file that `encode` made.

    Raises:
        ValueError: it cannot be read, or has another sample rate.
    """
    try:
        waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError("the parent's sound cannot be read") from error
    if rate != sample_rate or waveform.ndim != 1:
        raise ValueError(f"the parent's sound has {rate} Hz, the model makes {sample_rate}")
    return np.asarray(waveform)


def _without_time(wav: bytes) -> bytes:
    """Set the time in libsndfile's PEAK chunk (id, size, version, time) to 0."""
    at = wav.find(b"PEAK", 12, wav.find(b"data", 12))
    return wav if at < 0 else wav[: at + 12] + bytes(4) + wav[at + 16 :]


def spectrogram_png(log_mel: np.ndarray) -> bytes:
    """Render a log-mel (F, M), in nepers, as a PNG: one column per frame, low bands at the bottom."""
    range_np = RANGE_DB * math.log(10) / 20
    loudest = log_mel.max()
    silent = log_mel.min() == loudest
    shades = np.zeros_like(log_mel) if silent else (log_mel - loudest) * (255 / range_np) + 255
    image = Image.fromarray(shades.T[::-1].clip(0, 255).round().astype(np.uint8))
    image = image.resize((image.width, HEIGHT), Image.Resampling.BILINEAR)
    image.putpalette(_PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def peaks_json(waveform: np.ndarray, sample_rate: int) -> bytes:
    """Return minima and maxima of up to 1,000 equal stretches of a waveform (T,) in [-1, 1].

    The format is the JSON of BBC's audiowaveform, version 2, 16 bits.
    """
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
