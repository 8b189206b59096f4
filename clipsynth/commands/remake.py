"""`clipsynth vary` and `clipsynth extend`: sounds from an output of a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

if TYPE_CHECKING:
    from clipsynth.client.client import Client

Parent = Annotated[str, Argument(help="Id of a generation: gen_…, or gen_…/1 for its output 1.")]
File = Annotated[Path, Option("--output", "-o", help="A file; further sounds get -1, -2, …")]
Seed = Annotated[int | None, Option(min=0, max=2**32 - 1, help="Random by default.")]
Server = Annotated[str, Option(help="URL of the service.")]
Key = Annotated[str | None, Option(envvar="CLIPSYNTH_API_KEY", help="API key of the service.")]
URL = "http://localhost:8000"


def vary(
    parent: Parent,
    output: File = Path("out.wav"),
    strength: Annotated[float, Option(min=0, max=1, help="0: the sound itself; 1: a new one.")] = 0.5,
    num_outputs: Annotated[int, Option(min=1, max=8, help="Number of variations.")] = 1,
    seed: Seed = None,
    server: Server = URL,
    api_key: Key = None,
) -> None:
    """Make variations of an output.

    clipsynth vary gen_… --strength 0.3 -o other.wav
    """
    _make("vary", parent, output, server, api_key, strength=strength, num_outputs=num_outputs, seed=seed)


def extend(
    parent: Parent,
    seconds: Annotated[float, Argument(min=0.5, help="Seconds to add.")],
    output: File = Path("out.wav"),
    seed: Seed = None,
    server: Server = URL,
    api_key: Key = None,
) -> None:
    """Make a longer sound that begins with an output.

    clipsynth extend gen_… 4 -o longer.wav
    """
    _make("extend", parent, output, server, api_key, extend_s=seconds, seed=seed)


def _make(method: str, parent: str, path: Path, server: str, api_key: str | None, **body: Any) -> None:
    from clipsynth.client.client import Client

    generation_id, _, number = parent.partition("/")
    if number and not number.isdecimal():
        raise ValueError(f"{parent}: write GENERATION or GENERATION/OUTPUT")
    client: Client
    with Client(server, api_key=api_key) as client:
        *_, last = client.follow(getattr(client, method)(generation_id, output=int(number or 0), **body).id)
        for file in client.sounds(last).save(path):
            print(file)
