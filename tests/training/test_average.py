import pytest
import torch
from typer.testing import CliRunner

from clipsynth.cli import app
from models.pipeline import ClipSynthPipeline
from tests.support.tiny import build_tiny_pipeline
from training.average import LEARNED, average

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average")
    for seed, name in enumerate(("first", "second")):
        build_tiny_pipeline(seed).save_pretrained(folder / name)
    (folder / "second" / "README.md").write_text("# Card\n\n- Denoiser: 2 steps.\n- Vocoder: 1 step.\n")
    return folder


def weights(folder):
    pipe = ClipSynthPipeline.from_pretrained(folder)
    return {
        f"{part}.{name}": p for part in LEARNED for name, p in getattr(pipe, part).named_parameters()
    }, pipe


def test_only_weights_are_averaged(bundles):
    result = CliRunner().invoke(
        app,
        [
            "average",
            *(str(bundles / name) for name in ("first", "second", "out")),
            "--share",
            "0.25",
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    (first, _), (second, own), (out, made) = (weights(bundles / name) for name in ("first", "second", "out"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, p in out.items():
        torch.testing.assert_close(p, 0.75 * first[name] + 0.25 * second[name], atol=1e-3, rtol=1e-3)
    assert made.manifest.attributes == own.manifest.attributes
    assert made.manifest.version != own.manifest.version
    assert not any("_name_or_path" in file.read_text() for file in (bundles / "out").rglob("*.json"))
    card = (bundles / "out" / "README.md").read_text()
    assert "average of these (0.25) and of bundle tiny" in card
    assert card.index("average") < card.index("- Vocoder")


def test_bundles_that_do_not_fit_are_rejected(bundles, tmp_path):
    build_tiny_pipeline(scalars=["brightness"]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"condition_encoder: .*scalar_projection"):
        average(bundles / "first", tmp_path / "other", 0.5, tmp_path / "out")
    with pytest.raises(ValueError, match="share"):
        average(bundles / "first", bundles / "second", 1.5, tmp_path / "out")
