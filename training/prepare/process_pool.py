"""Shards made by several processes. A process may die at a video (native decoders crash, memory ends): that costs the video, not the run."""

from __future__ import annotations

import logging
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# make(shard number, its videos, names of those to leave out, file that holds the name of the video at hand)
Make = Callable[[int, list[Any], Collection[str], Path], None]


def make_shards(
    make: Make,
    shards: Mapping[int, list[Any]],
    *,
    workers: int,
    notes: Path,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[int]:
    """Call `make` for each shard in `workers` processes and yield the numbers as they are done.

    When a process dies, nobody knows at which of the videos at hand. The rest then runs in one process; if that dies too, the video that it
    had noted in the folder `notes` is left out from then on, and all processes are at work again.

    Raises:
        BrokenProcessPool: a process dies before it opens a video.
    """
    context = multiprocessing.get_context("spawn")
    waiting, fatal = list(shards), defaultdict[int, set[str]](set)
    size = workers
    while waiting:
        for note in notes.glob("*.video"):
            note.unlink()
        try:
            with ProcessPoolExecutor(size, context, initializer, initargs) as pool:
                running = {
                    pool.submit(make, n, shards[n], frozenset(fatal[n]), _note(notes, n)): n for n in waiting
                }
                for future in as_completed(running):
                    future.result()
                    waiting.remove(running[future])
                    yield running[future]
        except BrokenProcessPool:
            if size > 1:
                logger.warning("a process died; looking for the video at which it did")
                size = 1
                continue
            died = [n for n in waiting if _note(notes, n).is_file()]
            if not died:
                raise
            video = _note(notes, died[0]).read_text()
            logger.warning("%s ends the process that reads it; left out", video)
            fatal[died[0]].add(video)
            size = workers


def _note(notes: Path, n: int) -> Path:
    return notes / f"{n:06d}.video"
