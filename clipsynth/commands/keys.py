"""`clipsynth keys`: API keys of a service."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from typer import Argument, Option

UNITS = {"d": 86_400, "h": 3600, "m": 60}
keys = typer.Typer(no_args_is_help=True, help="API keys of the service with this data folder or Redis.")


@keys.command("create")
def create_key(
    name: Annotated[str, Argument(help="Name of the user or purpose.")],
    scope: Annotated[
        list[str] | None, Option(help="generate, read or admin (all); by default generate and read.")
    ] = None,
    expires: Annotated[str | None, Option(help="When it ends: after 90d, 12h or 30m.")] = None,
    rate: Annotated[float | None, Option(min=0, help="Requests per second; 0: no limit.")] = None,
    max_kept: Annotated[
        int | None, Option(min=0, help="Bytes of records that it keeps in Redis; 0: no limit.")
    ] = None,
) -> None:
    """Create a key and print it, once. Without limits of its own it has those of the service."""
    from clipsynth.security.api_keys import SCOPES, create_key
    from clipsynth.services.connect import open_redis
    from clipsynth.settings import Settings
    from clipsynth.storage import Storage

    scopes = [s for s in SCOPES if s in (scope or ["generate", "read"])]
    if unknown := set(scope or ()) - set(SCOPES):
        raise ValueError(f"no scope: {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}")
    settings, expires_at = Settings(), None if expires is None else time.time() + _seconds(expires)
    with open_redis(settings) as redis:
        Storage(settings.results_url).mark_keys()
        key, token = create_key(
            redis, name, scopes, expires_at=expires_at, rate_per_s=rate, max_kept_bytes=max_kept
        )
    print(token)
    print(
        f"key {key.id} {key.name!r}: {', '.join(key.scopes)}; keep it, it is not shown again", file=sys.stderr
    )
    print(f"its webhooks are signed with {key.webhook_secret}", file=sys.stderr)


def _seconds(duration: str) -> float:
    """Return the seconds of a duration such as 90d.

    Raises:
        ValueError: it is none.
    """
    number, unit = duration[:-1], duration[-1:]
    if unit not in UNITS or not number.isdecimal() or not int(number):
        raise ValueError(f"--expires: {duration!r} is not a duration such as 90d, 12h or 30m")
    return int(number) * UNITS[unit]


@keys.command("list")
def list_keys() -> None:
    """Print id, time, scopes or end, and name of all keys."""
    from clipsynth.security.api_keys import list_keys
    from clipsynth.services.connect import open_redis
    from clipsynth.settings import Settings

    with open_redis(Settings()) as redis:
        found = list_keys(redis)
    for key in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        state = "revoked" if key.revoked_at is not None else ",".join(key.scopes)
        if key.expires_at is not None and key.revoked_at is None:
            ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.expires_at))
            state = f"{state} until {ends}" if key.is_valid else f"expired {ends}"
        print(key.id, made, state, key.name, sep="  ")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, Argument(metavar="ID", help="An id from `keys list`.")]) -> None:
    """Revoke a key."""
    from clipsynth.security.api_keys import revoke_key
    from clipsynth.services.connect import open_redis
    from clipsynth.settings import Settings

    with open_redis(Settings()) as redis:
        print(f"revoked {revoke_key(redis, key_id).name!r}")
