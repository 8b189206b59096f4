"""A run resumes with its own recipe and clips, or is refused with the differences, or forks."""

import pytest
import yaml
from typer.testing import CliRunner

from clipsynth.cli import app
from tests.support.planted import planted_recipe, write_planted
from training.recipe import differences
from training.state import load_state
from training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted") / "clips", clips=8, dev=2)


def denoiser(recipe, **options):
    return train(recipe, stage="denoiser", **options)


def state(run):
    return load_state(run / "denoiser" / "state.pt")


def test_what_may_change_changes_and_the_rest_is_named(clips, tmp_path):
    run = tmp_path / "run"
    denoiser(planted_recipe(clips, run, "denoiser.steps=2"))
    may = ("denoiser.steps=3", "denoiser.evaluate_every=3", "save_every_s=9", "workers=0", "name=other")
    denoiser(planted_recipe(clips, run, *may, "vocoder.batch_size=4", "text_sigma=0.2"))
    assert state(run)["step"] == 3
    kept = (run / "denoiser" / "recipe.yaml").read_bytes(), state(run)
    for override, message in (
        ("seed=5", "seed was 0, now 5"),
        ("denoiser.batch_size=8", r"denoiser\.batch_size was 4, now 8"),
        ("denoiser.learning_rate=0.1", r"denoiser\.learning_rate was 0\.0008, now 0\.1"),
        ("denoiser.speeds=[1.0]", r"denoiser\.speeds was \[0\.94, 1\.0, 1\.06\], now \[1\.0\]"),
        ("denoiser.density_balance=0.5", r"denoiser\.density_balance was 0\.0, now 0\.5"),
    ):
        with pytest.raises(ValueError, match=f"{message}; set it back, or .*--fork") as refused:
            denoiser(planted_recipe(clips, run, "denoiser.steps=4", override))
        assert "\n" not in str(refused.value)
    assert (run / "denoiser" / "recipe.yaml").read_bytes() == kept[0]
    assert state(run)["step"] == kept[1]["step"]


def test_changed_clips_are_noticed_wherever_they_lie(clips, tmp_path):
    run = tmp_path / "run"
    denoiser(planted_recipe(clips, run, "denoiser.steps=1"))
    same = write_planted(tmp_path / "moved", clips=8, dev=2)
    denoiser(planted_recipe(same, run, "denoiser.steps=2"))
    other = write_planted(tmp_path / "other", clips=9, dev=2)
    with pytest.raises(ValueError, match=r"index\.jsonl of the clips has changed"):
        denoiser(planted_recipe(other, run, "denoiser.steps=3"))


def test_a_fork_continues_in_a_new_folder(clips, tmp_path):
    run, new = tmp_path / "run", tmp_path / "new"
    denoiser(planted_recipe(clips, run, "denoiser.steps=2"))
    before = state(run)["weights"]
    changed = planted_recipe(clips, run, "denoiser.steps=3", "seed=5")
    denoiser(changed, fork_to=new)
    assert state(run)["step"] == 2
    assert state(new)["step"] == 3
    assert yaml.safe_load((new / "denoiser" / "recipe.yaml").read_text())["seed"] == 5
    moved = max((state(new)["weights"][name] - before[name]).abs().max() for name in before)
    assert 0 < float(moved) < 0.01  # one step away
    with pytest.raises(ValueError, match="is not empty; to continue that run: --set run="):
        denoiser(changed, fork_to=new)
    denoiser(planted_recipe(clips, new, "denoiser.steps=4", "seed=5"))
    with pytest.raises(ValueError, match="no state to fork"):
        denoiser(planted_recipe(clips, tmp_path / "none"), fork_to=tmp_path / "newer")


def test_the_command_forks(clips, tmp_path):
    made = planted_recipe(clips, tmp_path / "run", "denoiser.steps=1")
    denoiser(made)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made.model_dump()))
    command = ["train", str(tmp_path / "recipe.yaml"), "--stage", "denoiser", "--set", "seed=1"]
    more = ["--set", "denoiser.steps=2", "--fork", str(tmp_path / "new")]
    CliRunner().invoke(app, command + more, catch_exceptions=False)
    assert state(tmp_path / "new")["step"] == 2


def test_a_recipe_of_an_earlier_version_has_the_defaults(clips, tmp_path):
    made = planted_recipe(clips, tmp_path)
    saved = yaml.safe_load(yaml.safe_dump(made.model_dump()))
    del saved["denoiser"]["density_balance"], saved["seed"]
    assert differences(made, saved, "denoiser") == []
    assert differences(made, saved | {"seed": 3}, "vocoder") == ["seed was 3, now 0"]
