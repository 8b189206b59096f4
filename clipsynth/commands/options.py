"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipsynth.settings import Settings

Bundle = Annotated[Path | None, typer.Option("--model", help="Bundle folder; the demo's by default.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]


def settings_with(**given: Any) -> Settings:
    """Return the settings, with those options of a command line that were given in their place."""
    return Settings(**{name: value for name, value in given.items() if value is not None})
