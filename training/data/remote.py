"""Read prepared clips from object storage: whole shards in a node cache, single arrays until then."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import fsspec
import numpy as np

from models.bundle import file_sha256
from models.media.shards import ShardReader, shard_hash
from training.data.index import COLUMNS, CORRESPONDENCE, INDEX

SMALL = (INDEX, CORRESPONDENCE, COLUMNS, "statistics.safetensors", "phrases.safetensors")
DOWNLOADS, READS = 4, 16  # threads for whole shards, and for arrays that are not in the cache
RETRY_AFTER_S = (0.5, 1.0, 2.0, 4.0, 8.0)
logger = logging.getLogger(__name__)
Place = tuple[str, int, int]


def default_cache() -> Path:
    """Return the folder of caches on this node."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipsynth"


def open_remote(
    url: str, cache: Path | None = None, limit_gb: float | None = None
) -> tuple[Path, RemoteShards]:
    """Copy the small files of a prepared folder to the node; return their folder and the shards' reader.

    Args:
        url: any URL that fsspec reads.
        limit_gb: largest size of the cached shards of this folder; default: all.

    Raises:
        ValueError: it cannot be read, or holds no prepared clips.
    """
    folder = (cache or default_cache()) / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "small.lock"):
        try:
            _copy_small(url, folder)
        except FileNotFoundError:
            raise ValueError(f"{url} holds no prepared clips; run: clipsynth prepare VIDEOS …") from None
        # Each file system has its own errors, of missing rights, names or packages.
        except Exception as error:
            raise ValueError(f"{url} cannot be read ({_first_line(error)})") from error
    version = file_sha256(folder / INDEX)[:8]
    return folder, RemoteShards(f"{url.rstrip('/')}/shards", folder / "shards", version, limit_gb)


def _copy_small(url: str, folder: Path) -> None:
    """Copy the small files that changed; delete a local one that the storage no longer has."""
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    record = folder / "copied.json"
    known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    encoder = [f"encoder/{path.rsplit('/', 1)[-1]}" for path in fs.ls(f"{root}/encoder", detail=False)]
    copied = {}
    for name in (*SMALL, *encoder):
        source, target = f"{root}/{name}", folder / name
        if name not in (INDEX, "statistics.safetensors") and not fs.exists(source):
            target.unlink(missing_ok=True)
            continue
        copied[name] = str(fs.ukey(source))
        if copied[name] != known.get(name) or not target.is_file():
            target.parent.mkdir(exist_ok=True)
            fs.get_file(source, str(target.with_name(f"{target.name}.tmp")))
            os.replace(target.with_name(f"{target.name}.tmp"), target)
    record.write_text(json.dumps(copied, indent=2) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock among the processes of the node; without `wait` yield whether it was free."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


class RemoteShards(ShardReader):
    """Random access to arrays of shards below a URL.

    Threads copy each shard that is used to the cache. Until it is there, its arrays are read one by one.
    Safe for several threads and after a fork; the processes of a node share the cache.
    """

    def __init__(self, url: str, cache: Path, version: str, limit_gb: float | None = None) -> None:
        """Read shards below `url`; `version` tells apart shards of the same name without a checksum."""
        super().__init__(cache)
        self._version = version
        self.url, self._limit = url, float("inf") if limit_gb is None else limit_gb * 1e9
        cache.mkdir(parents=True, exist_ok=True)
        self._start()

    def _start(self) -> None:
        """Forget the threads of a parent process."""
        self._pid = os.getpid()
        self._wanted: set[str] = set()
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ready: dict[Place, bytes] = {}

    def path(self, shard: str) -> Path:
        return self.folder / (shard if shard_hash(shard) else f"{self._version}-{shard}")

    def read(self, shard: str, offset: int, size: int) -> np.ndarray:
        try:
            return super().read(shard, offset, size)
        except ValueError:
            if self.damaged or not self.path(shard).is_file():
                raise
            # The copy is damaged, not the shard.
            self.path(shard).unlink(missing_ok=True)
            self._wanted.discard(shard)
            return super().read(shard, offset, size)

    def verify(self, shards: Sequence[str]) -> None:
        """Do nothing: each shard is compared with its checksum when it is copied."""

    def ahead(self, places: Sequence[Place]) -> None:
        """Read arrays that will be asked for next, many at a time, and have their shards copied."""
        self._want({shard for shard, _, _ in places})
        missing = [place for place in places if not self.path(place[0]).is_file()]
        if not missing:
            return
        with ThreadPoolExecutor(READS) as pool:
            self._ready = dict(zip(missing, pool.map(lambda place: self._get(*place), missing), strict=True))

    def _bytes(self, shard: str, offset: int, size: int) -> bytes:
        try:
            return super()._bytes(shard, offset, size)
        except FileNotFoundError:
            self._want([shard])
            ready = self._ready.get((shard, offset, size))
            return self._get(shard, offset, size) if ready is None else ready

    def _get(self, shard: str, offset: int, size: int) -> bytes:
        """Return a part of a shard in the storage; a storage that fails for moments does not end a run."""
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                fs, root = fsspec.url_to_fs(self.url)
                data: bytes = fs.cat_file(f"{root}/{shard}", start=offset, end=offset + size)
                return data
            except FileNotFoundError:
                raise ValueError(f"{self.url}/{shard} is missing; prepare again") from None
            except Exception as error:
                if wait_s is None:
                    raise ValueError(f"{self.url}/{shard} cannot be read ({_first_line(error)})") from error
                time.sleep(wait_s)
        raise AssertionError

    def _want(self, shards: Iterable[str]) -> None:
        """Have shards copied to the cache in the background."""
        if self._pid != os.getpid():
            self._start()
        for shard in shards:
            if shard not in self._wanted and not self.path(shard).is_file():
                self._wanted.add(shard)
                self._queue.put(shard)
        while self._wanted and len(self._threads) < DOWNLOADS:
            # A daemon: queued copies do not delay the end of the process.
            self._threads.append(threading.Thread(target=self._copy_all, args=(self._queue,), daemon=True))
            self._threads[-1].start()

    def _copy_all(self, shards: queue.SimpleQueue[str]) -> None:
        while True:
            shard = shards.get()
            try:
                self._copy(shard)
            # The arrays are then read one by one, which reports what is wrong.
            except Exception as error:
                logger.warning("%s/%s is not cached (%s)", self.url, shard, _first_line(error))

    def _cached_bytes(self) -> int:
        """Return the size of all copies, finished or not; other processes rename and delete theirs."""
        total = 0
        for path in self.folder.glob("*.tar*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _copy(self, shard: str) -> None:
        """Copy a shard to the cache, unless another process does or it would exceed the limit."""
        target = self.path(shard)
        # One after the other, so that all together stay below the limit.
        turn = nullcontext() if self._limit == float("inf") else _locked(self.folder / "limit.lock")
        with turn, _locked(target.with_name(f"{target.name}.lock"), wait=False) as free:
            if not free or target.is_file():
                return
            fs, root = fsspec.url_to_fs(self.url)
            size = fs.size(f"{root}/{shard}")
            if size + self._cached_bytes() > self._limit:
                return
            if size > shutil.disk_usage(self.folder).free:
                raise OSError(f"the disk of {self.folder} is full")
            temporary = target.with_name(f"{target.name}.tmp")
            fs.get_file(f"{root}/{shard}", str(temporary))
            if (digest := shard_hash(shard)) and not file_sha256(temporary).startswith(digest):
                temporary.unlink()
                self.damaged = f"{self.url}/{shard} differs from its checksum; prepare again"
                return
            os.replace(temporary, target)
