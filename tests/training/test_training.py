import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from clipsynth.cli import app
from models import ClipSynthPipeline
from models.audio.mel import LOG_FLOOR
from models.conditioning.phrase_bank import PhraseBank
from models.networks.condition_encoder import ConditionEncoder
from training.data.batches import Batches, BatchMaker, sampling_weights
from training.data.clips import load_clips
from training.denoiser import train as denoiser_stage
from training.denoiser.flow_matching import build_denoiser
from training.denoiser.train import train_denoiser
from training.loop import Terminated, build_accelerator, describe_environment, git_commit
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import prepare
from training.recipe import load_recipe
from training.state import load_state
from training.train import train
from training.vocoder.generated_mels import GeneratedClips
from training.vocoder.train import Segments

pytestmark = pytest.mark.slow


ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
DEMO = ROOT / "recipes" / "demo.yaml"
TINY = [
    "vocoder.batch_size=2",
    "vocoder.finetune_steps=0",
    "vocoder.upsample_initial_channel=32",
    "vocoder.segment_frames=20",
    "denoiser.batch_size=2",
    "denoiser.dim=32",
    "denoiser.depth=1",
    "denoiser.heads=2",
    "denoiser.max_frames=160",
    "in_memory=false",
    "denoiser.dropout=0.0",
    "denoiser.decay_share=0.0",  # a run that is prolonged must not have decayed
]


def recipe(prepared, run, steps, *overrides):
    return load_recipe(
        DEMO,
        [
            f"clips={prepared}",
            f"run={run}",
            f"vocoder.steps={steps}",
            f"denoiser.steps={steps}",
            *TINY,
            *overrides,
        ],
    )


def test_train_makes_a_bundle_that_sounds(prepared, tmp_path):
    folder = train(recipe(prepared, tmp_path, 2))
    sound = ClipSynthPipeline.from_pretrained(folder)("a red thing", duration_s=1.0).audios[0]
    assert sound.shape == (16000,)
    assert torch.from_numpy(sound).isfinite().all()


def flat(tensors, prefix=""):
    """Nested dicts of tensors as one."""
    return {
        name: tensor
        for key, value in tensors.items()
        for name, tensor in (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        ).items()
    }


def test_resumed_training_equals_uninterrupted_training(prepared, tmp_path):
    adversarial = ("vocoder.adversarial_from=1", "vocoder.half_life_steps=1000000", "denoiser.dropout=0.1")
    train(recipe(prepared, tmp_path / "whole", 4, *adversarial))
    train(recipe(prepared, tmp_path / "halves", 2, *adversarial))
    train(recipe(prepared, tmp_path / "halves", 4, *adversarial))
    for stage in ("vocoder", "denoiser"):
        whole, halves = (
            flat(load_state(tmp_path / run / stage / "state.pt")["weights"]) for run in ("whole", "halves")
        )
        assert all(torch.equal(whole[name], halves[name]) for name in whole)


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


def test_a_machine_without_git_trains_too(monkeypatch):
    assert (git_commit() is not None) == (ROOT / ".git").exists()
    monkeypatch.setenv("PATH", "")
    assert describe_environment()["git_commit"] is None


def test_a_run_keeps_its_recipe_environment_and_logs(prepared, tmp_path):
    made = recipe(prepared, tmp_path, 2)
    train(made, stage="vocoder")
    train(made, stage="denoiser")
    folder = tmp_path / "denoiser"
    assert load_recipe(folder / "recipe.yaml") == made
    assert json.loads((folder / "environment.json").read_text())["packages"].keys() >= {"torch", "diffusers"}
    assert len((folder / "dev.tsv").read_text().splitlines()) == 1
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert shown.Tags()["images"] == ["denoiser/spectrograms"]
    assert shown.Tags()["audio"] == ["denoiser/samples"]
    (sample,) = shown.Audio("denoiser/samples")
    assert (sample.step, sample.sample_rate, sample.length_frames) == (2, 16000, 64000)  # one dev clip


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


