"""The command line. Each command imports what it needs when it runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

import typer
from pydantic import ValidationError

from clipsynth.commands.doctor import doctor
from clipsynth.commands.evaluation import evaluate, listen
from clipsynth.commands.generate import generate
from clipsynth.commands.inspect import inspect, models
from clipsynth.commands.keys import keys
from clipsynth.commands.services import api, janitor, openapi, serve, webhooks, worker
from clipsynth.commands.study import study
from clipsynth.commands.training import average, correspondence, export, merge, mismatch, prepare, train
from clipsynth.errors import ClipSynthError, ModelUnusable
from clipsynth.log import set_up
from clipsynth.settings import Settings, unknown_variables

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text or image in, sound out.",
)
PANELS = {
    "Sounds": (generate, models, inspect),
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
        set_up(Settings().log_format)
        for name in unknown_variables():
            logging.getLogger("clipsynth").warning("%s is no setting; see docs/settings.md", name)
        app()
    except ModelUnusable as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(os.EX_CONFIG) from None
    except ValidationError as error:
        raise SystemExit(f"error: {_summary(error)}") from None
    except (ClipSynthError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _summary(error: ValidationError) -> str:
    """Return one line on invalid settings, without their values, which may be secrets."""
    prefix = "CLIPSYNTH_" if error.title == Settings.__name__ else ""
    return "; ".join(
        f"{prefix}{'_'.join(map(str, e['loc'])).upper() if prefix else e['loc']}: {e['msg']}"
        for e in error.errors(include_input=False)
    )


if __name__ == "__main__":
    main()
