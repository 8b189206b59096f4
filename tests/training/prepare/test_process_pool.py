import multiprocessing

import pytest

from tests.support.dying import make_dying, make_nothing
from training.prepare.process_pool import Died, run_in_processes


def test_only_inputs_that_kill_their_process_are_lost(tmp_path):
    inputs = [f"{n}" for n in range(12)]
    results = dict(run_in_processes(make_dying, (("3", "7"), str(tmp_path)), inputs, 2))
    assert results.keys() == set(inputs)
    assert [item for item, result in results.items() if isinstance(result, Died)] == ["3"]
    # 7 kills only its first process.
    assert results["7"] == "done 7"


def test_processes_that_end_at_their_start_end_the_run():
    with pytest.raises(RuntimeError, match="at its start, exit code 11"):
        list(run_in_processes(make_nothing, (), ["1"], 2))


def test_a_caller_that_stops_early_leaves_no_process(tmp_path):
    run = run_in_processes(make_dying, ((), str(tmp_path)), ["1", "2", "3"], 2)
    next(run)
    run.close()
    assert multiprocessing.active_children() == []
