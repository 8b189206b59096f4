from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from tests.support.dying import die, make
from training.prepare.process_pool import make_shards

SHARDS = {n: [f"{n}.{k}" for k in range(4)] for n in range(6)}


def test_only_the_video_that_kills_a_process_is_lost(tmp_path):
    deadly = {"1.2", "4.0", "4.3"}
    made = list(make_shards(partial(make, deadly=deadly), SHARDS, workers=2, notes=tmp_path))
    assert sorted(made) == [0, 1, 2, 3, 4, 5]
    left_out = {n: (tmp_path / f"{n}.done").read_text() for n in range(6)}
    assert left_out == {0: "", 1: "1.2", 2: "", 3: "", 4: "4.0 4.3", 5: ""}
    assert not list(tmp_path.glob("*.video"))


def test_processes_that_die_before_any_video_end_the_run(tmp_path):
    with pytest.raises(BrokenProcessPool):
        list(make_shards(die, SHARDS, workers=2, notes=tmp_path))
