"""Make shards in several processes; a video that kills its process (decoder crash, memory) is skipped."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# make(shard number, its videos, names of videos to skip, file that names the present video)
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
    """Call `make` for each shard in `workers` processes; yield the numbers of finished shards.

    When a process dies, its video is unknown, so the remaining shards run in one process. If that one dies,
    the video in its file in `notes` is skipped from then on, and all workers start again.

    Raises:
        BrokenProcessPool: a process died before it opened a video.
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
                logger.warning("a process died; searching for its video with one process")
                size = 1
                continue
            died = [n for n in waiting if _note(notes, n).is_file()]
            if not died:
                raise
            video = os.fsdecode(_note(notes, died[0]).read_bytes())
            logger.warning("skipping %s: it kills the process that reads it", video)
            fatal[died[0]].add(video)
            size = workers


def _note(notes: Path, n: int) -> Path:
    return notes / f"{n:06d}.video"
