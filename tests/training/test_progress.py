"""One view of all stages."""

import logging
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from tests.support.planted import planted_recipe, write_planted
from training import progress
from training import train as stages
from training.loop import Run, build_accelerator
from training.progress import ProgressView, StageProgress, span
from training.recipe import load_recipe
from training.state import TrainingState, steps_taken

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"


def view():
    vocoder, denoiser = StageProgress(10, 110, 1.0, "loss 1.0"), StageProgress(0, 100, 2.0)
    finetune = StageProgress(110, 120, like=(vocoder, 1.0))
    return ProgressView({"vocoder": vocoder, "denoiser": denoiser, "finetune": finetune})


def test_the_time_left_is_that_of_all_stages():
    made = view()
    assert made.all_left() == span(100 * 1 + 100 * 2 + 10 * 1)
    assert made.line("vocoder") == "vocoder 10/110, loss 1.0, left 0:01:40, all stages 0:05:10"
    made.stages["denoiser"].step_s = None
    assert made.all_left() == "over 0:01:50"


def test_the_table_has_a_line_per_stage():
    console = Console(width=120, force_terminal=True)
    with console.capture() as capture:
        console.print(view().table())
    lines = capture.get().splitlines()
    assert [line.split()[0] for line in lines] == ["vocoder", "denoiser", "finetune", "all"]
    assert "0:05:10" in lines[3]


def test_a_run_counts_throughput_and_the_wait_for_data(stage, monkeypatch, caplog):
    run, state = stage
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    items = run.timed(iter(range(60)))
    with caplog.at_level(logging.INFO):
        run.steps(state, 60, lambda n: torch.ones(()) * next(items), clips_per_step=4)
    shown = run.view.stages["stage"]
    assert shown.done == shown.total == 60
    assert "clips/s, data wait" in shown.figures
    assert shown.left_s == 0
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "stage 25/60",
        "stage 50/60",
        "stage 60/60",
    ]
    for name in ("clips_per_s", "data_wait"):
        assert len((run.folder / f"{name}.tsv").read_text().splitlines()) == 3


def test_an_unknown_time_is_a_question_mark():
    assert StageProgress(0, 5).left_s is None
    assert ProgressView({"a": StageProgress(0, 5)}).line("a") == "a 0/5, left ?"
    assert span(3661) == "1:01:01"


@pytest.mark.slow
def test_the_time_of_all_stages_is_known_before_the_first(tmp_path, monkeypatch):
    folder = write_planted(tmp_path / "clips", clips=6, dev=2)
    steps = ("vocoder.steps=30", "denoiser.steps=30", "vocoder.finetune_steps=5")
    monkeypatch.setattr(stages, "TIMED_STEPS", 2)
    seen = {}

    def train_vocoder(*arguments):
        seen.update(view=arguments[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "train_vocoder", train_vocoder)
    with pytest.raises(KeyboardInterrupt):
        stages.train(planted_recipe(folder, tmp_path / "run", *steps))
    shown = seen["view"].stages
    assert list(shown) == ["vocoder", "denoiser", "distil", "finetune"]
    assert shown["denoiser"].done == 2
    assert shown["denoiser"].left_s > 0
    assert steps_taken(tmp_path / "run" / "denoiser" / "state.pt") == 2


class Tracker:
    """A tracker of accelerate that keeps what it gets."""

    requires_logging_directory = False
    made: ClassVar[list] = []

    def __init__(self, project, **options):
        self.project, self.options, self.figures, self.images, self.ended = project, options, {}, {}, False
        self.made.append(self)

    def start(self):
        self.figures["started"] = True

    def store_init_configuration(self, values):
        self.recipe = values

    def log(self, values, step=None):
        self.figures |= {(name, step): value for name, value in values.items()}

    def log_images(self, values, step=None):
        self.images |= values

    def finish(self):
        self.ended = True


def test_figures_go_to_the_trackers_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setitem(progress.LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    monkeypatch.setattr(progress, "get_available_trackers", lambda: ["wandb"])
    part = torch.nn.Linear(1, 1)
    state = TrainingState(tmp_path, {"part": part}, [torch.optim.SGD(part.parameters())])
    run = Run("stage", tmp_path, load_recipe(DEMO, ["trackers=[wandb]", "name=mine"]), build_accelerator())
    run.steps(state, 30, lambda n: torch.ones(()))
    run.show(30, torch.zeros(4, 4))
    (tracker,) = Tracker.made
    assert tracker.project == "mine"
    assert tracker.options["name"] == "mine/stage"
    assert tracker.options["resume"] == "allow"
    assert tracker.recipe["denoiser"]["dim"] == 256
    assert tracker.figures["stage/loss", 25] == 1
    assert {"stage/spectrograms"} == tracker.images.keys()
    assert tracker.ended
    assert not (tmp_path / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="tracker mlflow is not installed; pip install mlflow, or"):
        Run("stage", tmp_path, load_recipe(DEMO, ["trackers=[mlflow]"]), build_accelerator())
    with pytest.raises(ValueError, match="trackers"):
        load_recipe(DEMO, ["trackers=[abacus]"])
