"""Temporary folders."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from clipsynth.storage import Scratch

HOLD = """
import sys
from clipsynth.storage import Scratch
scratch = Scratch()
print(scratch.path, flush=True)
sys.stdin.read()
"""


def test_a_folder_of_a_killed_process_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command, env = [sys.executable, "-c", HOLD], os.environ | {"TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, env=env, **pipes) as killed,
        subprocess.Popen(command, env=env, **pipes) as alive,
    ):
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, alive))
        (left / "copy").write_bytes(b"x")
        killed.kill()
        killed.wait()
        new = Scratch()
        # So new that its lock may not be taken yet.
        assert left.exists()
        for folder in (left, used):
            os.utime(folder, (time.time() - 60,) * 2)
        new.close()
        second = Scratch()
        assert (left.exists(), used.exists(), new.path.exists()) == (False, True, False)
        alive.communicate("")
        assert not used.exists()
        second.close()
    assert not list(tmp_path.iterdir())
