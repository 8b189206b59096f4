import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import BundleError
from models.conditioning.prompts import Prompt
from models.pipeline import ClipSynthPipeline
from models.retrieval.clip_audio import open_audio
from models.retrieval.clip_index import TENSORS, Index
from models.retriever import Retrieval


def test_an_index_comes_back_as_it_was_written(indexed_pipeline, tmp_path):
    index = indexed_pipeline.index
    index.write(tmp_path)
    read = Index.read(tmp_path)
    assert read.clips == index.clips
    assert torch.allclose(read.embeds, index.embeds, atol=1e-3)
    for name, tensor in index.thumbnails.tensors().items():
        assert torch.equal(read.thumbnails.tensors()[name], tensor)


def test_an_index_from_before_there_were_images_is_read(indexed_pipeline, tmp_path):
    indexed_pipeline.index.write(tmp_path)
    save_file({"embeds": load_file(tmp_path / TENSORS)["embeds"]}, tmp_path / TENSORS)
    assert Index.read(tmp_path).thumbnails is None


def test_an_index_that_does_not_fit_its_clips_is_refused(indexed_pipeline, tmp_path):
    index = indexed_pipeline.index
    with pytest.raises(BundleError, match="4 thumbnails of 3 clips"):
        Index(index.embeds[:3], index.clips[:3], index.thumbnails)
    index.write(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    del tensors["picture_lengths"]
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(BundleError, match="cannot be read"):
        Index.read(tmp_path)


def test_a_loaded_pipeline_has_the_images(tiny_bundle):
    assert ClipSynthPipeline.from_pretrained(tiny_bundle).index.thumbnails.small.shape == (4, 10, 32)


@pytest.fixture
def retrieval(indexed_pipeline, videos):
    return Retrieval(indexed_pipeline, indexed_pipeline.index, open_audio(videos, 16000))


def test_clips_are_ordered_by_the_weighted_embedding(retrieval, indexed_pipeline):
    encoder, centre = indexed_pipeline.encoder, indexed_pipeline.condition_encoder.centre
    prompts = [Prompt("a dog", 2.0), Prompt("rain", 0.5), Prompt("speech", -1.0)]
    texts = [centre(encoder.encode_text([p.content]), "text")[0] for p in prompts]
    wanted = sum(p.weight * text for p, text in zip(prompts, texts, strict=True))
    cosines = centre(indexed_pipeline.index.embeds, "image") @ wanted
    assert retrieval.nearest(prompts, 4) == cosines.argsort(descending=True).tolist()
    assert retrieval.nearest(prompts[::-1], 2) == retrieval.nearest(prompts, 4)[:2]


def test_an_impossible_retrieval_is_rejected(retrieval):
    with pytest.raises(ValueError, match="4 training clips, asked for the 5 nearest"):
        retrieval.nearest([Prompt("a dog")], 5)
    with pytest.raises(ValueError, match="positive weight"):
        retrieval.nearest([Prompt("a dog", -1.0)], 1)


def test_a_clip_is_cut_or_padded(retrieval):
    assert len(retrieval.sound(0, 0.5)) == 8000
    longer = retrieval.sound(0, 1.5)
    assert np.abs(longer[:16000]).max() > 0.1
    assert (longer[16000:] == 0).all()
