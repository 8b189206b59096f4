"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

if TYPE_CHECKING:
    from clipsynth.settings import Settings

Bundle = Annotated[Path | None, Option("--model", help="Bundle folder; the demo's by default.")]
Device = Annotated[str | None, Option(help="auto, cpu, cuda or mps.")]

# Of `evaluate` and `study`.
Clips = Annotated[Path, Option(help="Folder of labelled videos.")]
Queries = Annotated[Path, Option(help='JSON {"classes": {label: phrases}}.')]
Labels = Annotated[Path | None, Option(help="CSV with file, label, split; CLIPS/manifest.csv by default.")]
Seeds = Annotated[int, Option(min=1, help="Sounds per query, for distances.")]
PerClass = Annotated[
    int, Option(min=0, help="Sounds per class, for class accuracy; 0 takes those for distances.")
]
Duration = Annotated[float, Option(min=0.5, help="Seconds of each sound.")]
BatchSize = Annotated[int, Option(min=1, help="Queries per call of a system.")]
Resamples = Annotated[int, Option(min=10, help="Bootstrap resamples.")]


def settings_with(**given: Any) -> Settings:
    """Return the settings; command line options that are not None replace them."""
    from clipsynth.settings import Settings

    return Settings(**{name: value for name, value in given.items() if value is not None})


def read_attributes(options: list[str] | None) -> dict[str, float] | None:
    """Return the attributes of a command line; None without options, {} for "none".

    Raises:
        ValueError: not of the form NAME=0..1, or an unknown name.
    """
    from pydantic import ValidationError

    from clipsynth.schemas.prompts import NAMES, Attributes

    if options == ["none"]:
        return {}
    found: dict[str, object] = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if name not in NAMES or not equals:
            raise ValueError(f"--attribute {option}: write NAME=0..1 with a NAME of {', '.join(NAMES)}")
        found[name] = value
    try:
        return Attributes.model_validate(found).model_dump(exclude_none=True) if found else None
    except ValidationError as error:
        raise ValueError(f"--attribute {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
