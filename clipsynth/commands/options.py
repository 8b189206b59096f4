"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clipsynth.settings import Settings

Bundle = Annotated[Path | None, typer.Option("--model", help="Bundle folder; the demo's by default.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]

# Of `evaluate` and `study`.
Clips = Annotated[Path, typer.Option(help="Folder of labelled videos.")]
Queries = Annotated[Path, typer.Option(help='JSON {"classes": {label: phrases}}.')]
Labels = Annotated[
    Path | None, typer.Option(help="CSV with file, label, split; CLIPS/manifest.csv by default.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Sounds per query, for distances.")]
PerClass = Annotated[
    int, typer.Option(min=0, help="Sounds per class, for class accuracy; 0 takes those for distances.")
]
Duration = Annotated[float, typer.Option(min=0.5, help="Seconds of each sound.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Queries per call of a system.")]
Resamples = Annotated[int, typer.Option(min=10, help="Bootstrap resamples.")]


def settings_with(**given: Any) -> Settings:
    """Return the settings; command line options that are not None replace them."""
    from clipsynth.settings import Settings

    return Settings(**{name: value for name, value in given.items() if value is not None})
