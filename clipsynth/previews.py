"""The spectrogram and the peaks of an output, stored as one file.

One file, because each file costs the worker as much time as the sound's own.
"""

from __future__ import annotations

import struct

from clipsynth.errors import NotFound
from clipsynth.storage import Storage, peaks_key, spectrogram_key, views_key

_LENGTH = struct.Struct(">I")


def put_views(storage: Storage, generation_id: str, n: int, *, spectrogram: bytes, peaks: bytes) -> None:
    """Store the views of output n; raises as `Storage.put`."""
    storage.put(views_key(generation_id, n), _LENGTH.pack(len(spectrogram)) + spectrogram + peaks)


def get_spectrogram(storage: Storage, generation_id: str, n: int) -> bytes:
    """Return output n's PNG; raises as `Storage.get`."""
    packed = _get(storage, generation_id, n)
    return storage.get(spectrogram_key(generation_id, n)) if packed is None else packed[0]


def get_peaks(storage: Storage, generation_id: str, n: int) -> bytes:
    """Return output n's peaks as JSON; raises as `Storage.get`."""
    packed = _get(storage, generation_id, n)
    return storage.get(peaks_key(generation_id, n)) if packed is None else packed[1]


def _get(storage: Storage, generation_id: str, n: int) -> tuple[bytes, bytes] | None:
    """Return both; None where they are two files, as they were once."""
    try:
        packed = storage.get(views_key(generation_id, n))
    except NotFound:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(packed)[0]
    return packed[_LENGTH.size : end], packed[end:]
