"""Files of generations at an fsspec URL: `file://` by default, object stores with extra packages."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import struct
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import fsspec

from clipsynth.errors import ClipSynthError, NotFound, ServeError, StorageUnavailable
from clipsynth.schemas.generation import MEDIA_TYPES, Format

logger = logging.getLogger(__name__)
CHECK_S = 10.0
KEYS_MARKER = "api-keys-exist"
CHECK_BYTES = 65_536  # a few bytes may still fit on a full disk
_LENGTH = struct.Struct(">I")
_ID = re.compile(r"gen_[0-9a-f]{26}")
_ATTEMPT = re.compile("[0-9a-f]{8}")
_NUMBERED = (
    rf"({_ATTEMPT.pattern}/)?[0-9]\.({'|'.join(('json', 'views', 'mp4', 'webm', 'png', *MEDIA_TYPES))})"
)
# A video has up to 32 scenes.
_SCENE = rf"{_ATTEMPT.pattern}/[0-9]{{1,2}}\.scene"
_PARENT = rf"in/parent\.({'|'.join(MEDIA_TYPES)})"
_KEY = re.compile(
    rf"{_ID.pattern}/(in/[0-9]{{1,2}}\.png|in/video\.(mp4|webm)|{_PARENT}|{_SCENE}|{_NUMBERED})"
)
CHUNK_BYTES = 262_144
_SCRATCH_PREFIX = "clipsynth-scratch-"
_SCRATCH_NEW_S = 10.0


class Scratch:
    """A temporary folder. If its process is killed, the next one that makes a folder removes it."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH_PREFIX}*"):
            with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_NB):
                # A new one may not have its lock yet.
                if time.time() - left.stat().st_mtime > _SCRATCH_NEW_S:
                    shutil.rmtree(left)
        self.path = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX))
        stack = contextlib.ExitStack()
        stack.enter_context(_locked(self.path))
        stack.callback(shutil.rmtree, self.path, ignore_errors=True)
        # An owner that is part of a circle of references is freed late.
        self.close = weakref.finalize(self, stack.close)


@contextlib.contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    """Hold the lock of a folder; it ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


def image_key(generation_id: str, n: int = 0) -> str:
    """Return the key of the image of prompt n of a request."""
    return f"{generation_id}/in/{n}.png"


def is_image_key(key: str) -> bool:
    """Return whether a key from outside is one of `image_key` or `scene_key`."""
    is_image = re.search(r"/in/[0-9]\.png$|\.scene$", key)
    return is_image is not None and _KEY.fullmatch(key) is not None


def parent_key(generation_id: str, source: str) -> str:
    """Return the key of a request's copy of a sound that it varies or continues, from the sound's key."""
    return f"{generation_id}/in/parent.{source.rpartition('.')[2]}"


def is_parent_key(key: str) -> bool:
    """Return whether a key from outside is one of `parent_key`."""
    return re.fullmatch(f"{_ID.pattern}/{_PARENT}", key) is not None


def video_key(generation_id: str, extension: str) -> str:
    """Return the key of a request's video, without its sound."""
    return f"{generation_id}/in/video.{extension}"


def result_video_key(folder: str, n: int, extension: str) -> str:
    """Return the key of the video with the sound of output n in a folder of results."""
    return f"{folder}/{n}.{extension}"


def scene_key(folder: str, n: int) -> str:
    """Return the key of the image of scene n in a folder of results."""
    return f"{folder}/{n}.scene"


def new_attempt() -> str:
    """Return the name of a new attempt to run a job: 8 hex digits."""
    return secrets.token_hex(4)


def audio_key(folder: str, n: int, output_format: str) -> str:
    """Return the key of output n in a folder of results."""
    return f"{folder}/{n}.{output_format}"


def file_name(generation_id: str, n: int, output_format: Format) -> str:
    """Return the file name of output n for a client."""
    extension, _, variant = output_format.partition("_")
    return f"{generation_id}-{n}{'-' + variant if variant else ''}.{extension}"


