"""Guidance in one pass: what the student learns of its teacher, and what becomes of it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import ClipSynthPipeline
from models.networks.condition_encoder import GUIDANCE
from tests.support.tiny import build_tiny_pipeline
from training.data.batches import Batches, BatchMaker
from training.data.clips import load_clips
from training.denoiser.flow_matching import FlowMatching
from training.denoiser.guidance_distillation import GuidanceDistillation, build_student, distil
from training.denoiser.train import train_denoiser
from training.denoiser.validation import dev_batches, dev_loss
from training.loop import build_accelerator
from training.recipe import load_recipe
from training.state import load_state
from training.train import train

pytestmark = pytest.mark.slow


DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"
CPU = torch.device("cpu")
TINY = [
    "vocoder.steps=2",
    "vocoder.architecture=hifigan",
    "vocoder.batch_size=2",
    "vocoder.finetune_steps=0",
    "vocoder.upsample_initial_channel=32",
    "vocoder.segment_frames=20",
    "denoiser.steps=2",
    "denoiser.batch_size=4",
    "denoiser.dim=32",
    "denoiser.depth=1",
    "denoiser.heads=2",
    "denoiser.frames_per_token=4",
    "denoiser.max_frames=160",
    "denoiser.decay_share=0.0",
    "denoiser.warmup_steps=5",
    "denoiser.ema_decay=0.9",
    "denoiser.scalars=[brightness, pitch, noisiness, density]",
    "denoiser.dropout=0.0",
    "denoiser.mix_share=0.0",
    "denoiser.speeds=[1.0]",
    "denoiser.attribute_semitones=0",
    "requests.guidance_scale=8.0",
    "distil.max_guidance=10.0",
    "requests.guidance_interval=[0.0, 0.65]",
]


def recipe(prepared, run, *overrides, steps=40):
    paths = [f"clips={prepared}", f"run={run}"]
    return load_recipe(
        DEMO, [*paths, *TINY, f"distil.steps={steps}", "distil.learning_rate=0.003", *overrides]
    )


@pytest.fixture
def teacher():
    """Parts whose conditions matter; those of a denoiser after two steps do not."""
    pipe = build_tiny_pipeline()
    return pipe.condition_encoder.eval(), pipe.denoiser


def guided(made, teacher, student):
    return GuidanceDistillation(
        FlowMatching(*teacher),
        student,
        (made.distil.min_guidance, made.distil.max_guidance),
        made.requests.guidance_interval,
    )


def distance(made, teacher, student, clips, scale=8.0):
    """Return how far a student is from its teacher with guidance, on dev clips at t = 1/8."""
    model = guided(made, teacher, student.eval())
    batches = dev_batches(clips.dev, made, 5)[:1]
    return dev_loss(lambda batch: model.distance(batch, torch.full_like(batch.t, scale)), batches, CPU)


def test_a_student_learns_guidance_and_keeps_the_rest(prepared, tmp_path, teacher):
    made, clips = recipe(prepared, tmp_path, "denoiser.batch_size=16", steps=60), load_clips(prepared)
    start = build_student(made, made.distil, teacher)
    trained = FlowMatching(*distil(made, clips, teacher, build_accelerator()))
    before, after = (distance(made, teacher, student, clips) for student in (start, trained))
    assert after < 0.5 * before
    # It tells weights from one another: told 8 it is nearer to the teacher at 8 than told 2.
    model, [batch] = guided(made, teacher, trained), dev_batches(clips.dev, made, 5)[:1]
    at_8 = torch.full_like(batch.t, 8.0)
    told_right, told_wrong = (model.distance(batch, at_8, given=scale) for scale in (at_8, at_8 / 4))
    assert told_right < 0.7 * told_wrong
    assert distance(made, teacher, trained, clips, 1.0) < 0.2 * before
    assert trained.condition_encoder.takes_guidance(8.0, (0.0, 0.65))


def first_batch(clips, made, scalars=None):
    batches = Batches(clips.train, made, scalars=scalars)
    return BatchMaker(batches, CPU)(batches[0])


def test_a_new_student_equals_its_teacher(prepared, tmp_path, teacher):
    made, clips = recipe(prepared, tmp_path), load_clips(prepared)
    student = build_student(made, made.distil, teacher)
    assert list(student.condition_encoder.config.scalars) == [*teacher[0].config.scalars, GUIDANCE]
    assert distance(made, teacher, student, clips, 1.0) == pytest.approx(0, abs=1e-12)
    batch = first_batch(clips, made)
    assert not batch.scalars.isnan().all(1).all()
    told, untold = (
        student.conditions(
            batch, torch.cat([batch.scalars, torch.full((len(batch.t), 1), value)], dim=1)
        ).tokens
        for value in (0.4, math.nan)
    )
    assert (told[:, -1] - untold[:, -1]).abs().mean() > 0.1
    assert torch.equal(told[:, :-1], untold[:, :-1])
    assert student.condition_encoder.scalar_projection.requires_grad


def test_guidance_scales_are_drawn_in_the_interval(prepared, tmp_path, teacher):
    made, clips = (
        recipe(prepared, tmp_path, "denoiser.batch_size=400", "denoiser.max_frames=100"),
        load_clips(prepared),
    )
    model = guided(made, teacher, build_student(made, made.distil, teacher))
    batch = first_batch(clips, made)
    scale = model.draw_scales(batch)
    assert torch.equal(scale, model.draw_scales(batch))
    assert ((scale >= 1) & (scale <= 10)).all()
    may = batch.mask.any(1) & (batch.t < 0.65)
    assert (scale[~may] == 1).all()
    told = scale[may & (scale > 1)]
    assert len(told) / may.sum() == pytest.approx(0.75, abs=0.08)
    assert told.mean() == pytest.approx(5.5, abs=0.5)
    assert told.std() == pytest.approx(9 / math.sqrt(12), abs=0.3)


def test_the_loss_without_guidance_uses_the_plain_teacher(prepared, tmp_path, teacher):
    """So also for mixes, and for rows whose condition was dropped."""
    made, clips = recipe(prepared, tmp_path, "denoiser.mix_share=0.5"), load_clips(prepared)
    student = build_student(made, made.distil, teacher).eval()
    model = guided(made, teacher, student)
    batch = first_batch(clips, made, student.condition_encoder.config.scalars)
    late = replace(batch, t=torch.full_like(batch.t, 0.8))
    assert model(late).item() == pytest.approx(0, abs=1e-12)
    assert model(replace(batch, t=torch.full_like(batch.t, 0.3))).item() > 1e-3
    dropped = replace(
        batch, mask=torch.zeros_like(batch.mask), scalars=torch.full_like(batch.scalars, math.nan)
    )
    assert model(dropped).item() == pytest.approx(0, abs=1e-12)


def test_the_stage_resumes(prepared, tmp_path, teacher):
    clips = load_clips(prepared)
    for name, steps in (("whole", (4,)), ("halves", (2, 4))):
        for n in steps:
            distil(recipe(prepared, tmp_path / name, steps=n), clips, teacher, build_accelerator())
    whole, halves = (load_state(tmp_path / run / "distil" / "state.pt") for run in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 4
    assert all(torch.equal(whole["weights"][name], halves["weights"][name]) for name in whole["weights"])


def test_the_bundle_holds_the_student(prepared, tmp_path):
    made = recipe(prepared, tmp_path, steps=2)
    with pytest.raises(ValueError, match="no trained denoiser"):
        train(made, stage="distil")
    for stage in ("vocoder", "denoiser"):
        train(made, stage=stage)
    plain = ClipSynthPipeline.from_pretrained(train(made, stage="export", out=tmp_path / "plain"))
    assert plain.distilled_guidance_range == ()
    with pytest.raises(ValueError, match="no section distil"):
        train(made.model_copy(update={"distil": None}), stage="distil")
    pipe = ClipSynthPipeline.from_pretrained(train(made))
    assert pipe.distilled_guidance_range == (1.0, 10.0)
    assert pipe.attributes == plain.attributes
    cards = [(folder / "README.md").read_text() for folder in (tmp_path / "bundle", tmp_path / "plain")]
    assert [re.search(r"weight 1 to 10 learned.* 2 steps more", card) is not None for card in cards] == [
        True,
        False,
    ]
    assert GUIDANCE not in pipe.attributes
    best = load_state(tmp_path / "distil" / "best.pt")["weights"]["denoiser.transformer.proj_out.weight"]
    assert torch.equal(pipe.denoiser.transformer.proj_out.weight, best.half().float())
    assert torch.isfinite(torch.from_numpy(pipe("a red thing", duration_s=1.0).audios[0])).all()

    tuned = recipe(prepared, tmp_path / "tuned").model_copy(update={"distil": None})
    encoder, _ = train_denoiser(
        tuned, load_clips(prepared), build_accelerator(), (pipe.condition_encoder, pipe.denoiser)
    )
    assert list(encoder.config.scalars) == list(plain.condition_encoder.config.scalars)
    assert not encoder.takes_guidance(8.0, (0.0, 0.65))


def test_guidance_recipes_are_validated(prepared, tmp_path):
    with pytest.raises(ValueError, match="got guidance"):
        recipe(prepared, tmp_path, "denoiser.scalars=[guidance]")
    with pytest.raises(ValueError, match=r"requests\.guidance_scale: 1 to 5, got 8"):
        recipe(prepared, tmp_path, "distil.max_guidance=5.0")
