"""SpecVQGAN behind the interface of systems under evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.systems.specvqgan import SpecVqgan
from models.baselines.code_transformer import CodeTransformer
from models.baselines.mel_codec import MelCodec
from models.baselines.specvqgan import SpecVqganPipeline
from tests.support.tiny import build_tiny_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("specvqgan")
    tiny = build_tiny_pipeline()
    torch.manual_seed(0)
    codec = MelCodec(codebook_size=32, code_dim=4, channels=(8, 16))
    transformer = CodeTransformer(codebook_size=32, max_codes=48, dim=16, depth=1, heads=2)
    with torch.no_grad():
        codec.vqgan.quantize.embedding.weight.mul_(32)
        tiny.vocoder.conv_post.weight.mul_(0.01)  # at toy size its last tanh is saturated
    parts = (tiny.encoder, tiny.condition_encoder, codec, transformer, tiny.vocoder, tiny.mel)
    SpecVqganPipeline(*parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def system(folder):
    return SpecVqgan.load("SpecVQGAN", str(folder), None)


def query(prompt=None, image=None, duration_s=0.5):
    return SimpleNamespace(prompt=prompt, image=image, duration_s=duration_s)


def test_batched_queries_sound_as_alone(system):
    queries = [query("a dog"), query(image=Image.new("RGB", (64, 64), "red")), query("rain", duration_s=0.3)]
    together = system.synthesize(queries, [5, 6, 7])
    assert [sound.shape for sound in together] == [(8000,), (8000,), (4800,)]
    for n, asked in enumerate(queries):
        (alone,) = system.synthesize([asked], [5 + n])
        assert np.abs(alone - together[n]).max() < 1e-4
    (other,) = system.synthesize(queries[:1], [8])
    assert np.abs(other - together[0]).max() > 1e-3


def test_the_system_version_depends_on_the_files(folder, system, tmp_path):
    assert SpecVqgan.load("SpecVQGAN", str(folder), None).version == system.version
    changed = SpecVqganPipeline.from_pretrained(folder)
    changed.transformer.gpt.lm_head.weight.mul_(2)
    changed.save_pretrained(tmp_path)
    assert SpecVqgan.load("SpecVQGAN", str(tmp_path), None).version != system.version