class Storage:
    """Writes whole files: a reader sees a complete file or none.

    On a file system a temporary file is renamed. Every failure is a StorageUnavailable, because each file
    system and object store has its own errors.
    """

    def __init__(self, url: str) -> None:
        """Prepare; nothing is read or written.

        Raises:
            ServeError: a package for this kind of URL is missing, or there is no such kind.
        """
        try:
            # No cache of listings: other processes write too.
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ServeError(f"CLIPSYNTH_STORAGE_URL: {error}") from error
        # Objects appear as a whole. Local files are written without fsspec, which takes twice the time.
        self._renames = "file" in self._fs.protocol
        self._answered_at: float | None = None
        self._has_keys, self._looked_for_keys_at = False, float("-inf")

    def put(self, key: str, data: bytes | Path) -> None:
        """Write a file: bytes, or a copy of a local file.

        Raises:
            StorageUnavailable: it cannot be written.
        """
        path = self._path(key)
        with _reaching(key):
            try:
                self._put(path, data)
            except BaseException:
                self._answered_at = None
                raise

    def _put(self, path: str, data: bytes | Path) -> None:
        if not self._renames:
            if isinstance(data, Path):
                self._fs.put_file(str(data), path)
            else:
                self._fs.pipe_file(path, data)
            return
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"
        try:
            try:
                _write(temporary, data)
            except FileNotFoundError:  # the first file of its folder
                os.makedirs(path.rpartition("/")[0], exist_ok=True)
                _write(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise

    def get(self, key: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            NotFound: there is no such file.
            StorageUnavailable: it cannot be read.
        """
        with _reaching(key):
            try:
                return bytes(self._fs.cat_file(self._path(key)))
            except FileNotFoundError:
                raise NotFound(f"there is no file {key!r}") from None

    def local(self, key: str, copy: Path) -> Path:
        """Return a path of a file on this machine, for reading: its own, or that of a copy of an object.

        Raises as `get`.
        """
        path = self._path(key)
        if self._renames:
            self.size(key)
            return Path(path)
        with _reaching(key):
            try:
                self._fs.get_file(path, str(copy))
            except FileNotFoundError:
                raise NotFound(f"there is no file {key!r}") from None
        return copy

    def size(self, key: str) -> int:
        """Return the size of a file in bytes; raises as `get`."""
        with _reaching(key):
            try:
                return int(self._fs.size(self._path(key)))
            except FileNotFoundError:
                raise NotFound(f"there is no file {key!r}") from None

    def chunks(self, key: str, part: range) -> Iterator[bytes]:
        """Yield the bytes of a part of a file; raises as `get`."""
        with _reaching(key), self._fs.open(self._path(key), "rb", block_size=CHUNK_BYTES) as file:
            file.seek(part.start)
            for start in range(part.start, part.stop, CHUNK_BYTES):
                yield file.read(min(CHUNK_BYTES, part.stop - start))

    def put_previews(self, folder: str, n: int, *, spectrogram: bytes, peaks: bytes) -> None:
        """Write spectrogram and peaks of output n as one file: each file costs as much as the sound's.

        The file has the length of the spectrogram, the spectrogram, and the peaks. Raises as `put`.
        """
        self.put(f"{folder}/{n}.views", _LENGTH.pack(len(spectrogram)) + spectrogram + peaks)

    def get_preview(self, folder: str, n: int, kind: Literal["png", "json"]) -> bytes:
        """Return the spectrogram (PNG) or peaks (JSON) of output n; raises as `get`."""
        try:
            packed = self.get(f"{folder}/{n}.views")
        except NotFound:  # older workers wrote two files
            return self.get(f"{folder}/{n}.{kind}")
        end = _LENGTH.size + _LENGTH.unpack_from(packed)[0]
        return packed[_LENGTH.size : end] if kind == "png" else packed[end:]

    def delete(self, generation_id: str) -> None:
        """Remove all files of a generation.

        Raises:
            StorageUnavailable: they cannot be removed.
        """
        if not _ID.fullmatch(generation_id):
            raise ValueError(f"not a generation id: {generation_id!r}")
        with _reaching(generation_id), contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{generation_id}", recursive=True)

    def attempts(self, generation_id: str) -> set[str]:
        """Return the attempts of a generation that have files; raises as `delete`."""
        with _reaching(generation_id), contextlib.suppress(FileNotFoundError):
            paths = self._fs.ls(f"{self._root}/{generation_id}", detail=False)
            names = {path.rstrip("/").rpartition("/")[2] for path in paths}
            return {name for name in names if _ATTEMPT.fullmatch(name)}
        return set()

    def delete_attempts(self, generation_id: str, attempts: Iterable[str]) -> None:
        """Remove the files of attempts; raises as `delete`."""
        for attempt in attempts:
            if not _ID.fullmatch(generation_id) or not _ATTEMPT.fullmatch(attempt):
                raise ValueError(f"not an attempt: {generation_id!r}, {attempt!r}")
            with _reaching(generation_id), contextlib.suppress(FileNotFoundError):
                self._fs.rm(f"{self._root}/{generation_id}/{attempt}", recursive=True)

    def mark_keys(self) -> None:
        """Note that API keys exist, so that an emptied Redis does not open the API; raises as `put`."""
        with _reaching(KEYS_MARKER):
            self._put(f"{self._root}/{KEYS_MARKER}", b"API keys exist.\n")
        self._has_keys = True

    def has_keys(self) -> bool:
        """Return whether `mark_keys` was called; the answer may be `CHECK_S` old. Raises as `get`."""
        now = time.monotonic()
        if not self._has_keys and now - self._looked_for_keys_at > CHECK_S:
            with _reaching(KEYS_MARKER):
                self._has_keys = self._fs.exists(f"{self._root}/{KEYS_MARKER}")
            self._looked_for_keys_at = now
        return self._has_keys

    def free_bytes(self) -> int | None:
        """Return how much room its disk has; None for an object store."""
        if not self._renames:
            return None
        folder = Path(self._root)
        while not folder.exists():
            folder = folder.parent
        return free_bytes(folder)

    def check(self) -> None:
        """Write and remove a file, unless this succeeded in the last `CHECK_S`.

        Raises:
            StorageUnavailable: it failed.
        """
        if self._answered_at is not None and time.monotonic() - self._answered_at < CHECK_S:
            return
        self._answered_at = None
        path = f"{self._root}/check-{secrets.token_hex(8)}"
        with _reaching("check"):
            self._put(path, bytes(CHECK_BYTES))
            self._fs.rm_file(path)
        self._answered_at = time.monotonic()

    def _path(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a storage key: {key!r}")
        return f"{self._root}/{key}"


def free_bytes(folder: Path) -> int:
    """Return how much room the disk of a folder has for users other than root."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _write(path: str, data: bytes | Path) -> None:
    with open(path, "xb") as file:
        if isinstance(data, Path):
            with data.open("rb") as source:
                shutil.copyfileobj(source, file)
        else:
            file.write(data)


@contextlib.contextmanager
def _reaching(what: str) -> Iterator[None]:
    try:
        yield
    except (ClipSynthError, ValueError):
        raise
    except Exception as error:
        logger.warning("storage, %s: %r", what, error)
        raise StorageUnavailable("files cannot be stored or read now; try again") from error
