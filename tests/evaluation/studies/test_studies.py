"""`clipsynth study` at toy size: two kinds of tone, a tiny bundle of either encoder."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clipsynth.cli import app
from evaluation.metrics.bootstrap import Figure
from evaluation.studies import ablation, attributes, ceiling, ladder, sets, steps
from evaluation.studies.context import CLASS_ACCURACY, DEV_SEED, FAD, SECONDS, StudyContext, StudyOptions
from evaluation.systems.bundle import Bundle
from models.networks.condition_encoder import ConditionEncoder
from models.networks.open_clip import OpenClipEncoder
from models.pipeline import ClipSynthPipeline
from models.retrieval.clip_index import Index
from tests.support.constants import TINY_CLIP
from tests.support.tiny import build_tiny_pipeline
from tests.support.videos import write_video

pytestmark = pytest.mark.slow


COLOURS = {"low": ("red", "maroon", "orange"), "high": ("blue", "navy", "cyan")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos, one of each class per split; with labels, phrases and an index."""
    path = tmp_path_factory.mktemp("study")
    (path / "train").mkdir()
    rows, index = [], []
    for label, colours in COLOURS.items():
        for split, colour in zip(("train", "dev", "validation"), colours, strict=True):
            file = f"{'train/' if split != 'validation' else ''}{colour}.mp4"
            write_video(path / file, hz=220.0 if label == "low" else 1760.0, colour=colour)
            rows.append([file, label, "validation" if split == "validation" else "train"])
            if split != "validation":
                index.append({"video": f"{colour}.mp4", "dev": split == "dev"})
    with (path / "manifest.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["file", "label", "split"], *rows])
    phrases = {"low": ["a red thing", "a photo of a red thing"], "high": ["a blue thing"]}
    (path / "queries.json").write_text(json.dumps({"classes": phrases}))
    (path / "prepared").mkdir()
    (path / "prepared" / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in index))
    return path


def save_bundle(folder, encoder=None):
    """A tiny bundle that lists its two training videos and has a bank of images."""
    from PIL import Image

    pipe = build_tiny_pipeline(encoder=encoder)
    images = pipe.encoder.encode_image([Image.new("RGB", (64, 64), c) for c in ("red", "blue")])
    conditions = ConditionEncoder(embed_dim=pipe.encoder.embed_dim, bank_size=2)
    conditions.means.copy_(0.1 * torch.stack([images.mean(0), -images.mean(0)]))
    conditions.bank.copy_(conditions.centre(images, "image"))
    bundle = ClipSynthPipeline(pipe.encoder, conditions.eval(), pipe.denoiser, pipe.vocoder, pipe.mel)
    bundle.manifest = replace(pipe.manifest, num_inference_steps=2)
    bundle.index = Index(images.clone(), [{"video": "red.mp4"}, {"video": "blue.mp4"}])
    bundle.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("packaged") / "bundle")


@pytest.fixture(scope="module")
def clip_bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    weights = path / "weights.pt"
    torch.save(OpenClipEncoder("tiny-clip", "random", TINY_CLIP).model.state_dict(), weights)
    return save_bundle(path / "bundle", OpenClipEncoder("tiny-clip", str(weights)))


@pytest.fixture(scope="module")
def options(folder, tmp_path_factory):
    return StudyOptions(
        folder,
        folder / "queries.json",
        tmp_path_factory.mktemp("out"),
        folder / "prepared",
        seeds=2,
        duration_s=1.0,
        resamples=10,
        timed=1,
    )


@pytest.fixture(scope="module")
def setting(options):
    return StudyContext(options)


def results(setting, name):
    return json.loads((setting.options.out / name / "results.json").read_text())["results"]


def test_choices_use_dev_clips_and_their_own_seeds(setting, options):
    assert [c.file for c in setting.plan.clips] == ["train/maroon.mp4", "train/navy.mp4"]
    assert min(s.seed for s in setting.plan.samples("text")) == DEV_SEED
    assert sorted(setting.training_labels()) == ["train/blue.mp4", "train/red.mp4"]
    report = StudyContext(replace(options, split="validation"))
    assert [c.file for c in report.plan.clips] == ["orange.mp4", "cyan.mp4"]
    assert min(s.seed for s in report.plan.samples("text")) == 0
    with pytest.raises(ValueError, match="--prepared"):
        _ = StudyContext(replace(options, prepared=None)).plan


def test_shares_and_majorities_of_neighbours():
    found = np.array([["a", "a", "b"], ["b", "a", "c"], ["c", "c", "c"]])
    assert ceiling.shares(found, ["a", "a", "a"]).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert ceiling.majorities(found, ["a", "b", "a"]).tolist() == [1, 1, 0]  # between equals the nearest


