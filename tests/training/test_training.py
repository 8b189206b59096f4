"""Training from prepared clips to a bundle."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from clipsynth.cli import app
from models import ClipSynthPipeline
from models.networks.condition_encoder import ConditionEncoder
from tests.support.tiny_recipe import DEMO, recipe
from training.data.batches import Batches
from training.data.clips import load_clips
from training.denoiser.flow_matching import build_denoiser
from training.denoiser.train import train_denoiser
from training.loop import build_accelerator
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import prepare
from training.recipe import RETIRED, load_recipe
from training.state import load_state
from training.train import train
from training.vocoder.generated_mels import GeneratedClips

pytestmark = pytest.mark.slow


def test_train_makes_a_bundle_that_sounds(prepared, tmp_path):
    folder = train(recipe(prepared, tmp_path, 2))
    sound = ClipSynthPipeline.from_pretrained(folder)("a red thing", duration_s=1.0).audios[0]
    assert sound.shape == (16000,)
    assert torch.from_numpy(sound).isfinite().all()


@pytest.mark.parametrize("path", sorted(DEMO.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_how_it_is_run(path):
    made = load_recipe(path)
    assert made.name == path.stem
    for word in ("Hardware:", "Command:", "Expected time"):
        assert word in path.read_text()
    assert f"clipsynth train recipes/{path.name}" in path.read_text().replace("clipsynth.cli", "clipsynth")


def test_unprepared_folder_and_bad_recipes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="prepare"):
        load_clips(tmp_path)
    for override, message in (
        ("nonsense=1", "nonsense: no such field"),
        ("denoiser.agreement_weight=true", r"denoiser\.agreement_weight: no such field"),
        ("denoiser.dim=wide", r"denoiser\.dim: .* 'wide'"),
        ("denoiser.dim", "key=value"),
        ("name.first=x", "below a plain value"),
        ("clips=[", "not YAML"),
        ("denoiser.min_frames=600", "no crop of 600 to 500 frames"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(DEMO, [override])
    with pytest.raises(ValueError, match="a token of 4"):
        load_recipe(DEMO, ["denoiser.min_frames=2", "denoiser.length_step=2"])
    for text, message in (("a: [", "not YAML"), ("- a", "not YAML|recipe|dictionary")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(tmp_path / "bad.yaml")


def test_recipes_of_earlier_runs_load_unless_a_key_had_effect(tmp_path):
    old = yaml.safe_load(DEMO.read_text())
    for section, keys in RETIRED.items():
        if section != "vqgan":
            (old[section] if section else old).update(keys)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(DEMO)
    with pytest.raises(ValueError, match=r"denoiser\.optimizer: no such field"):
        load_recipe(tmp_path / "recipe.yaml", ["denoiser.optimizer=muon"])


def test_an_unknown_stage_is_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match="no stage 'sing'"):
        train(recipe(prepared, tmp_path, 1), stage="sing")


def test_a_run_starts_from_the_weights_and_the_space_of_a_bundle(videos, encoder, prepared, tmp_path):
    folder = train(recipe(prepared, tmp_path / "first", 2))
    list(prepare(videos, tmp_path / "fewer", encoder, options=PrepareOptions(clip_s=1.0)))
    again = train(recipe(tmp_path / "fewer", tmp_path / "second", 1), init=folder)
    first, second = (ClipSynthPipeline.from_pretrained(f) for f in (folder, again))
    ours, theirs = first.vocoder.conv_pre.weight, second.vocoder.conv_pre.weight
    assert 0 < (ours - theirs).abs().max() < 0.01  # one step of training away, not a new draw
    ours, theirs = (pipe.denoiser.transformer.proj_out.weight for pipe in (first, second))
    assert 0 < (ours - theirs).abs().max() < 0.01
    assert torch.equal(first.condition_encoder.means, second.condition_encoder.means)
    wider = recipe(prepared, tmp_path / "third", 1, "vocoder.upsample_initial_channel=64")
    with pytest.raises(ValueError, match="vocoder"):
        train(wider, init=folder)


def test_export_takes_what_there_is_and_refuses_what_is_not(prepared, tmp_path):
    nothing = recipe(prepared, tmp_path, 2)
    with pytest.raises(ValueError, match="no trained vocoder"):
        train(nothing, stage="export")
    train(nothing, stage="vocoder")
    with pytest.raises(ValueError, match="no trained denoiser"):
        train(nothing, stage="export")
    train(nothing, stage="denoiser")
    states = [(tmp_path / stage / "state.pt").read_bytes() for stage in ("vocoder", "denoiser")]
    assert load_state(tmp_path / "denoiser" / "state.pt")["step"] == 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(nothing.model_dump()))
    command = [
        "export",
        str(tmp_path / "recipe.yaml"),
        "--set",
        "text_sigma=0.3",
        "--out",
        str(tmp_path / "out"),
    ]
    assert CliRunner().invoke(app, command, catch_exceptions=False).output.strip().endswith("out")
    assert ClipSynthPipeline.from_pretrained(tmp_path / "out").condition_encoder.config.text_sigma == 0.3
    assert states == [(tmp_path / stage / "state.pt").read_bytes() for stage in ("vocoder", "denoiser")]


def test_export_writes_the_retrieval_index_and_a_model_card(prepared, tmp_path):
    made = recipe(prepared, tmp_path / "run", 1, "requests.num_inference_steps=9")
    train(made, stage="vocoder")
    train(made, stage="denoiser")
    clips = load_clips(prepared).train
    known = clips.index[0]["video"]
    (tmp_path / "sources.csv").write_text(f"file,source,licence\n{known},the archive,CC0\n")
    (tmp_path / "results.md").write_text("heard: 0.5")
    folder = train(
        made,
        stage="export",
        out=tmp_path / "bundle",
        attribution=tmp_path / "sources.csv",
        results=tmp_path / "results.md",
    )
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert len(lines) == len(clips)
    assert [line["source"] for line in lines].count("the archive") == 1
    embeds = load_file(folder / "index.safetensors")["embeds"].float()
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(clips)), atol=2e-3, rtol=0)
    assert torch.cosine_similarity(embeds[0], clips.embeds(0).mean(0), dim=0) > 0.999
    card = (folder / "README.md").read_text()
    for part in ("| the archive | CC0 | 1 |", "| not stated | not stated |", "heard: 0.5", "9 steps"):
        assert part in card
    pipe = ClipSynthPipeline.from_pretrained(folder)
    assert pipe.manifest.num_inference_steps == 9
    assert "index.safetensors" in pipe.manifest.sha256
    images = pipe.index.thumbnails
    assert len(images.small) == len(lines)
    assert images.nearest(clips.mel(0).numpy(), 1)[0] == (0, pytest.approx(0, abs=0.02))
    (tmp_path / "sources.csv").write_text("file\n0.mp4\n")
    with pytest.raises(ValueError, match="source"):
        train(made, stage="export", attribution=tmp_path / "sources.csv")


def test_variants_share_the_vocoder_of_a_run_or_bundle(prepared, tmp_path):
    first = train(recipe(prepared, tmp_path / "first", 1))
    one = load_file(first / "vocoder" / "model.safetensors")
    for shared in (tmp_path / "first", first):
        second = train(recipe(prepared, tmp_path / "second", 1, f"vocoder_run={shared}", "seed=5"))
        assert not (tmp_path / "second" / "vocoder").exists()
        two = load_file(second / "vocoder" / "model.safetensors")
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert f"that of the bundle {first}" in (second / "README.md").read_text()


def test_the_best_weights_on_dev_are_exported_and_training_stops(prepared, tmp_path):
    made = recipe(
        prepared,
        tmp_path,
        50,
        "denoiser.evaluate_every=1",
        "denoiser.patience=2",
        "denoiser.learning_rate=3.0",  # diverges at once, so the first evaluation is the best
        "denoiser.warmup_steps=1",
    )
    train(made, stage="denoiser")
    figures = [line.split("\t") for line in (tmp_path / "denoiser" / "dev.tsv").read_text().splitlines()]
    losses = [float(loss) for _, loss, _ in figures]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 50
    assert load_state(tmp_path / "denoiser" / "best.pt")["step"] == best + 1
    train(made, stage="denoiser")  # it stopped by itself: there is nothing to go on with
    assert load_state(tmp_path / "denoiser" / "state.pt")["step"] == len(losses)


def test_what_a_bundle_was_told_it_can_be_told_after_fine_tuning(prepared, tmp_path):
    """Though nobody measured agreement here."""
    names = ("denoiser.scalars=[brightness, agreement]",)
    clips = load_clips(prepared)
    told = ConditionEncoder(embed_dim=len(clips.image_mean), scalars=["brightness", "agreement"])
    start = (told, build_denoiser(recipe(prepared, tmp_path, 1), clips))
    made = recipe(prepared, tmp_path / "tuned", 1, *names)
    encoder, _ = train_denoiser(made, clips, build_accelerator(), start)
    assert list(encoder.config.scalars) == ["brightness", "agreement"]
    fresh = recipe(prepared, tmp_path / "fresh", 1, *names)
    encoder, _ = train_denoiser(fresh, clips, build_accelerator())
    assert list(encoder.config.scalars) == ["brightness"]


@pytest.mark.parametrize("condition", ["text", "hybrid"])
def test_captions_are_what_the_text_and_hybrid_variants_train_on(
    videos, encoder, prepared, tmp_path, condition
):
    (tmp_path / "captions.csv").write_text(
        "file,caption\n" + "".join(f"{n}.mp4,tone number {n}\n" for n in range(4))
    )
    list(prepare(videos, tmp_path / "clips", encoder, captions=tmp_path / "captions.csv"))
    made = recipe(tmp_path / "clips", tmp_path / "run", 1, f"denoiser.condition={condition}")
    is_text = torch.cat(
        [Batches(load_clips(tmp_path / "clips").train, made)[n].small["is_text"] for n in range(20)]
    )
    assert is_text.float().mean() == pytest.approx(1.0 if condition == "text" else 0.5, abs=0.2)
    train(made, stage="denoiser")
    with pytest.raises(ValueError, match=r"captions.*\.mp4"):
        train(recipe(prepared, tmp_path / "other", 1, f"denoiser.condition={condition}"), stage="denoiser")


def test_the_vocoders_last_part_is_on_mels_of_the_denoiser(prepared, tmp_path):
    made = recipe(
        prepared,
        tmp_path,
        1,
        "vocoder.finetune_steps=2",
        "vocoder.finetune_clips=3",
        "vocoder.adversarial_from=0",  # for the first step alone: demo's last part is without
    )
    with pytest.raises(ValueError, match="no trained"):
        train(made, stage="finetune")
    train(made)
    assert load_state(tmp_path / "vocoder" / "state.pt")["step"] == 3
    clips = load_clips(prepared)
    pipe = ClipSynthPipeline.from_pretrained(tmp_path / "bundle")
    generated = GeneratedClips(clips.train, pipe.condition_encoder, pipe.denoiser.float(), limit=3)
    assert len(generated) == 3
    assert generated.mel(0).shape[0] == len(clips.train.mel(0)) // 4 * 4
    assert torch.equal(generated.waveform(0), clips.train.waveform(0))
