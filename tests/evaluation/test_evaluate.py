import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from clipsynth.cli import app
from evaluation.clips import LabelledClip, read_clips, read_labels
from evaluation.embedders.classifier import claim, get_classifier
from evaluation.evaluate import EvaluateOptions, default_systems, evaluate, parse_kinds
from evaluation.interfaces import SAMPLE_RATE
from evaluation.plan import Plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """The tone clips as a labelled folder: two to train on, two to validate."""
    path = tmp_path_factory.mktemp("labels") / "manifest.csv"
    with path.open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["file", "label", "split"])
        rows.writerows([["0.mp4", "low", "train"], ["3.mp4", "high", "train"]])
        rows.writerows([["1.mp4", "low", "validation"], ["2.mp4", "high", "validation"]])
    return path


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    path = tmp_path_factory.mktemp("queries") / "queries.json"
    path.write_text(json.dumps({"classes": {"low": ["a red thing"], "high": ["a blue thing"]}}))
    return path


class Tone:
    """A system that hums a pitch for each seed, and counts what it was asked."""

    kinds = frozenset({"text", "image"})
    deterministic, training_query, generative, unlabeled = False, "image", True, True
    ends_after: int | None = None
    version = "v1"

    def __init__(self, name, argument, sources):
        self.name, self.asked = name, []

    def synthesize(self, queries, seeds):
        if self.ends_after is not None and len(Tone.calls) >= self.ends_after:
            raise KeyboardInterrupt
        Tone.calls += zip((q.kind for q in queries), seeds, strict=True)
        t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        return [(0.3 * np.sin(2 * np.pi * (200 + 50 * s) * t)).astype(np.float32) for s in seeds]


Tone.calls = []


def options(videos, labelled, queries, out, *systems, **other):
    return EvaluateOptions(
        videos,
        queries,
        out,
        systems,
        labels=labelled,
        **{
            "seeds": 2,
            "per_class": 3,
            "duration_s": 1.0,
            "resamples": 10,
            "rtf_clips": 0,
            "embedders": ["random-conv"],
            "batch_size": 2,
        }
        | other,
    )


@pytest.fixture(scope="module")
def finished(videos, labelled, queries, tiny_bundle, tmp_path_factory):
    """A folder of results of two runs, the first cut off in the middle; and the second one's calls."""
    out = tmp_path_factory.mktemp("results")
    tone = "hum=tests.evaluation.test_evaluate:Tone:x"
    wanted = options(
        videos, labelled, queries, out,
        f"ours=bundle:{tiny_bundle}?steps=1", f"vocoder=reconstruction:{tiny_bundle}",
        tone, rtf_clips=1,
    )  # fmt: skip
    import tests.evaluation.test_evaluate as module

    module.Tone.calls, module.Tone.ends_after = [], 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(videos, labelled, queries, out, tone))
    before = list(module.Tone.calls)
    module.Tone.calls, module.Tone.ends_after = [], None
    evaluate(wanted)
    return out, before, module.Tone.calls


def test_an_interrupted_run_resumes(finished):
    _, before, after = finished
    timing = 4  # one query of each kind, twice
    assert len(before) == 4
    compared = len(before)  # made again to see whether they are the same
    assert len(before) + len(after) - timing - compared == 12  # two kinds, two classes, three seeds


