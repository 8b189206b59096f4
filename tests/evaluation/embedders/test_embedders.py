import numpy as np
import pytest
import torch
from torchvision.models import inception_v3 as build_inception
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from evaluation.embedders.base import TextEmbedder, embed_all, load_embedder
from evaluation.embedders.classifier import SoundClassifier
from evaluation.embedders.mel_images import efficientnet_lite0, inception_v3, render
from evaluation.metrics.bootstrap import draw_picks
from evaluation.run.scores import text_relevance

pytestmark = pytest.mark.slow


def noises(count, seconds=0.5):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(round(16000 * seconds)).astype(np.float32) for _ in range(count)]


def judge():
    torch.manual_seed(0)
    return SoundClassifier(["a", "b"])


@pytest.mark.parametrize(("name", "dim"), [("melstats", 128), ("classifier", 128), ("random-conv", 64)])
def test_built_in_embedders_ignore_level_and_batch(name, dim):
    embedder = load_embedder(name, judge)
    assert embedder.name == name
    sounds = noises(3)
    embeds = embed_all(embedder, sounds)
    assert embeds.shape == (3, 4, dim)
    assert embed_all(embedder, [0.01 * sounds[1]])[0] == pytest.approx(embeds[1], abs=1e-3)
    assert load_embedder(name, judge).version == embedder.version


@pytest.fixture(scope="module", params=["fusion", "rand_trunc"])
def clap_folder(request, tmp_path_factory):
    """A tiny CLAP with random weights, saved as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    text = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "pad_token_id": 0,
    }
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "window_size": 4,
        "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 16,
        "enable_fusion": request.param == "fusion", "num_hidden_layers": 2, "fusion_num_hidden_layers": 1,
    }  # fmt: skip
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=48000, truncation=request.param, max_length_s=1, fft_window_size=1024
    ).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "dog": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    return folder


def test_a_local_clap_embeds_sounds_and_texts(clap_folder):
    clap = load_embedder(f"clap:{clap_folder}", judge)
    assert isinstance(clap, TextEmbedder)
    embeds = embed_all(clap, noises(2))
    assert embeds.shape == (2, 1, 12)
    alone = [embed_all(clap, [sound])[0] for sound in noises(2)]
    np.testing.assert_allclose(embeds, alone, atol=1e-5)
    texts = clap.embed_text(["a dog", "a"])
    assert texts.shape == (2, 12)
    relevance = text_relevance(clap, embeds, ["a dog", "a"], [0, 1], draw_picks(["x", "x"], 10))
    cosine = [
        float(torch.cosine_similarity(torch.tensor(e[0]), torch.tensor(t), 0))
        for e, t in zip(embeds, texts, strict=True)
    ]
    assert relevance.value == pytest.approx(np.mean(cosine), abs=1e-5)


class Energy(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.square().mean(1), x.abs().mean(1)], 1)


def test_any_exported_network_is_an_embedder(tmp_path):
    file = tmp_path / "energy.pt2"
    torch.export.save(torch.export.export(Energy(), (torch.zeros(1, 4000),)), file)
    embedder = load_embedder(f"evaluation.embedders.exported:load:{file}?sample_rate=8000&name=energy", judge)
    assert embedder.name == "energy"
    sounds = noises(3)
    assert embedder.embed(sounds).shape == (3, 1, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vggish", "embedders are"),
        ("clap:/nowhere", "model.safetensors"),
        ("evaluation.embedders.exported:load:/nowhere.pt2", "no weight file"),
        ("evaluation.embedders.exported:lod:/nowhere.pt2", "cannot be imported"),
    ],
)
def test_missing_embedders_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        load_embedder(spec, judge)


def test_embeddings_of_a_wrong_shape_are_rejected():
    class Flat:
        name, version = "flat", "1"

        def embed(self, waveforms):
            return np.zeros((len(waveforms), 3))

    with pytest.raises(ValueError, match="flat: expected finite embeddings"):
        embed_all(Flat(), noises(2))


def test_mel_images_have_low_bands_at_the_bottom():
    log_mel = torch.full((1, 40, 16), -8.0)
    log_mel[:, :, :4] = 2.0
    image = render(log_mel, 32)
    assert image.shape == (1, 3, 32, 32)
    assert image[0, :, 28:].min() > 0.9
    assert image[0, :, :16].max() == 0


def test_fid_uses_the_packaged_network_or_a_local_inception(tmp_path):
    assert embed_all(efficientnet_lite0(), noises(1)).shape == (1, 1, 1280)
    file = tmp_path / "inception.pth"
    with pytest.raises(ValueError, match="no weight file"):
        inception_v3(file)
    torch.save({"fc.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no weights"):
        inception_v3(file)
    torch.save(build_inception(weights=None, init_weights=False).state_dict(), file)
    network = inception_v3(file)
    assert network.name == "inception-v3"
    assert network.embed(noises(1)).shape == (1, 1, 2048)
