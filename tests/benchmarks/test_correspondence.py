from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.model import correspondence
from tests.support.planted import write_planted
from training.data.clips import load_clips


def test_area_equals_the_roc_curve_with_ties():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(10, size=200) / 10, rng.random(200) < 0.2
    assert correspondence.area(scores, wrong) == pytest.approx(roc_auc_score(~wrong, scores))
    low, high = correspondence.interval(scores, wrong)
    assert low < correspondence.area(scores, wrong) < high


def test_areas_of_all_exchanges_and_of_those_between_classes(tmp_path, capsys):
    folder = write_planted(tmp_path / "clips")
    with (tmp_path / "labels.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["file", "label", "split"])
        for line in load_clips(folder).train.index:
            writer.writerow([f"train/{line['video']}", line["attributes"]["kind"], "train"])
    overrides = ["repeats=1", "epochs=10", "batch_size=32"]
    correspondence.main(folder, seeds=1, overrides=overrides, labels_file=tmp_path / "labels.csv")
    first, everything, between = capsys.readouterr().out.splitlines()
    found = json.loads(first)
    assert found["across_n"] < found["all_n"] == 24
    assert found["across"] > 0.9
    assert everything.startswith("all: ")
    assert between.startswith("across: ")