def test_the_ceiling_study_has_every_kind_of_query(setting, bundle):
    table = ceiling.ceiling(setting, bundle, 1, variants=ladder.text_variants([], [(1.0, 0.01)]))
    found = results(setting, "ceiling")
    assert list(found) == [
        "text, raw", "text, the bundle's settings", "text, templates", "text, anchors",
        "text, mean shift", "text, centred", "text, bank 1, tau 0.01",
        "image, validation, raw", "image, validation, centred", "image, dev, raw", "image, dev, centred",
    ]  # fmt: skip
    assert found["text, raw"]["queries"] == 3
    for row in found.values():
        assert row["share"]["value"] == pytest.approx(
            row["majority"]["value"]
        )  # one neighbour is its own majority
    assert "| low |" in table


@pytest.mark.parametrize("kind", ["bundle", "clip_bundle"])
def test_every_rung_changes_the_sounds(kind, setting, request):
    place = request.getfixturevalue(kind)
    wanted = [
        *ladder.text_variants([1.0], [(1.0, 0.01)], prior=True),
        ladder.parse_bundle(f"trained={place}"),
    ]

    def prior(pipe):
        torch.manual_seed(0)
        return pipe.condition_encoder.changed(prior_dim=4)

    table = ladder.ladder(setting, place, wanted, fit_prior=prior, steps=1)
    found = results(setting, "ladder")
    assert list(found) == [
        "raw text", "templates", "anchors", "mean shift", "centred", "sigma 1", "bank 1, tau 0.01", "prior",
        "trained",
    ]  # fmt: skip
    fads = [row["text"][FAD]["value"] for row in found.values()]
    assert len({round(f, 6) for f in fads}) == len(fads)  # no rung is without effect
    assert {row["image"][FAD]["value"] for row in found.values()} == {
        found["raw text"]["image"][FAD]["value"]
    }
    assert "closed" in found["centred"]
    assert found["raw text"]["closed"] == {}
    assert table.count("\n| ") == 1 + len(wanted) - 1


def test_a_repeated_study_makes_no_sound_twice(setting, bundle, monkeypatch):
    wanted = ladder.text_variants([], [])[:1]
    once = StudyContext(replace(setting.options, timed=0))
    first = ladder.ladder(once, bundle, wanted, steps=1)

    made, synthesize = [], Bundle.synthesize

    def counted(self, queries, seeds):
        made.append(len(queries))
        return synthesize(self, queries, seeds)

    monkeypatch.setattr(Bundle, "synthesize", counted)
    monkeypatch.setattr("evaluation.run.sound_cache.COMPARED", 1)
    assert ladder.ladder(once, bundle, wanted, steps=1) == first
    assert made == [1, 1]  # of each kind one, to see whether it is the same


def test_rungs_are_written_as_settings():
    rung = ladder.parse_variant("stack=text_templates=true&bank_share=0.5&prior")
    assert rung.settings == {
        "text_centring": "own",
        "text_templates": True,
        "bank_share": 0.5,
        "prior_share": 1.0,
    }
    assert rung.prior
    for wrong in ("stack", "stack=bank_share", "=a=1"):
        with pytest.raises(ValueError, match="NAME=setting=value"):
            ladder.parse_variant(wrong)


def test_invalid_rungs_are_rejected(setting, bundle):
    with pytest.raises(ValueError, match="different names"):
        ladder.ladder(setting, bundle, [ladder.TextVariant("a"), ladder.TextVariant("a")])
    with pytest.raises(ValueError, match="no setting 'volume'"):
        ladder.ladder(setting, bundle, [ladder.TextVariant("a", {"volume": 1})], steps=1)
    with pytest.raises(ValueError, match="needs --prepared"):
        ladder.ladder(setting, bundle, [ladder.TextVariant("a", prior=True)], steps=1)


def test_recall_counts_both_of_the_top_two():
    heard = np.array([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.1, 0.2, 0.7]])
    pairs = [("a", "b"), ("a", "b"), ("a", "a")]
    assert sets.recall(heard, ["a", "b", "c"], pairs).tolist() == [1.0, 0.5, 0.0]


def test_the_sets_study_has_every_composition(setting, bundle):
    sets.sets(setting, bundle, steps=1)
    found = results(setting, "sets")
    assert list(found) == [
        "two texts, set", "two texts, compose", "two texts, mix", "two texts, naive",
        "image and text, set", "image and text, compose", "image and text, mix", "real sounds, mixed",
    ]  # fmt: skip
    assert (
        found["real sounds, mixed"]["recall"]["value"] == 1
    )  # the judge knows two classes, so any two are right
    over = found["two texts, set"]["recall"]["value"] - found["two texts, mix"]["recall"]["value"]
    assert found["two texts, set"]["over mix"]["value"] == pytest.approx(over)
    folders = {p.parent for p in setting.options.out.rglob("text-train-navy.mp4+train-maroon-*.flac")}
    assert len(folders) == 5  # four systems and the recordings


def figures(fad, agreement):
    return {FAD: Figure(fad, fad, fad, np.zeros(1)), CLASS_ACCURACY: Figure(agreement, 0, 1, np.zeros(1))}


