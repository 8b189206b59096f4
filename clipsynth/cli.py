"""The command line. Each command imports what it needs when it runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

import typer

from clipsynth.commands.evaluation import evaluate, listen
from clipsynth.commands.generate import generate
from clipsynth.commands.inspect import doctor, inspect, models
from clipsynth.commands.keys import keys
from clipsynth.commands.remake import extend, vary
from clipsynth.commands.services import api, janitor, openapi, serve, webhooks, worker
from clipsynth.commands.study import study
from clipsynth.commands.training import average, correspondence, export, merge, mismatch, prepare, train
from clipsynth.errors import ClipSynthError, ModelUnusable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text or image in, sound out.",
)
PANELS = {
    "Sounds": (generate, vary, extend, models, inspect),
    "Service": (serve, doctor, api, worker, janitor, webhooks, openapi),
    "Training": (prepare, merge, correspondence, mismatch, train, export, average),
    "Evaluation": (evaluate, study, listen),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(keys, name="keys", rich_help_panel="Service")


def main() -> None:
    """Entry point: errors that a user can fix are one line and exit code 1."""
    for package in ("app", "worker", "models", "training", "evaluation"):
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and Path(spec.origin).parents[1] != Path(__file__).parents[1]:
            shadow = f"the package {package!r} of CLIPSynth is shadowed by {spec.origin}"
            raise SystemExit(f"error: {shadow}; use a separate environment")
    try:
        if "--help" not in sys.argv[1:]:
            _set_up()
        app()
    except ModelUnusable as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(os.EX_CONFIG) from None
    except (ClipSynthError, ValueError, OSError) as error:
        raise SystemExit(f"error: {_summary(error)}") from None


def _set_up() -> None:
    """Read the settings and start the log. `--help` needs neither, and pydantic takes long to import."""
    from clipsynth.log import set_up
    from clipsynth.settings import Settings, unknown_variables

    set_up(Settings().log_format)
    for name in unknown_variables():
        logging.getLogger("clipsynth").warning("%s is no setting; see docs/settings.md", name)


def _summary(error: Exception) -> str:
    """Return an error in one line; of invalid settings without their values, which may be secrets."""
    from pydantic import ValidationError

    if isinstance(error, OSError) and error.strerror:
        return _about_file(error)
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    prefix = "CLIPSYNTH_" if error.title == "Settings" else ""
    return "; ".join(
        f"{prefix}{'_'.join(map(str, e['loc'])).upper() if prefix else e['loc']}: {e['msg']}"
        for e in error.errors(include_input=False)
    )


def _about_file(error: OSError) -> str:
    """Return what is wrong with a file, in plain words."""
    if error.filename is None:
        return str(error.strerror)
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    if isinstance(error, FileNotFoundError):
        place = "" if Path(name).is_absolute() else f" in {Path.cwd()}"
        return f"{name} does not exist{place}; check the path"
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder; name a file"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{name} is a file, or lies below one; name a folder"
    if isinstance(error, PermissionError):
        return f"this user may not open {name}; change its rights or name another path"
    return f"{name}: {error.strerror}"


if __name__ == "__main__":
    main()
