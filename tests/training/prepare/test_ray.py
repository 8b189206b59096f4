"""Two nodes of Ray, one of them killed, make the bytes of one machine."""

import numpy as np
import pytest

from tests.support.videos import write_video
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import prepare

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = PrepareOptions(shards=4)


@pytest.fixture
def cluster(monkeypatch):
    # On a busy machine a node takes its time.
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.second = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_a_killed_node_changes_no_byte(cluster, encoder, tmp_path):
    videos, outs = tmp_path / "in", [tmp_path / "one", tmp_path / "two"]
    videos.mkdir()
    for n in range(12):
        noise = 0.2 * np.random.default_rng(n).standard_normal(32000)
        write_video(videos / f"{n}.mp4", samples=noise)
    list(prepare(videos, outs[0], encoder, options=SMALL))
    run = prepare(videos, outs[1], encoder, options=SMALL, executor="ray")
    assert [next(run) for _ in range(4)][-1] == (3, 12)
    cluster.remove_node(cluster.second, allow_graceful=False)
    list(run)
    for path in [
        *(outs[0] / "shards").iterdir(),
        outs[0] / "index.jsonl",
        outs[0] / "statistics.safetensors",
    ]:
        assert (outs[1] / path.relative_to(outs[0])).read_bytes() == path.read_bytes()
