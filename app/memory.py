"""Memory of the process: glibc keeps most of what is freed by default."""

from __future__ import annotations

import asyncio
import ctypes

ARENAS = 2
# Memory of at least this size is given back when it is freed.
MMAP_BYTES = 1_048_576
# Of malloc.h.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
TRIM_S = 20.0


def bound_arenas(arenas: int = ARENAS) -> bool:
    """Limit malloc to `arenas` arenas, and have it give large memory back; False without glibc.

    By default each thread keeps an arena with the memory that its images used, and the size from which on
    memory is given back grows with use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_ARENA_MAX, arenas) and mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES))


async def keep_giving_back() -> None:
    """Return small free memory to the system every `TRIM_S`, until the task is cancelled."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim:
        await asyncio.sleep(TRIM_S)
        await asyncio.to_thread(trim, 0)
