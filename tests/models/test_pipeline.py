import json
import shutil

import diffusers
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from models import BundleError, ClipSynthPipeline
from models.networks.condition_encoder import Condition
from models.networks.open_clip import OpenClipEncoder
from tests.support.tiny import build_tiny_pipeline


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_the_sound_has_its_length_range_and_seed(tiny_pipeline):
    first, again, other = (
        tiny_pipeline("a dog", duration_s=1.23, generator=generator(s)).audios[0] for s in (1, 1, 2)
    )
    assert first.shape == (round(1.23 * 16000),)
    assert np.abs(first).max() <= 1
    assert first.std() > 0
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_prompt_and_image_change_the_sound(tiny_pipeline):
    def sound(**condition):
        return tiny_pipeline(**condition, duration_s=0.5, generator=generator(0)).audios[0]

    dog, cat = sound(prompt="a dog"), sound(prompt="a cat")
    image, both = (
        sound(image=Image.new("RGB", (300, 200), "red")),
        sound(prompt="a dog", image=Image.new("RGB", (300, 200), "red")),
    )
    sounds = [dog, cat, image, both, sound(prompt="a dog", negative_prompt="rain")]
    assert all(np.abs(a - b).max() > 0 for i, a in enumerate(sounds) for b in sounds[:i])


def test_the_order_of_conditions_does_not_matter(tiny_pipeline):
    pipe = tiny_pipeline
    g = generator(0)
    conditions = [
        Condition(e, "image") for e in torch.nn.functional.normalize(torch.randn(4, 384, generator=g), dim=-1)
    ]
    x, t = torch.randn(2, 20, 256, generator=g), torch.tensor([0.3, 0.3])
    with torch.inference_mode():
        v = pipe.denoiser(
            x[:1].expand(2, -1, -1), t, pipe.condition_encoder.encode([conditions, conditions[::-1]])
        )
    torch.testing.assert_close(v[0], v[1], atol=1e-5, rtol=1e-4)


def test_a_loaded_pipeline_makes_the_same_sound(tiny_bundle, indexed_pipeline):
    loaded = ClipSynthPipeline.from_pretrained(tiny_bundle)
    saved, again = (
        pipe("rain", duration_s=0.5, generator=generator(0)).audios[0] for pipe in (indexed_pipeline, loaded)
    )
    np.testing.assert_allclose(saved, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "blank"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "num_inference_steps": 201}, "num_inference_steps"),
        ({"prompt": "a", "duration_s": -1.0}, "duration_s"),
        ({"prompt": "a", "duration_s": 9.0}, "duration_s"),
        ({"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0}, "guidance_scale"),
        ({"prompt": "a", "num_waveforms_per_prompt": 0}, "waveforms"),
    ],
)
def test_bad_arguments_are_rejected(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)


def test_a_bundle_loads_quietly_without_accelerate(tiny_bundle, monkeypatch):
    said = []
    logger = diffusers.pipelines.pipeline_utils.logger
    monkeypatch.setattr(logger, "warning", lambda text, *_: said.append(text))
    monkeypatch.setattr("diffusers.utils.import_utils._accelerate_available", False)
    ClipSynthPipeline.from_pretrained(tiny_bundle)
    assert said == []


@pytest.mark.parametrize("part", ["encoder", "condition_encoder", "denoiser", "vocoder", "mel"])
def test_a_missing_part_is_named(tiny_bundle, tmp_path, part):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / part)
    with pytest.raises(BundleError, match=part):
        ClipSynthPipeline.from_pretrained(tmp_path / "b")


def test_a_mel_that_does_not_fit_the_vocoder_is_named(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "mel" / "config.json").read_text()) | {"n_mels": 80}
    (tmp_path / "mel" / "config.json").write_text(json.dumps(config))
    tiny_pipeline.manifest.write(tmp_path)
    with pytest.raises(BundleError, match="vocoder"):
        ClipSynthPipeline.from_pretrained(tmp_path)


def test_a_changed_file_is_named(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    with (tmp_path / "b" / "denoiser" / "config.json").open("a") as f:
        f.write("\n")
    with pytest.raises(BundleError, match="denoiser"):
        ClipSynthPipeline.from_pretrained(tmp_path / "b")


def test_an_open_clip_bundle_needs_no_weight_file(tmp_path):
    tower = {"width": 32, "layers": 1}
    architecture = {
        "embed_dim": 24,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    torch.manual_seed(0)
    torch.save(
        OpenClipEncoder("tiny-clip", "random", architecture).model.state_dict(), tmp_path / "weights.pt"
    )
    encoder = OpenClipEncoder("tiny-clip", str(tmp_path / "weights.pt"))
    build_tiny_pipeline(encoder=encoder).save_pretrained(tmp_path / "bundle")
    (tmp_path / "weights.pt").unlink()
    pipe = ClipSynthPipeline.from_pretrained(tmp_path / "bundle")
    torch.testing.assert_close(pipe.encoder.encode_text(["a dog"]), encoder.encode_text(["a dog"]))
    assert pipe(image=Image.new("RGB", (40, 50)), duration_s=0.5).audios[0].shape == (8000,)
    assert open_clip.get_model_config("tiny-clip")["embed_dim"] == 24


def test_open_clip_without_weights_is_rejected():
    with pytest.raises(ValueError, match="no-such-file"):
        OpenClipEncoder("ViT-B-32", "no-such-file")
