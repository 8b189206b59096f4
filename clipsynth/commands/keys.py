"""`clipsynth keys`: API keys of a service."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from clipsynth.settings import Settings

keys = typer.Typer(no_args_is_help=True, help="API keys of the service with this data folder or Redis.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Name of the user or purpose.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="generate, read or admin (all); by default generate and read.")
    ] = None,
) -> None:
    """Create a key and print it, once."""
    from clipsynth.security.api_keys import SCOPES, create_key
    from clipsynth.services.connect import open_redis
    from clipsynth.storage import Storage

    scopes = [s for s in SCOPES if s in (scope or ["generate", "read"])]
    if unknown := set(scope or ()) - set(SCOPES):
        raise ValueError(f"no scope: {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}")
    settings = Settings()
    with open_redis(settings) as redis:
        Storage(settings.results_url).mark_keys()
        key, token = create_key(redis, name, scopes)
    print(token)
    print(
        f"key {key.id} {key.name!r}: {', '.join(key.scopes)}; keep it, it is not shown again", file=sys.stderr
    )
    print(f"its webhooks are signed with {key.webhook_secret}", file=sys.stderr)


@keys.command("list")
def list_keys() -> None:
    """Print id, time, scopes and name of all keys."""
    from clipsynth.security.api_keys import list_keys
    from clipsynth.services.connect import open_redis

    with open_redis(Settings()) as redis:
        found = list_keys(redis)
    for key in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        print(key.id, made, ",".join(key.scopes) if key.revoked_at is None else "revoked", key.name, sep="  ")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="An id from `keys list`.")]) -> None:
    """Revoke a key."""
    from clipsynth.security.api_keys import revoke_key
    from clipsynth.services.connect import open_redis

    with open_redis(Settings()) as redis:
        print(f"revoked {revoke_key(redis, key_id).name!r}")
