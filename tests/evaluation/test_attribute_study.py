import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from evaluation.attribute_study import Row, findings, main, run, spearman, to_markdown
from evaluation.classifier import SoundClassifier
from evaluation.systems import Query
from models.attributes import NAMES

LEVELS = (0.1, 0.5, 0.9)


def row(measured, *, asked=0.5, query=0, attribute="pitch", heard=None):
    return Row(attribute, query, "dog", "text", 0, asked, measured, heard)


def test_rank_correlation_is_that_of_scipy_and_0_where_nothing_varies():
    rng = np.random.default_rng(0)
    for size in (3, 10, 50):
        a, b = rng.integers(0, 6, size) + np.arange(size), rng.normal(size=size)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [4, 4, 4]) == 0


def test_rank_counts_within_queries_alone():
    """Each query follows what was asked, from a base of its own; one goes against it."""
    follows = [row(100 * q + level, asked=level, query=q) for q in range(3) for level in LEVELS]
    against = [row(-level, asked=level, query=3) for level in LEVELS]
    (found,) = findings(follows + against)
    assert found.rho.value == pytest.approx((1 + 1 + 1 - 1) / 4)
    assert found.rho.low < found.rho.value < found.rho.high
    assert (found.sounds, found.lacking, found.leakage) == (12, 0, None)


def test_sounds_without_the_attribute_are_left_out_and_counted():
    rows = [row(level, asked=level) for level in LEVELS]
    rows += [row(None, asked=0.9), row(None, query=1), row(1.0, query=1), row(2.0, asked=0.9, query=1)]
    (found,) = findings(rows)
    assert found.rho.value == pytest.approx((1 + 0) / 2)
    assert found.lacking == pytest.approx(2 / 7)


def test_leakage_is_the_loss_of_class_agreement_at_the_extremes():
    heard = {0.1: "cat", 0.5: "dog", 0.9: "dog"}
    rows = [row(level, asked=level, query=q, heard=heard[level]) for q in range(4) for level in LEVELS]
    (found,) = findings(rows)
    assert found.leakage is not None
    assert found.leakage.value == pytest.approx(-0.5)
    assert "-0.50 [-0.50, -0.50]" in to_markdown([found])


@pytest.fixture(scope="module")
def queries():
    return [
        Query("dog", "", prompt="a dog", duration_s=0.5),
        Query("cat", "", prompt="a cat", duration_s=0.5),
    ]


def test_loudness_follows_what_is_asked_and_noise_is_shared_by_levels(tiny_pipeline, queries):
    torch.manual_seed(0)
    judge = SoundClassifier(["dog", "cat"])
    arguments = {"judge": judge, "steps": 2, "guidance": 1.0}
    rows = list(run(tiny_pipeline, queries, LEVELS, [0, 1], attributes=["loudness"], **arguments))
    assert len(rows) == 2 * 3 * 2
    assert {r.kind for r in rows} == {"text"}
    assert {r.heard for r in rows} <= {"dog", "cat"}
    (found,) = findings(rows)
    assert found.rho.value > 0.9
    assert found.leakage is not None
    assert found.leakage.value == 0  # the judge hears all at one level


def test_all_that_the_bundle_takes_is_asked_for(tiny_pipeline, queries):
    rows = list(run(tiny_pipeline, queries[:1], [0.5], [0], steps=1))
    assert tuple(r.attribute for r in rows) == NAMES


def test_the_command_prints_a_table_and_keeps_the_rows(tiny_bundle, tmp_path, capsys):
    (tmp_path / "queries.json").write_text(json.dumps({"classes": {"dog": ["a dog", "another"]}}))
    options = [
        "--levels",
        "0.1",
        "0.9",
        "--seeds",
        "2",
        "--duration",
        "0.5",
        "--steps",
        "1",
        "--attributes",
        "loudness",
    ]
    files = ["--queries", str(tmp_path / "queries.json"), "--out", str(tmp_path / "rows.json")]
    main([str(tiny_bundle), *files, *options])
    table = capsys.readouterr().out
    assert "| loudness | 4 | " in table
    assert [r["asked"] for r in json.loads((tmp_path / "rows.json").read_text())] == [0.1, 0.1, 0.9, 0.9]


def test_a_bundle_without_attributes_is_told():
    assert "takes no attributes" in to_markdown(findings([]))
