from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import agreement
from tests.support.planted import write_planted
from training.data.clips import load_clips


def test_area_is_that_of_the_roc_curve_with_ties():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(10, size=200) / 10, rng.random(200) < 0.2
    assert agreement.area(scores, wrong) == pytest.approx(roc_auc_score(~wrong, scores))
    low, high = agreement.interval(scores, wrong)
    assert low < agreement.area(scores, wrong) < high


@pytest.mark.slow
def test_the_command_prints_areas_over_all_swaps_and_those_between_classes(tmp_path, monkeypatch, capsys):
    folder = write_planted(tmp_path / "clips")
    with (tmp_path / "labels.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["file", "label", "split"])
        for line in load_clips(folder).train.index:
            writer.writerow([f"train/{line['video']}", line["attributes"]["kind"], "train"])
    options = ["--seeds", "1", "--set", "repeats=1", "--set", "epochs=10", "--set", "batch_size=32"]
    monkeypatch.setattr(
        "sys.argv", ["agreement", str(folder), *options, "--labels", str(tmp_path / "labels.csv")]
    )
    agreement.main()
    first, everything, between = capsys.readouterr().out.splitlines()
    found = json.loads(first)
    assert found["across_n"] < found["all_n"] == 24
    assert found["across"] > 0.9
    assert everything.startswith("all: ")
    assert between.startswith("across: ")
