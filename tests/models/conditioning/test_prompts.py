"""Weighted sets of texts and images in the pipeline, and how they are composed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from models import ClipSynthPipeline, Prompt
from models.audio.vocoder import mix
from models.conditioning.prompts import COMPOSITIONS, templated
from models.networks.condition_encoder import ConditionEncoder
from tests.support.constants import BATCHED_TOLERANCE

RED = Image.new("RGB", (32, 32), "red")


def sound(pipe, *arguments, **named):
    generator = torch.Generator().manual_seed(0)
    return pipe(*arguments, duration_s=0.5, num_inference_steps=3, generator=generator, **named).audios[0]


def test_plain_arguments_equal_a_set_of_weight_one(tiny_pipeline):
    plain = sound(tiny_pipeline, "a dog", RED, negative_prompt="rain")
    np.testing.assert_array_equal(
        sound(tiny_pipeline, [Prompt("rain", -1.0), Prompt(RED), Prompt("a dog")]), plain
    )


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_order_of_a_set_does_not_change_a_byte(tiny_pipeline, composition):
    items = [Prompt("a dog", 0.5), Prompt(RED, 2.0), Prompt("rain", -0.5), Prompt("wind", -2.0)]
    first, *others = (
        sound(tiny_pipeline, list(order), composition=composition)
        for order in list(itertools.permutations(items))[::5]
    )
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_every_weight_changes_the_sound(tiny_pipeline, composition):
    sets = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (2.0, 2.0), (1.0, -1.0), (1.0, -0.5)]
    sounds = [
        sound(tiny_pipeline, [Prompt("a dog", a), Prompt("rain", b)], composition=composition)
        for a, b in (sets[:3] + sets[4:] if composition == "mix" else sets)  # (2, 2) mixes as (1, 1) does
    ]
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.combinations(sounds, 2))


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_an_invalid_weight_is_rejected(weight):
    with pytest.raises(ValueError, match="weight"):
        Prompt("a", weight)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "positive"),
        ([Prompt("a", -1.0)], {}, "positive"),
        ([Prompt("a"), Prompt("b", -1.0)], {"guidance_scale": 1.0}, "guidance_scale"),
        ([Prompt("a")] * 9, {}, "at most 8"),
        ([Prompt("a")] * 9, {"composition": "mix"}, "at most 8"),
        ([Prompt("a")], {"composition": "sum"}, "one of set, compose, mix, got 'sum'"),
    ],
)
def test_an_invalid_set_is_rejected(tiny_pipeline, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(prompts, **options)


# ---------------------------------------------------------------------------------- compositions


@pytest.mark.parametrize("composition", ["compose", "mix"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_one_prompt_sounds_the_same_in_every_composition(tiny_pipeline, composition, guidance_scale):
    prompts = [Prompt("a dog")] + [Prompt("rain", -0.5)] * (guidance_scale > 1)
    one, other = (
        sound(tiny_pipeline, prompts, composition=c, guidance_scale=guidance_scale)
        for c in ("set", composition)
    )
    np.testing.assert_array_equal(one, other)


def test_compositions_of_two_prompts_differ(tiny_pipeline):
    prompts = [Prompt("a dog"), Prompt(RED)]
    sounds = [sound(tiny_pipeline, prompts, composition=c) for c in COMPOSITIONS]
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.combinations(sounds, 2))


def test_composed_weights_are_shares_of_guidance(tiny_pipeline):
    guided = sound(tiny_pipeline, "a dog", guidance_scale=3.0)
    halves = [Prompt("a dog", 0.5), Prompt("a dog", 0.5)]
    np.testing.assert_allclose(
        sound(tiny_pipeline, halves, composition="compose", guidance_scale=3.0), guided, atol=1e-3
    )
    stronger = sound(tiny_pipeline, "a dog", guidance_scale=6.0)
    np.testing.assert_allclose(
        sound(tiny_pipeline, [Prompt("a dog")] * 2, composition="compose", guidance_scale=3.0),
        stronger,
        atol=1e-3,
    )


def test_a_mix_adds_the_sounds_of_its_prompts(tiny_pipeline):
    prompts = [Prompt("a dog", 0.5), Prompt("rain", 1.0), Prompt("wind", -1.0)]
    generator = torch.Generator().manual_seed(0)
    components = [
        tiny_pipeline(
            [Prompt(text), Prompt("wind", -1.0)], duration_s=0.5, num_inference_steps=3, generator=generator
        ).audios[0]
        for text in ("a dog", "rain")  # one generator: the second voice's noise comes after the first's
    ]
    expected = mix(np.stack(components), (0.5, 1.0))
    np.testing.assert_allclose(
        sound(tiny_pipeline, prompts, composition="mix"), expected, atol=BATCHED_TOLERANCE
    )


def test_each_output_is_mixed_from_its_own_generator(tiny_pipeline):
    prompts = [Prompt("a dog"), Prompt("rain", 0.3)]

    def make(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"duration_s": 0.5, "num_inference_steps": 3, "composition": "mix"}
        return tiny_pipeline(
            prompts, num_waveforms_per_prompt=len(seeds), generator=generators, **options
        ).audios

    for both, alone in zip(make(1, 2), (make(1)[0], make(2)[0]), strict=True):
        np.testing.assert_allclose(both, alone, atol=BATCHED_TOLERANCE)


def level(waveform):
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))


def test_components_are_mixed_at_one_level_by_weight():
    t = np.arange(16000) / 16000
    loud, quiet = 0.5 * np.sin(2 * np.pi * 440 * t), 0.01 * np.sin(2 * np.pi * 1000 * t)
    mixed = mix(np.stack([loud, quiet]).astype(np.float32), (1.0, 0.5))
    assert (mixed.dtype, mixed.shape) == (np.float32, (16000,))
    assert level(mixed) == pytest.approx(level(loud), rel=1e-4)
    parts = [np.abs(np.fft.rfft(mixed))[k] for k in (440, 1000)]
    assert parts[1] / parts[0] == pytest.approx(0.5, rel=1e-3)


def test_a_mix_does_not_clip_and_silence_stays_silent():
    square = np.where(np.arange(400) % 40 < 20, 0.99, -0.99)
    spike = np.zeros(400)
    spike[7] = 0.99
    assert np.abs(mix(np.stack([square, spike]), (1.0, 1.0))).max() <= np.float32(0.99)
    np.testing.assert_allclose(mix(np.stack([square, 0 * square]), (0.2, 1.0)), square, atol=1e-6)
    assert not mix(np.zeros((2, 9)), (1.0, 1.0)).any()
    assert np.isnan(mix(np.array([[np.nan, 0.0], [1.0, 0.0]]), (1.0, 1.0))).any()


def test_text_templates_embed_their_mean(tiny_pipeline):
    pipe = tiny_pipeline
    plain = pipe._embed("a dog")[0]
    assert torch.equal(plain, pipe.encoder.encode_text(["a dog"])[0])
    every = torch.cat([pipe.encoder.encode_text([text]) for text in templated("a dog")])
    own = ClipSynthPipeline(
        pipe.encoder,
        pipe.condition_encoder.changed(text_templates=True),
        pipe.denoiser,
        pipe.vocoder,
        pipe.mel,
    )
    embedding, kind = own._embed("a photo of a dog")
    assert kind == "text"
    torch.testing.assert_close(embedding, torch.nn.functional.normalize(every.mean(0), dim=-1))
    assert torch.equal(own._embed(RED)[0], pipe._embed(RED)[0])


def test_class_anchors_move_texts_if_enabled(tiny_pipeline):
    pipe = tiny_pipeline
    names, classes = pipe.encoder.name_anchors
    text = pipe.encoder.encode_text(["a dog"])
    nearest = pipe.encoder.class_anchors[classes[(text @ names.T).argmax()]]
    torch.testing.assert_close(pipe.encoder.among_classes(text, 1e-4)[0], nearest)
    assert pipe.encoder.among_classes(text, 0.05).norm() == pytest.approx(1)

    def embedded(content, **settings):
        encoder = pipe.condition_encoder.changed(**settings)
        own = ClipSynthPipeline(pipe.encoder, encoder, pipe.denoiser, pipe.vocoder, pipe.mel)
        return own._embed(content)[0]

    whole = embedded("a dog", anchor_share=1.0, anchor_tau=1e-4)
    torch.testing.assert_close(whole, nearest)
    half = embedded("a dog", anchor_share=0.5, anchor_tau=1e-4)
    torch.testing.assert_close(half, torch.nn.functional.normalize(text[0] + nearest, dim=-1))
    assert torch.equal(embedded(RED, anchor_share=1.0), pipe._embed(RED)[0])


def test_a_text_moves_among_the_classes_of_training_images(tiny_pipeline):
    pipe = tiny_pipeline
    anchors = pipe.encoder.class_anchors
    encoder = ConditionEncoder(
        pipe.encoder.embed_dim, bank_size=6, anchor_share=1.0, anchor_tau=1e-4, anchor_likeness=0.99
    )
    dogs, cats = anchors[[150, 281]]
    encoder.bank.copy_(encoder.centre(torch.stack([dogs, dogs, dogs, cats, cats, dogs]), "image"))
    shown = encoder.shown(anchors)
    assert shown[150]
    assert not shown[281]  # there are two images of cats
    own = ClipSynthPipeline(pipe.encoder, encoder, pipe.denoiser, pipe.vocoder, pipe.mel)
    of_cats, _ = own._embed("a tabby cat")
    assert any(torch.allclose(of_cats, anchor, atol=1e-5) for anchor in anchors[shown])
    everything = encoder.changed(anchor_likeness=-1.0)
    assert everything.shown(anchors) is None
    assert encoder.changed(anchor_likeness=1.1).shown(anchors) is None
