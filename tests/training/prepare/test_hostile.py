"""Bad files among the videos: each has a reason, and the others come out as if there were none."""

import json
import shutil
from functools import partial

import numpy as np
import pytest

from clipsynth.limited_child import Limits
from clipsynth.services.limited_process import stream_limited
from tests.support.hostile import write_hostile
from tests.support.videos import write_video
from training.prepare.folder import PrepareOptions
from training.prepare.prepare import prepare

LIMITS = Limits(cpu_s=20, wall_s=60, memory_bytes=250 << 20, output_bytes=100 << 20)


@pytest.mark.parametrize(
    ("good", "bad"), [(12, 25), pytest.param(160, 40, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_bad_files_change_no_byte(encoder, tmp_path, good, bad):
    clean, mixed = tmp_path / "clean", tmp_path / "mixed"
    clean.mkdir(), mixed.mkdir()
    for n in range(good):
        noise = 0.2 * np.random.default_rng(n).standard_normal(16000)
        video = write_video(clean / f"{n:03d}.mp4", seconds=1.0, samples=noise)
        (mixed / video.name).hardlink_to(video)
    reasons = write_hostile(mixed, bad)
    stream = partial(stream_limited, limits=LIMITS)
    for folder in (clean, mixed):
        out = tmp_path / f"{folder.name}_out"
        if folder is mixed and good > 100:
            # The good ones once more would take minutes: the bad ones come later.
            shutil.copytree(tmp_path / "clean_out", out)
        list(prepare(folder, out, encoder, options=PrepareOptions(shards=8), stream=stream))
    report = json.loads((tmp_path / "mixed_out" / "report.json").read_text())
    assert report["clips"] == good
    assert report["skipped"].keys() == reasons.keys()
    assert {n: r for n, r in report["skipped"].items() if not r or not r.startswith(reasons[n])} == {}
    assert report["damaged"] == {}
    a, b = (tmp_path / name for name in ("clean_out", "mixed_out"))
    for file in [*(a / "shards").iterdir(), a / "index.jsonl", a / "statistics.safetensors"]:
        assert (b / file.relative_to(a)).read_bytes() == file.read_bytes()
    assert len(list((b / "shards").iterdir())) == len(list((a / "shards").iterdir()))
