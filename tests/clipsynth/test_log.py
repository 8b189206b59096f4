"""What a command writes to the console."""

import subprocess
import sys

LINES = """
import logging
from clipsynth.log import set_up
set_up("text")
logging.info("Loaded ViT-B-32 model config.")
for name in ("botocore.credentials", "httpx", "s3fs", "training.loop", "clipsynth"):
    logging.getLogger(name).info("about %s", name)
logging.getLogger("s3fs").warning("a warning")
"""


def test_libraries_are_quiet_until_they_warn():
    done = subprocess.run([sys.executable, "-c", LINES], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "INFO training.loop: about training.loop",
        "INFO clipsynth: about clipsynth",
        "WARNING s3fs: a warning",
    ]
