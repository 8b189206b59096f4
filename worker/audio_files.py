"""Waveforms to files, each marked as generated. The same samples and comment give the same bytes, except in OGG (a random stream number)."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from clipsynth.schemas.generation import Format

CONTAINERS: dict[Format, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "wav_24": ("WAV", "PCM_24"),
    "wav_float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def encode(waveform: np.ndarray, sample_rate: int, output_format: Format, *, comment: str) -> bytes:
    """Return a mono file of a waveform (T,).

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
        sound.write(waveform)
    return _without_time(file.getvalue()) if subtype == "FLOAT" else file.getvalue()


def _without_time(wav: bytes) -> bytes:
    """Set the time in libsndfile's PEAK chunk (id, size, version, time) to 0."""
    at = wav.find(b"PEAK", 12, wav.find(b"data", 12))
    return wav if at < 0 else wav[: at + 12] + bytes(4) + wav[at + 16 :]