def test_sigterm_ends_all_stages_and_the_command_resumes(prepared, tmp_path, monkeypatch):
    def made(name):
        return recipe(prepared, tmp_path / name, 4, "denoiser.evaluate_every=2", "vocoder.finetune_steps=1")

    whole = train(made("whole"))
    measure, stops = denoiser_stage.dev_loss, iter([True])

    def measured(*arguments):
        if next(stops, False):
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments)

    monkeypatch.setattr(denoiser_stage, "dev_loss", measured)
    with pytest.raises(Terminated) as stopped:
        train(made("ended"))
    assert stopped.value.code == 143
    assert load_state(tmp_path / "ended" / "denoiser" / "state.pt")["step"] < 4
    assert (
        load_state(tmp_path / "ended" / "vocoder" / "state.pt")["step"] == 4
    )  # not on mels of half a denoiser
    assert not (tmp_path / "ended" / "bundle").exists()
    ended = train(made("ended"))
    for part in ("denoiser/diffusion_pytorch_model", "vocoder/model"):
        one, other = (load_file(folder / f"{part}.safetensors") for folder in (whole, ended))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_move_the_weights_as_the_whole_batch_does(prepared, tmp_path, monkeypatch):
    steps = [
        recipe(
            prepared,
            tmp_path / str(k),
            3,
            "denoiser.batch_size=4",
            f"denoiser.gradient_accumulation_steps={k}",
            "denoiser.min_frames=160",
            "denoiser.length_step=0",
            "denoiser.warmup_steps=1",
            "bf16=false",
        )
        for k in (1, 2)
    ]
    clips = load_clips(prepared)
    assert Batches(clips.train, steps[0]).clip_numbers(0) == [
        i for n in (0, 1) for i in Batches(clips.train, steps[1]).clip_numbers(n)
    ]
    train(steps[0], stage="denoiser")
    whole = Batches.__getitem__

    def half(_, n):  # of the rows of step n // 2
        return whole(Batches(clips.train, steps[0], rank=n % 2, world_size=2), n // 2)

    monkeypatch.setattr(Batches, "__getitem__", half)
    train(steps[1], stage="denoiser")
    folders = [Path(made.run) / "denoiser" for made in steps]
    one, two = (load_state(folder / "state.pt")["weights"] for folder in folders)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=0)
    losses = [float((folder / "loss.tsv").read_text().split("\t")[1]) for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_epoch_has_each_clip_once_for_any_number_of_processes(prepared, tmp_path):
    made = recipe(prepared, tmp_path, 1, "denoiser.batch_size=2")
    clips = load_clips(prepared).train
    whole = Batches(clips, made)
    for epoch in range(3):
        seen = [i for n in range(len(clips) * 2) for i in whole.clip_numbers(n)][epoch * len(clips) :][
            : len(clips)
        ]
        assert sorted(seen) == list(range(len(clips)))
    keeping = Batches(clips, made, keep=True)
    keeps_none, keeps_all = (BatchMaker(batches, CPU) for batches in (whole, keeping))
    parts = [keeps_none(Batches(clips, made, rank=rank, world_size=2)[5]).tensors for rank in (0, 1)]
    all_rows = keeps_all(keeping[5]).tensors
    with pytest.raises(ValueError, match="kept"):
        keeps_none(keeping[5])
    with pytest.raises(ValueError, match="not a multiple of 3 processes"):
        Batches(clips, made, world_size=3)
    with pytest.raises(ValueError, match=r"vocoder\.batch_size.* 3 processes"):
        Segments(clips, made, 160, world_size=3)
    for *halves, full in zip(*parts, all_rows, strict=True):
        both = torch.stack(halves, dim=1).flatten(0, 1)
        torch.testing.assert_close(both, full, equal_nan=True, rtol=0, atol=1e-5)


def test_crops_have_the_recipes_minimum_and_end_in_silence(prepared, tmp_path):
    clips = load_clips(prepared).train
    made = recipe(prepared, tmp_path, 1, "denoiser.length_step=64", "vocoder.segment_frames=700")
    assert {Batches(clips, made)[n].frames for n in range(30)} == {128}  # of 64 to 160: 100 and more
    mels, waves = Segments(clips, made, 160)[0]
    assert (waves[:, 500 * 160 :] == 0).all()
    assert (mels[:, 500:] == LOG_FLOOR).all()


def test_batches_mix_clips_and_mask_attributes_by_the_recipe(prepared, tmp_path):
    made = recipe(
        prepared,
        tmp_path,
        1,
        "denoiser.batch_size=200",
        "denoiser.mix_share=0.3",
        "denoiser.speeds=[1.0, 1.25]",
        "denoiser.attribute_semitones=0",
        "denoiser.scalars=[brightness, pitch, agreement]",
    )
    clips = load_clips(prepared).train
    batches = Batches(clips, made)
    draw = batches[0]
    batch = BatchMaker(batches, CPU)(draw)
    changed = (draw.sources.speeds != 1) | (draw.sources.gains > 0)
    assert changed.float().mean() == pytest.approx(0.65, abs=0.1)
    assert batch.mel.isfinite().all()
    assert batch.mel.shape == batch.noise.shape == (200, draw.frames, 64)
    mixes = batch.weights.min(1).values < 1
    assert mixes.float().mean() == pytest.approx(0.3, abs=0.1)
    assert (batch.weights.max(1).values == 1).all()
    assert (batch.weights.min() >= 10**-0.5).item()
    dropped = ~batch.mask.any(1)
    assert batch.mask[mixes & ~dropped].all()
    told = ~batch.scalars.isnan()
    assert not told[mixes | dropped].any()
    assert told.shape[1] == 2  # nobody measured agreement
    assert told[~mixes & ~dropped, 0].float().mean() == pytest.approx(0.2, abs=0.1)
    assert ((batch.scalars[told] >= 0) & (batch.scalars[told] <= 1)).all()


def test_clips_that_correspond_are_drawn_more_often(prepared, tmp_path, monkeypatch):
    made = recipe(prepared, tmp_path, 1, "denoiser.correspondence_weighting=true", "denoiser.batch_size=400")
    clips = load_clips(prepared).train
    with pytest.raises(ValueError, match="clipsynth correspondence"):
        Batches(clips, made)
    monkeypatch.setattr(type(clips), "correspondence", lambda _, i: float(i == 0))
    share = Batches(clips, made).clip_numbers(0).count(0) / 400
    assert share == pytest.approx(float(sampling_weights(torch.eye(len(clips))[0])[0]), abs=0.1)


def test_phrases_replace_frames_in_the_recipes_share(prepared, tmp_path):
    made = recipe(prepared, tmp_path, 1, "denoiser.pseudo_text=0.5", "denoiser.batch_size=100")
    clips = load_clips(prepared)
    phrases = torch.nn.functional.normalize(torch.randn(2, 20, len(clips.image_mean)), dim=-1)
    small = Batches(clips.train, made, PhraseBank(phrases, clips.image_mean))[0].small
    assert small["is_text"].float().mean() == pytest.approx(0.5, abs=0.15)
    for embeds, is_text in zip(small["embeds"], small["is_text"], strict=True):
        near = torch.cdist(embeds, phrases.flatten(0, 1)).amin(1) < 1e-2
        assert torch.equal(near, is_text)
    with pytest.raises(ValueError, match="pseudo_text replaces frames"):
        recipe(prepared, tmp_path, 1, "denoiser.pseudo_text=0.5", "denoiser.condition=text")


def test_times_lie_where_the_recipe_says(prepared, tmp_path):
    """Logit-normal (Esser et al. 2024, eq. 19): half of them below the logistic function of its mean."""
    clips = load_clips(prepared).train
    for mean, std in ((0.0, 1.0), (-1.0, 1.2)):
        made = recipe(
            prepared,
            tmp_path,
            1,
            "denoiser.batch_size=400",
            f"denoiser.logit_mean={mean}",
            f"denoiser.logit_std={std}",
        )
        logits = Batches(clips, made)[0].small["t"].logit()
        assert logits.mean().item() == pytest.approx(mean, abs=0.2)
        assert logits.std().item() == pytest.approx(std, abs=0.15)


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


def test_an_unknown_scalar_is_an_error(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"brightness.*got colour"):
        recipe(prepared, tmp_path, 1, "denoiser.scalars=[colour]")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_in_memory_is_the_same_run(prepared, tmp_path, workers):
    """And so is one whose clips other processes read."""
    weights = []
    for name, more in (("plain", ("in_memory=false",)), ("kept", ("in_memory=true", f"workers={workers}"))):
        run = recipe(prepared, tmp_path / name, 3, "denoiser.mix_share=0.5", "vocoder.steps=3", *more)
        train(run, stage="denoiser")
        train(run, stage="vocoder")
        states = [load_state(Path(run.run) / part / "state.pt") for part in ("denoiser", "vocoder")]
        weights.append(flat({str(k): state["weights"] for k, state in enumerate(states)}))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


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


def test_a_state_of_another_shape_or_half_a_state_is_refused(prepared, tmp_path):
    train(recipe(prepared, tmp_path, 1), stage="denoiser")
    with pytest.raises(ValueError, match=r"denoiser: .* another shape"):
        train(recipe(prepared, tmp_path, 2, "denoiser.dim=64"), stage="denoiser", fork_to=tmp_path / "fork")
    state = tmp_path / "denoiser" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        train(recipe(prepared, tmp_path, 2), stage="denoiser")


def test_two_processes_train_as_one(prepared, tmp_path):
    """Same samples, loss curve and weights up to rounding, with half the batch in each process."""
    overrides = ("denoiser.batch_size=4", "bf16=false", "threads=1", "denoiser.warmup_steps=1")
    made = recipe(prepared, tmp_path / "one", 4, *overrides)
    train(made, stage="denoiser")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_copy(update={"run": str(tmp_path / "two")}).model_dump()))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "clipsynth.cli",
    ]
    subprocess.run([*command, "train", str(path), "--stage", "denoiser"], check=True, cwd=ROOT, timeout=300)
    one, two = (load_state(tmp_path / name / "denoiser" / "state.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    for name in one["weights"]:
        torch.testing.assert_close(one["weights"][name], two["weights"][name], atol=2e-4, rtol=0)
    assert one["best"] == pytest.approx(two["best"], rel=1e-3)
