"""The Python client of the HTTP API.

client.py    Client: post a request, wait for its end, fetch the sound.
retry.py     RetryPolicy: which answers are asked for again, and after how long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipsynth.client.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    """Load the client on first use, so that importing the package needs no httpx."""
    if name != "Client":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clipsynth.client.client import Client

    return Client
