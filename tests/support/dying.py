"""What `test_pool` has other processes do; they import it by its name."""

import os
from collections.abc import Collection
from pathlib import Path


def make(n: int, videos: list[str], fatal: Collection[str], note: Path, *, deadly: Collection[str]) -> None:
    """Make a "shard" of videos; die at a deadly one."""
    for video in videos:
        if video in fatal:
            continue
        note.write_text(video)
        if video in deadly:
            os._exit(11)
    note.with_name(f"{n}.done").write_text(" ".join(sorted(fatal)))
    note.unlink()


def die(*_: object) -> None:
    os._exit(11)
