import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.audio.attributes import CONDITIONS, NAMES, Scales, taken
from models.conditioning.attribute_targets import FEWEST, NEIGHBOURS, at_loudness, resolve
from models.conditioning.prompts import as_set
from models.networks.condition_encoder import Condition, ConditionEncoder
from models.retrieval.clip_index import Index
from tests.support.tiny import build_tiny_pipeline

SIZE = 16
SCALES = Scales({name: np.linspace(0.0, 10.0, 101).tolist() for name in NAMES})


def clip(brightness, f0_hz=0.0):
    """A clip of that brightness by `by_name`; without a pitch where `f0_hz` is 0."""
    return {
        "attributes": {
            "loudness_dbfs": -20.0,
            "centroid_hz": math.exp(brightness),
            "flatness": 0.5,
            "voicing": float(f0_hz > 0),
            "f0_hz": f0_hz,
            "onsets_per_s": 3.0,
        }
    }


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = ConditionEncoder(embed_dim=SIZE, scalars=list(CONDITIONS))
    encoder.means.copy_(F.normalize(torch.randn(2, SIZE), dim=-1))
    return encoder


@pytest.fixture(scope="module")
def kinds(encoder):
    """Directions (2, SIZE) of two kinds of images, apart by less than both are from the origin."""
    torch.manual_seed(1)
    return 0.2 * F.normalize(torch.randn(2, SIZE), dim=-1) + encoder.means[0]


@pytest.fixture(scope="module")
def index(kinds):
    """40 dull clips of the first kind and 40 bright ones of the second, of which 3 have a pitch."""
    torch.manual_seed(2)
    spread = 0.02 * torch.randn(80, SIZE)
    clips = [clip(1 + n / 40) for n in range(40)]
    clips += [clip(8 + n / 40, f0_hz=440.0 if n < FEWEST - 1 else 0.0) for n in range(40)]
    return Index(F.normalize(kinds.repeat_interleave(40, 0) + spread, dim=-1), clips)


def seen(kinds, n):
    return Condition(F.normalize(kinds[n], dim=-1), "image")


def test_neighbours_are_found_among_centred_embeddings(encoder, index, kinds):
    query = encoder.centre(torch.stack([c.embedding for c in (seen(kinds, 0), seen(kinds, 1))]), "image")
    found = index.nearest(query, NEIGHBOURS, mean=encoder.means[0])
    expected = query @ encoder.centre(index.embeds, "image").T
    assert torch.equal(found, expected.topk(NEIGHBOURS, dim=-1).indices)
    assert (found[0] < 40).all()
    assert (found[1] >= 40).all()


def test_a_target_is_a_quantile_of_the_nearest_clips(encoder, index, kinds):
    def told(n, quantile):
        return resolve({"brightness": quantile}, [seen(kinds, n)], encoder, SCALES, index)["brightness"]

    assert 0.1 <= told(0, 0.0) < told(0, 0.5) < told(0, 1.0) <= 0.2
    assert 0.8 <= told(1, 0.0) < told(1, 0.5) < told(1, 1.0) <= 0.9


def test_a_margin_goes_beyond_the_nearest_clips(encoder, index, kinds):
    def told(quantile, reach):
        asked = {"brightness": quantile}
        return resolve(asked, [seen(kinds, 0)], encoder, SCALES, index, reach)["brightness"]

    assert told(1.0, 0.3) == pytest.approx(told(1.0, 0.0) + 0.3)
    assert told(0.5, 0.3) == told(0.5, 0.0)
    assert told(0.0, 0.3) == 0.0


def test_a_set_is_near_its_heaviest_item(encoder, index, kinds):
    for weight, expected in ((0.01, 0.15), (10.0, 0.85)):
        heavy = Condition(seen(kinds, 1).embedding, "image", weight)
        told = resolve({"brightness": 0.5}, [seen(kinds, 0), heavy], encoder, SCALES, index)
        assert told["brightness"] == pytest.approx(expected, abs=0.04)


def test_rare_attributes_use_quantiles_of_all_clips(encoder, index, kinds):
    assert resolve({"pitch": 0.7}, [seen(kinds, 1)], encoder, SCALES, index) == {"pitch": 0.7}
    old = Index(index.embeds, [{} for _ in index.clips])
    for without in (None, old):
        told = resolve({"brightness": 0.7}, [seen(kinds, 0)], encoder, SCALES, without)
        assert told == {"brightness": 0.7}