def test_the_fewest_equally_good_steps_are_found():
    curve = {
        4: {"text": figures(9.0, 0.5), "image": figures(5.0, 0.5)},
        8: {"text": figures(5.2, 0.48), "image": figures(5.2, 0.40)},
        16: {"text": figures(5.2, 0.48), "image": figures(5.2, 0.48)},
        100: {"text": figures(5.0, 0.5), "image": figures(5.0, 0.5)},
    }
    assert steps.fewest(curve) == 16


def test_row_forwards_count_guidance_in_its_interval():
    assert steps.row_forwards(10, 4.0, (0.0, 0.65)) == 17
    assert steps.row_forwards(10, 1.0, (0.0, 1.0)) == 10
    assert steps.row_forwards(8, 4.0, (0.0, 0.2), 8.0) == 14
    assert steps.row_forwards(10, 4.0, (0.0, 0.65), distilled=True) == 10


def test_the_steps_study_has_a_curve(setting, bundle):
    table = steps.steps(setting, bundle, [1, 2], guidances=[1.0, 4.0], intervals=[(0.0, 0.5)])
    found = results(setting, "steps")
    assert [(row["steps"], row["guidance"], row["row_forwards"]) for row in found] == [
        (1, 1.0, 1), (2, 1.0, 2), (1, 4.0, 2), (2, 4.0, 3),
    ]  # fmt: skip
    assert all(SECONDS in row["image"] for row in found)
    assert table.count("steps are the fewest") == 2
    with pytest.raises(ValueError, match="at least one"):
        steps.steps(setting, bundle, [])


def test_the_ablation_compares_bundles_with_and_without(setting, bundle, tmp_path):
    wanted = ablation.parse_remedies([f"more steps={bundle}?steps=2,{bundle}?steps=1"])
    table = ablation.ablation(setting, wanted)
    row = results(setting, "ablation")["more steps"]
    gain = row["with"]["text"][FAD]["value"] - row["without"]["text"][FAD]["value"]
    assert row["difference"]["text"][FAD]["value"] == pytest.approx(gain)
    assert "copies/mel" in row["difference"]["image"]
    assert "| more steps |" in table
    listed = tmp_path / "remedies.yaml"
    listed.write_text(f"- {{name: more steps, with: '{bundle}?steps=2', without: '{bundle}?steps=1'}}\n")
    assert ablation.parse_remedies([str(listed)]) == wanted
    for wrong in (["a"], ["a=b"], [str(tmp_path / "none.yaml")], ["a=b,c", "a=d,e"]):
        with pytest.raises(ValueError, match=r"neither|no list|same name"):
            ablation.parse_remedies(wrong)


def test_measured_loudness_follows_the_requested_level(setting, bundle):
    attributes.attributes(setting, bundle, names=["loudness"], levels=[0.1, 0.5, 0.9], steps=1)
    found = results(setting, "attributes")
    [loudness] = found["findings"]
    assert loudness["sounds"] == len(found["rows"]) == 2 * 2 * 2 * 3  # classes, kinds, seeds, levels
    assert loudness["rho"]["value"] > 0.9
    assert loudness["leakage"]["value"] == 0  # the judge hears all at one level


def test_unknown_attributes_are_rejected_by_the_study(setting, bundle):
    with pytest.raises(ValueError, match=r"supports the attributes .*loudness"):
        attributes.attributes(setting, bundle, names=["colour"])


def test_the_study_commands_write_their_tables(folder, bundle, options):
    common = [
        "--clips", str(folder), "--queries", str(folder / "queries.json"),
        "--prepared", str(folder / "prepared"), "--out", str(options.out), "--resamples", "10",
    ]  # fmt: skip
    made = [*common, "--seeds", "1", "--duration", "1"]
    model = ["--model", str(bundle)]
    run = CliRunner().invoke
    for name, arguments in {
        "ceiling": [*common, *model, "--bank", "1,0.01"],
        "ladder": [*made, *model, "--steps", "1", "--sigma", "1", "--bank", "1,0.01", "--timed", "0"],
        "attributes": [
            *made, *model, "--steps", "1", "--attribute", "loudness", "--level", "0.1", "--level", "0.9",
        ],
        "sets": [*made, *model, "--steps", "1", "--pairs", "1"],
        "steps": [*made, *model, "--count", "1", "--timed", "0"],
        "ablation": [*made, "--timed", "0", f"a={bundle}?steps=2,{bundle}?steps=1"],
    }.items():  # fmt: skip
        result = run(app, ["study", name, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, name
        assert (options.out / name / "results.md").read_text().strip() in result.output
    assert run(app, ["study", "steps", *made, *model, "--split", "train"]).exit_code == 2
    with pytest.raises(ValueError, match="the study steps does not have pairs"):
        run(app, ["study", "steps", *made, *model, "--pairs", "2"], catch_exceptions=False)
    with pytest.raises(ValueError, match="NUMBER,NUMBER"):
        run(app, ["study", "ceiling", *common, *model, "--bank", "1"], catch_exceptions=False)
