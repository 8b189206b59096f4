"""The disk of a run: one that can be filled, and a look at files of generations that have succeeded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from redis.exceptions import RedisError

from clipsynth.errors import ClipSynthError
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import TERMINAL, Status

SIZE_MB = 160
CHUNK = 1 << 20
LOOK_S = 0.3


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk in memory on a folder. Needs root and Linux."""
    options = f"size={SIZE_MB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Write a file until the disk has no room left."""
    with contextlib.suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        while file.write(bytes(CHUNK)):
            pass


def empty(folder: Path) -> None:
    """Remove what `fill` wrote."""
    (folder / "filling").unlink(missing_ok=True)


class FileWatch:
    """Notes the files of each generation soon after it has succeeded, and compares them later."""

    def __init__(self, state: JobStore, results: Path, ids: Callable[[], list[str]]) -> None:
        self.state, self.results, self.ids = state, results, ids
        self.noted: dict[str, dict[str, tuple[int, int]]] = {}
        self._ended: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            with contextlib.suppress(RedisError, ClipSynthError):
                self._look()

    def _look(self) -> None:
        new = [i for i in self.ids() if i not in self._ended]
        for generation_id, status_view in zip(new, self.state.status_views(new), strict=True):
            if status_view and status_view.status in TERMINAL:
                if status_view.status is Status.SUCCEEDED:
                    self.noted[generation_id] = self._files(generation_id)
                self._ended.add(generation_id)

    def _files(self, generation_id: str) -> dict[str, tuple[int, int]]:
        """Return inode and time of each result: a file that is written again has another inode."""
        folder = self.results / self.state.get(generation_id).folder
        found = {path.name: path.stat() for path in folder.iterdir() if path.is_file()}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}

    def stop(self) -> dict[str, int]:
        """End; count generations whose files were noted or changed, or are of several attempts."""
        self._stop.set()
        self._thread.join()
        self._look()
        changed = sum(self._files(i) != files for i, files in self.noted.items())
        folders = [os.listdir(self.results / i) for i in self.noted]
        return {
            "files noted at success": len(self.noted),
            "files changed after success": changed,
            "with files of other attempts": sum(len({*names} - {"in"}) > 1 for names in folders),
        }
