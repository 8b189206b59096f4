"""The baseline SpecVQGAN: its codec, its transformer, and a whole training at toy size."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from models.baselines.code_transformer import CodeTransformer
from models.baselines.mel_codec import MelCodec
from models.baselines.specvqgan import SpecVqganPipeline
from models.bundle import BundleError
from training.data.clips import load_clips
from training.loop import build_accelerator
from training.recipe import load_recipe
from training.specvqgan.codec import _CodecStep, draw_mels, perplexity
from training.state import load_state
from training.train import train

pytestmark = pytest.mark.slow


DEMO = Path(__file__).resolve().parents[3] / "recipes" / "specvqgan-demo.yaml"
TINY = [
    "vqgan.batch_size=2",
    "vqgan.frames=64",
    "vqgan.channels=[8, 16]",
    "vqgan.codebook_size=32",
    "vqgan.code_dim=4",
    "vqgan.adversarial_from=1",
    "transformer.batch_size=2",
    "transformer.dim=16",
    "transformer.depth=1",
    "transformer.heads=2",
    "transformer.max_frames=96",
    "vqgan.decay_share=0.0",  # a run that is prolonged must not have decayed
    "transformer.decay_share=0.0",
]


def recipe(prepared, bundle, run, steps):
    sizes = [f"vqgan.steps={steps}", f"transformer.steps={steps}"]
    return load_recipe(DEMO, [f"clips={prepared}", f"bundle={bundle}", f"run={run}", *sizes, *TINY])


@pytest.fixture(scope="module")
def trained(prepared, tiny_bundle, tmp_path_factory):
    run = tmp_path_factory.mktemp("specvqgan")
    return train(recipe(prepared, tiny_bundle, run, 4)).parent


@pytest.fixture(scope="module")
def pipeline(trained):
    made = SpecVqganPipeline.from_pretrained(trained / "pipeline")
    made.vocoder.conv_post.weight.mul_(
        0.01
    )  # at toy size its last tanh is saturated, and all sounds the same
    return made


def generator(seed):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_codes_decode_to_the_mel_of_the_network():
    torch.manual_seed(0)
    codec = MelCodec(codebook_size=32, code_dim=4, channels=(8, 16)).eval()
    mel = torch.randn(2, 83, 64)  # 5 columns of 8 codes, and 3 frames more
    latents = codec.latents(codec.to_patches(mel)).permute(0, 2, 3, 1).flatten(0, 2)
    codec.vqgan.quantize.embedding.weight.copy_(latents[::2][:32])
    codes = codec.encode(mel)
    assert codes.shape == (2, 40)
    assert codes.unique().numel() > 8
    patches, made, _, _ = codec(mel)
    assert torch.equal(codec.to_mel(patches), mel[:, :80])
    assert torch.allclose(codec.decode(codes), codec.to_mel(made), atol=1e-5)


def test_a_codec_with_indivisible_sizes_is_rejected():
    with pytest.raises(ValueError, match="multiples of 2"):
        MelCodec(channels=(8, 16), frames_per_code=15)


@torch.no_grad()
def test_cached_sampling_follows_the_logits_of_the_sequence():
    torch.manual_seed(0)
    transformer = CodeTransformer(
        codebook_size=32, max_codes=24, dim=16, depth=2, heads=2, condition_dim=8
    ).eval()
    conditions = torch.randn(2, 8)
    codes = transformer.sample(conditions, 24, top_k=1, temperature=1.0, generators=[None, None])
    assert torch.equal(transformer(conditions, codes).argmax(-1), codes)
    assert not torch.equal(codes[0], codes[1])  # the condition matters
    for wrong in ({"top_k": 0}, {"top_k": 33}, {"temperature": 0.0}, {"length": 25}):
        arguments = {"length": 4, "top_k": 1, "temperature": 1.0, "generators": [None, None]} | wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            transformer.sample(conditions, **arguments)


def test_a_trained_baseline_takes_texts_images_and_seeds(pipeline):
    first, second = pipeline("a red thing", duration_s=0.5, generator=[generator(1), generator(2)]).audios
    assert first.shape == (8000,)
    assert abs(first - second).max() > 1e-3
    (alone,) = pipeline("a red thing", duration_s=0.5, generator=generator(2)).audios
    assert abs(alone - second).max() < 1e-5
    (of_image,) = pipeline(image=Image.new("RGB", (64, 64), "red"), duration_s=0.5).audios
    assert of_image.shape == (8000,)


def test_unsupported_arguments_are_rejected(pipeline, tmp_path):
    image = Image.new("RGB", (64, 64))
    for arguments in ({}, {"prompt": " "}, {"prompt": "a dog", "image": image}):
        with pytest.raises(ValueError, match="exactly one"):
            pipeline(**arguments)
    with pytest.raises(ValueError, match=r"up to 0\.96, got 4"):
        pipeline("a dog", duration_s=4.0)
    with pytest.raises(BundleError, match="no trained SpecVQGAN"):
        SpecVqganPipeline.from_pretrained(tmp_path)


def test_resumed_training_equals_uninterrupted_training(trained, prepared, tiny_bundle, tmp_path):
    for stage in ("vqgan", "transformer"):
        for steps in (2, 4):
            train(recipe(prepared, tiny_bundle, tmp_path, steps), stage=stage)
        whole, halves = (load_state(run / stage / "state.pt") for run in (trained, tmp_path))
        for name in ("codec", "discriminator") if stage == "vqgan" else ("",):
            ours, theirs = (s["weights"][name] if name else s["weights"] for s in (whole, halves))
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), stage


def test_stages_must_run_in_order(prepared, tiny_bundle, tmp_path):
    made = recipe(prepared, tiny_bundle, tmp_path, 1)
    for stage, message in (
        ("transformer", "no trained vqgan"),
        ("export", "no trained vqgan"),
        ("vocoder", "no stage"),
    ):
        with pytest.raises(ValueError, match=message):
            train(made, stage=stage)
    with pytest.raises(ValueError, match="model: must be one of clipsynth, specvqgan, got 'wavenet'"):
        load_recipe(DEMO, ["model=wavenet"])


def test_dead_codebook_entries_are_revived(prepared, tiny_bundle, tmp_path):
    made = recipe(prepared, tiny_bundle, tmp_path, 1)
    clips = load_clips(prepared)
    step = _CodecStep(made, clips, build_accelerator())
    mels = draw_mels(clips.train, made, 1)
    entries = step.codec.vqgan.quantize.embedding.weight
    with torch.no_grad():
        entries[1:] = 1e3  # collapsed: all but the first are out of reach
        assert perplexity(step.codec.encode(mels), 32) == pytest.approx(1.0)
    for n in range(1, 3):
        step(n, mels)
    with torch.no_grad():
        assert entries.abs().max() < 100
        assert perplexity(step.codec.encode(mels), 32) > 2


def test_perplexity_counts_the_used_entries():
    assert perplexity(torch.arange(8), 8) == pytest.approx(8)
    assert perplexity(torch.tensor([3, 3, 3, 3]), 8) == pytest.approx(1)
    assert perplexity(torch.tensor([0, 0, 1, 1]), 8) == pytest.approx(2)