def test_the_command_prints_its_table(finished, videos, labelled, queries, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    arguments = ["--clips", videos, "--labels", labelled, "--queries", queries, "--out", tmp_path / "out"]
    arguments += ["--system", "hum=tests.evaluation.test_evaluate:Tone:x", "--embedder", "random-conv"]
    arguments += [
        "--query",
        "text",
        "--seeds",
        2,
        "--per-class",
        3,
        "--duration",
        1,
        "--rtf-clips",
        0,
        "--resamples",
        10,
    ]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    table = (tmp_path / "out" / "results.md").read_text()
    assert table.strip() in result.output
    assert table.startswith("| Model |")
    assert "| hum |" in table


def test_results_hold_every_row_and_figure(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    rows = {(row["system"], row["query"]): row for row in results["rows"]}
    assert list(rows) == [
        ("ours", "text"), ("ours", "image"), ("vocoder", "–"), ("hum", "text"), ("hum", "image"),
        ("real validation clips", "–"), ("real training clips (floor)", "–"),
    ]  # fmt: skip
    ours = rows["ours", "text"]
    assert set(ours["figures"]) == {
        "FAD/random-conv", "KAD/random-conv", "FID/efficientnet-lite0", "class_accuracy@1/classifier",
        "class_accuracy@5/classifier", "relevance/classifier", "copy_distance/mel", "copies/mel", "RTF",
    }  # fmt: skip
    assert ours["sounds"] == 6
    assert rows["vocoder", "–"]["sounds"] == 2
    assert ours["checks"]["duration_error_s"] == 0
    assert "FAD/random-conv" not in rows["real validation clips", "–"]["figures"]
    assert "class_accuracy@1/classifier" not in rows["real training clips (floor)", "–"]["figures"]
    near = {(one["system"], one["query"]): one for one in results["memorisation"]}
    assert (
        len(near) == 7
    )  # the floor's clips are training clips; those to others of another source stand for them
    assert all(0 <= one["p1"] <= one["p5"] <= one["p50"] <= 1 for one in near.values())
    assert not near["real validation clips", "–"]["suspect"]
    gap = results["text_gap"]["hum"]["FAD/random-conv"]
    assert gap["gap"]["value"] == pytest.approx(0, abs=1e-6)  # it does not listen to what it is asked
    assert "closed" not in results["text_gap"]["ours"]["FAD/random-conv"]


def test_the_table_names_the_embedder_of_each_metric(finished):
    table = (finished[0] / "results.md").read_text()
    assert table.startswith(
        "| Model | Generative | Unlabeled data only | Training query | Test query "
        "| FAD/random-conv ↓ | FID/efficientnet-lite0 ↓ |"
    )
    assert re.search(r"\| ours \| ✓ \| ✓ \| image \| text \| [\d.]+", table)
    assert "chance is 50.0 %" in table
    assert "| Distance to the nearest training clip | query | p1 | p5 | p50 |" in table


def test_the_report_page_is_self_contained(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.count("<audio") >= 2 * 7
    assert not re.search(r"(src|href)=.?(?!.?data:)[\"'](http|/|\w+\.)", page)
    assert page.count("<h2>ours") == 2
    assert page.count("The ten nearest to a training clip") == 6  # the floor's own are none


def test_every_query_is_exported(finished):
    with (finished[0] / "queries.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert sorted((r["kind"], r["clip"], r["seed"]) for r in rows if r["kind"] == "text") == [
        *(("text", "1.mp4", str(seed)) for seed in (0, 2, 4)),
        *(("text", "2.mp4", str(seed)) for seed in (1, 3, 5)),
    ]
    assert {r["prompt"] for r in rows} == {"a red thing", "a blue thing", ""}


def clip(file, label):
    return LabelledClip(file, label, np.zeros(4, np.float32), None)


def test_the_plan_asks_as_many_sounds_of_each_class():
    clips = [clip(f"{i}", "a") for i in range(4)] + [clip("4", "b")]
    plan = Plan(clips, {"a": ["x", "y"], "b": ["z"]}, seeds=2, per_class=10)
    samples = plan.samples("text")
    assert len({s.stem for s in samples}) == len(samples) == 20
    judged = plan.for_class_accuracy(samples)
    assert sorted(s.query.label for s in judged) == ["a"] * 10 + ["b"] * 10
    assert [s.query.clip for s in plan.for_distances(samples, 1)] == list("01234")
    assert len({s.seed for s in samples}) == 20  # or all sounds of a class would begin with the same noise
    assert {s.query.prompt for s in samples if s.query.clip == "0"} == {
        "x",
        "y",
    }  # a clip's phrase turns with the seed
    assert len(Plan(clips, {"a": ["x"], "b": ["z"]}, seeds=2, per_class=0).samples("text")) == 10


def test_a_plan_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 2 clips"):
        Plan([clip("0", "a")], {"a": ["x"]})
    with pytest.raises(ValueError, match="'b'"):
        Plan([clip("0", "a"), clip("1", "b")], {"a": ["x"]})
    with pytest.raises(ValueError, match="share their sounds' names"):
        Plan([clip("0/1.mp4", "a"), clip("0-1.webm", "a")], {"a": ["x"]})


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (["a=folder:nowhere"], "holds no manifest.csv"),
        (["a=bundle:nowhere"], "no bundle"),
        (["ours"], "NAME=KIND:ARGUMENT"),
        (["a=b:c"], "NAME=KIND:ARGUMENT"),
        (["a=no.such:thing:x"], "cannot be imported"),
        (["hum=tests.evaluation.test_evaluate:Tone:x"] * 2, "different names"),
        ([], "at least one"),
    ],
)
def test_invalid_systems_are_rejected(systems, message, finished, videos, labelled, queries):
    with pytest.raises(ValueError, match=message):
        evaluate(options(videos, labelled, queries, finished[0], *systems))


def test_a_class_unknown_to_the_judge_is_named(finished, videos, labelled, tmp_path):
    queries = tmp_path / "queries.json"
    queries.write_text('{"classes": {"zebra": ["a zebra"]}}')
    with pytest.raises(ValueError, match="zebra"):
        evaluate(options(videos, labelled, queries, finished[0], "hum=tests.evaluation.test_evaluate:Tone:x"))


def test_a_folder_of_results_belongs_to_one_set_of_clips(finished, videos, labelled, tmp_path):
    other = tmp_path / "manifest.csv"
    other.write_text(labelled.read_text().replace("3.mp4,high,train", "3.mp4,low,train"))
    claim(finished[0], videos, labelled)
    with pytest.raises(ValueError, match="results of other clips"):
        claim(finished[0], videos, other)


def test_odd_files_beside_the_clips_do_no_harm(labelled, tmp_path):
    for name, target in (("loop.mp4", "loop.mp4"), ("gone.mp4", "nowhere")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    claim(tmp_path / "out", tmp_path, labelled)


def test_the_judge_is_trained_without_the_validation_clips(videos, labelled, tmp_path):
    alone = tmp_path / "videos"
    alone.mkdir()
    for name in ("0.mp4", "3.mp4"):
        (alone / name).symlink_to(videos / name)
    with pytest.raises(ValueError, match=r"1\.mp4: no such video"):
        list(read_clips(alone, read_labels(labelled, "validation")))
    assert get_classifier(tmp_path / "judge", alone, labelled).labels == ["high", "low"]


def test_the_default_systems_come_from_the_model():
    bundle = "runs/mine/bundle"
    assert default_systems(bundle, None, 4, None) == [
        "CLIPSynth=bundle:runs/mine/bundle?steps=4",
        "vocoder reconstruction=reconstruction:runs/mine/bundle",
    ]
    assert default_systems(bundle, "data/mine", None, 2.5)[2] == "CLIPRetriever=retriever:runs/mine/bundle"
    assert parse_kinds(["text"]) == ["text", "clip"]
    with pytest.raises(ValueError, match="'smell'"):
        parse_kinds(["smell"])


def test_an_empty_folder_is_a_clear_error(tmp_path, queries):
    arguments = [
        "evaluate",
        "--clips",
        str(tmp_path),
        "--queries",
        str(queries),
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ValueError)
    assert "no file of labels" in str(result.exception)
