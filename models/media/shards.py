"""Shards of features: WebDataset tar files with an index of offsets, so that one read gets any clip.

Members of clip `key` in `shards/NNNNNN.tar`: `key.json` (metadata), `key.waveform.npy` (T,) int16,
`key.mel.npy` (F, n_mels) fp16, `key.embeds.npy` (K, D) fp16, one row per frame, and with captions
`key.captions.npy` (C, D) fp16.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.bundle import file_sha256

END = bytes(1024)  # of a tar file


def write_members(
    file: BinaryIO, key: str, metadata: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, int]]:
    """Append the members of a clip to a tar file; return {array name: (offset, size) in bytes}."""
    _add(file, f"{key}.json", json.dumps(metadata, sort_keys=True).encode())
    places = {}
    for name, array in arrays.items():
        data = io.BytesIO()
        np.save(data, array, allow_pickle=False)
        places[name] = _add(file, f"{key}.{name}.npy", data.getvalue())
    return places


def _add(file: BinaryIO, name: str, data: bytes) -> tuple[int, int]:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    file.write(member.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
    return offset, len(data)


def shard_hash(name: str) -> str:
    """Return the start of the sha256 in a shard's name `NNNNNN-HASH.tar`; "" without one."""
    return name.removesuffix(".tar").partition("-")[2]


class ShardReader:
    """Random access to arrays of shards in one folder. Safe for several threads and after a fork."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.damaged = folder, ""

    def array(self, line: Mapping[str, Any], name: str) -> np.ndarray:
        """Return an array of a clip by its line of the index.

        The line names the shard, and in `shards` another shard for an array that lies elsewhere.
        """
        return self.read(line.get("shards", {}).get(name, line["shard"]), *line["arrays"][name])

    def read(self, shard: str, offset: int, size: int) -> np.ndarray:
        """Return an array by its place.

        Raises:
            ValueError: the shard is missing or damaged; the message says what to do.
        """
        if self.damaged:
            raise ValueError(self.damaged)
        path = self.path(shard)
        try:
            data = self._bytes(shard, offset, size)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; prepare again") from None
        if len(data) < size:
            raise ValueError(f"{path} is cut off at {offset + len(data)} bytes; delete it and prepare again")
        try:
            array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged at byte {offset}; delete it and prepare again") from error
        return array

    def _bytes(self, shard: str, offset: int, size: int) -> bytes:
        # Opened each time: a large set has more shards than a process may keep open.
        with self.path(shard).open("rb") as f:
            f.seek(offset)
            return f.read(size)

    def path(self, shard: str) -> Path:
        return self.folder / shard

    def ahead(self, places: Sequence[tuple[str, int, int]]) -> None:
        """Take note of the arrays that will be read next; local files need no preparation."""

    def verify(self, shards: Sequence[str]) -> threading.Thread | None:
        """Compare shards with their checksums in the background; `read` then reports one that differs."""

        def compare() -> None:
            for shard in shards:
                path, digest = self.folder / shard, shard_hash(shard)
                if digest and path.is_file() and not file_sha256(path).startswith(digest):
                    self.damaged = f"{path} differs from its checksum; delete it and prepare again"

        thread = threading.Thread(target=compare, daemon=True)
        thread.start()
        return thread
