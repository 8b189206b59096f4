"""The loop of the stages alone, with a step that costs nothing."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.planted import planted_recipe, write_planted
from training.data.clips import load_clips
from training.denoiser.train import train_denoiser
from training.loop import LOG_EVERY, StopRequest, Terminated, build_accelerator, marked
from training.state import load_state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_saves_the_finished_step(stage, number):
    if signal.getsignal(number) is signal.SIG_IGN:  # under nohup
        pytest.skip("the signal is ignored in this process, and stays so")
    run, state = stage
    before = signal.getsignal(number)

    def step(n):
        if n == 3:
            os.kill(os.getpid(), number)
        return torch.zeros(())

    with pytest.raises(Terminated) as ended:
        run.steps(state, 100, step)
    assert ended.value.code == 128 + number
    assert load_state(state.folder / "state.pt")["step"] == 4
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once():
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_a_hangup_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_clips(stage, value):
    run, state = stage
    state.save()

    def clips_of(n):
        return [f"{n}.mp4 at {k} s" for k in range(6)] + ["bad.mp4 at 0 s (embeds not finite)"]

    message = r"stage: the loss of step 7 .* bad\.mp4 at 0 s \(embeds not finite\), 7\.mp4 .* 3 more in "
    with pytest.raises(ValueError, match=message) as stopped:
        run.steps(state, 100, lambda n: torch.tensor(value if n >= 7 else 1.0), clips_of=clips_of)
    assert "\n" not in str(stopped.value)
    assert load_state(state.folder / "state.pt")["step"] == 0
    assert len((state.folder / "not_finite.txt").read_text().splitlines()) == 7


def test_no_state_is_saved_after_a_bad_loss(stage):
    run, state = stage
    run.recipe = run.recipe.model_copy(update={"save_every_s": 1e-9})
    with pytest.raises(ValueError, match="try a lower learning rate"):
        run.steps(
            state,
            LOG_EVERY + 10,
            lambda n: torch.tensor(float("nan") if n == 8 else 1.0),
            clips_of=lambda n: [f"{n}.mp4"],
        )
    assert load_state(state.folder / "state.pt")["step"] == 8


def test_a_gradient_that_is_not_finite_marks_the_loss():
    assert not marked(torch.ones(()), torch.tensor(float("inf"))).isfinite()
    assert float(marked(torch.ones(()), torch.tensor(2.0))) == 1


def test_no_figure_is_shown_before_it_is_known(stage, capsys):
    run, state = stage
    run.steps(state, 3, lambda n: torch.ones(()))
    assert "nan" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_clip_with_a_nan_is_named(tmp_path):
    folder = write_planted(tmp_path / "clips", clips=6, dev=2, bad=4)
    made = planted_recipe(folder, tmp_path)
    with pytest.raises(
        ValueError, match=r"step \d is not finite.* clips 4\.mp4 at 0 s \(embeds not finite\), "
    ):
        train_denoiser(made, load_clips(folder), build_accelerator())
    assert load_state(tmp_path / "denoiser" / "state.pt") is None


def test_statistics_that_are_not_finite_are_refused(tmp_path):
    folder = write_planted(tmp_path / "clips", clips=3, dev=1)
    statistics = load_file(folder / "statistics.safetensors")
    save_file(statistics | {"gain": torch.tensor(float("inf"))}, folder / "statistics.safetensors")
    with pytest.raises(ValueError, match=r"gain in .*statistics\.safetensors is not finite; prepare"):
        load_clips(folder)


def test_the_states_of_the_last_evaluations_are_kept(stage):
    run, state = stage
    run.steps(state, 10, lambda n: torch.ones(()), evaluate=lambda n: True, evaluate_every=2)
    kept = sorted(path.name for path in state.folder.glob("state-*.pt"))
    assert kept == ["state-000000006.pt", "state-000000008.pt", "state-000000010.pt"]
    assert load_state(state.folder / kept[0])["step"] == 6
    (state.folder / "state.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot be read .*; copy state-000000010\.pt over it"):
        load_state(state.folder / "state.pt")
