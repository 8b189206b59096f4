"""Files of generations behind an fsspec URL: `file://` by default, object stores by extra packages."""

from __future__ import annotations

import contextlib
import re
import uuid

import fsspec

from clipsynth.errors import NotFound
from clipsynth.schemas import MEDIA_TYPES, Format

_ID = re.compile(r"gen_[0-9a-f]{26}")
_KEY = re.compile(rf"{_ID.pattern}/(in/)?[0-9]\.({'|'.join(('png', 'json', *MEDIA_TYPES))})")


def image_key(generation_id: str, n: int = 0) -> str:
    """Return the key of the picture of item n of a request's prompts, or of its only one."""
    return f"{generation_id}/in/{n}.png"


def audio_key(generation_id: str, n: int, output_format: str) -> str:
    """Return the key of output n."""
    return f"{generation_id}/{n}.{output_format}"


def spectrogram_key(generation_id: str, n: int) -> str:
    """Return the key of the picture of output n."""
    return f"{generation_id}/{n}.png"


def peaks_key(generation_id: str, n: int) -> str:
    """Return the key of the peaks of output n."""
    return f"{generation_id}/{n}.json"


def file_name(generation_id: str, n: int, output_format: Format) -> str:
    """Return the name that output n is to have with whoever gets it."""
    extension, _, variant = output_format.partition("_")
    return f"{generation_id}-{n}{'-' + variant if variant else ''}.{extension}"


class Storage:
    """Writes whole files under a temporary name and renames them, so that a reader sees all of a file or none."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm(temporary)
            raise

    def get(self, key: str) -> bytes:
        """Return a file's bytes.

        Raises:
            NotFound: there is no such file.
        """
        try:
            return bytes(self._fs.cat_file(self._path(key)))
        except FileNotFoundError:
            raise NotFound(f"there is no file {key!r}") from None

    def delete(self, generation_id: str) -> None:
        """Remove all files of a generation, if there are any."""
        if not _ID.fullmatch(generation_id):
            raise ValueError(f"not a generation id: {generation_id!r}")
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{generation_id}", recursive=True)

    def _path(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a storage key: {key!r}")
        return f"{self._root}/{key}"