def test_correspondence_is_always_requested_if_known():
    encoder = ConditionEncoder(embed_dim=SIZE, scalars=["pitch", "agreement"])
    condition = Condition(torch.eye(SIZE)[0], "text")
    assert resolve({}, [condition], encoder, SCALES, None) == {"agreement": 1.0}
    assert resolve({"pitch": 0.2}, [condition], encoder, SCALES, None) == {"agreement": 1.0, "pitch": 0.2}


def test_a_bundle_takes_attributes_with_scale_and_scalar():
    assert taken(NAMES, CONDITIONS) == NAMES
    assert taken(NAMES, ()) == ("loudness",)
    assert taken(["pitch"], ["pitch", "density", "agreement"]) == ("pitch",)


@pytest.mark.parametrize("dbfs", [-60.0, -23.0, -12.0])
def test_a_waveform_gets_its_loudness(dbfs):
    noise = np.random.default_rng(0).normal(0, 0.02, 8000).astype(np.float32)
    made = at_loudness(noise, dbfs)
    assert made.dtype == np.float32
    assert 20 * np.log10(np.sqrt(np.mean(made**2))) == pytest.approx(dbfs, abs=0.01)


def test_a_waveform_never_exceeds_its_peak():
    click = np.zeros(8000, np.float32)
    click[100], click[200] = 0.1, -0.2
    assert np.abs(at_loudness(click, -3.0)).max() == pytest.approx(0.99)


@pytest.mark.parametrize("wave", [np.zeros(10, np.float32), np.full(10, np.nan, np.float32)])
def test_silence_and_nan_are_unchanged(wave):
    np.testing.assert_array_equal(at_loudness(wave, -20.0), wave)


# ------------------------------------------------------------------------------------------ in the pipeline


def sound(pipe, attributes=None, **arguments):
    made = pipe(
        **({"prompt": "a dog", "guidance_scale": 3.0, "num_inference_steps": 2} | arguments),
        duration_s=0.5,
        attributes=attributes,
        generator=torch.Generator().manual_seed(0),
    )
    return made.audios[0]


def test_every_attribute_changes_the_sound(tiny_pipeline):
    plain = sound(tiny_pipeline)
    np.testing.assert_array_equal(plain, sound(tiny_pipeline, {}))
    made = [sound(tiny_pipeline, {name: quantile}) for name in NAMES for quantile in (0.1, 0.5)]
    assert all(np.abs(a - b).max() > 1e-5 for n, a in enumerate([*made, plain]) for b in made[:n])


def test_loudness_is_only_a_gain(tiny_pipeline):
    plain, quiet = sound(tiny_pipeline), sound(tiny_pipeline, {"loudness": 0.2})
    assert 20 * np.log10(np.sqrt(np.mean(quiet**2))) == pytest.approx(-34, abs=0.1)
    np.testing.assert_allclose(quiet / np.abs(quiet).max(), plain / np.abs(plain).max(), atol=1e-6)


def test_only_the_conditional_branch_has_attributes(tiny_pipeline):
    def row(attributes):
        generators = [torch.Generator().manual_seed(0)]
        wanted = {
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "duration_s": 0.5,
            "generators": generators,
        }
        return tiny_pipeline.prepare_rows(as_set("a", None, "b"), **wanted, attributes=attributes)[0]

    plain, told = row(None), row({"pitch": 0.9})
    assert (plain.conds[0].tokens.shape[1], told.conds[0].tokens.shape[1]) == (1, 2)
    assert torch.equal(plain.uncond.tokens, told.uncond.tokens)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"pitch": 1.5}, "'pitch' must be 0 to 1, got 1.5"),
        ({"pitch": float("nan")}, "'pitch' must be 0 to 1"),
        ({"warmth": 0.5}, "no attribute 'warmth', only loudness, brightness"),
    ],
)
def test_invalid_attributes_are_rejected(tiny_pipeline, attributes, message):
    with pytest.raises(ValueError, match=message):
        sound(tiny_pipeline, attributes)


def test_a_bundle_without_scalars_takes_no_attributes():
    pipe = build_tiny_pipeline(scalars=())
    pipe.manifest = type(pipe.manifest)(name="old", min_duration_s=0.5, max_duration_s=5.0)
    assert pipe.attributes == ()
    with pytest.raises(ValueError, match="no attribute 'pitch', only none"):
        sound(pipe, {"pitch": 0.5})


def test_a_bundle_with_correspondence_always_uses_it():
    pipe = build_tiny_pipeline(scalars=[*CONDITIONS, "agreement"])
    assert "agreement" not in pipe.attributes
    told = sound(pipe)
    encode, pipe.condition_encoder.encode = pipe.condition_encoder.encode, lambda sets, _=None: encode(sets)
    assert np.abs(told - sound(pipe)).max() > 1e-5
