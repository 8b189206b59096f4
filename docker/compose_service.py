"""One service of docker-compose.yml, run by buildah: the part of a container engine that docker/check.py needs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.scale.hosts import Host

NOT_COVERED = (
    "published ports, the internal network's missing way out, and names by DNS (here: /etc/hosts)",
    "read_only, cap_drop, no-new-privileges, init and restart (instead: nothing was written outside volumes and /tmp)",
    "a fresh volume's contents and owner coming from the image (here: set by this script)",
    "--scale and depends_on (here: one of each, in order), GPUs, the profiles metrics and train",
    "the images python:3.11-slim-bookworm and redis:7.2-bookworm themselves (here: Debian's Python and Redis)",
)


def run(*command: str, **options: Any) -> str:
    """Run a command and return what it says; raises with its complaint where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:] or done.stdout[-2000:]}")
    return done.stdout.strip()


def buildah(*words: str, **options: Any) -> str:
    return run("buildah", *words, **options)


class Service:
    """A container that is started with what compose says of it; a context manager that leaves nothing running."""

    def __init__(
        self,
        name: str,
        spec: dict[str, Any],
        *,
        images: dict[str, str],
        hosts: dict[str, Host],
        folder: Path,
        root: Path,
    ) -> None:
        self.name, self.spec, self.host = name, spec, hosts[name]
        image = images.get(spec["image"], spec["image"])
        names = [word for host in hosts for word in ("--add-host", f"{host}:{hosts[host].address}")]
        self.container = buildah("from", *names, image)
        config = json.loads(buildah("inspect", self.container))["Docker"]["config"]
        self._health = spec.get("healthcheck", {}).get("test") or (config.get("Healthcheck") or {}).get(
            "Test"
        )
        self._user = str(spec.get("user") or config["User"])
        self._options = ["--user", self._user, *self._volumes(folder, root)]
        for key, value in spec.get("environment", {}).items():
            self._options += ["--env", f"{key}={_substituted(str(value))}"]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{name}.log"

    def _volumes(self, folder: Path, root: Path) -> list[str]:
        options = ["--volume", f"{_folder(folder / f'tmp-{self.name}', 0o1777)}:/tmp"]
        for volume in self.spec.get("volumes", ()):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                source = str((root / source).resolve())
            else:
                path = folder / source
                fresh = not path.exists()
                _folder(path, 0o755)
                if fresh and source != "secrets":
                    os.chown(path, int(self._user.split(":")[0]), -1)
                source = str(path)
            options += ["--volume", ":".join([source, target, *mode])]
        return options

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        buildah("rm", self.container)

    def _command(self, *words: str) -> list[str]:
        return self.host.command(
            "buildah", "run", "--isolation", "chroot", *self._options, self.container, "--", *words
        )

    def start(self) -> None:
        """Start the service's command in its own network namespace."""
        with self.log.open("ab") as log:
            command = self._command(*self.spec["command"])
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def execute(self, *words: str) -> str:
        """Run a command beside the service's, and return all that it says."""
        done = subprocess.run(self._command(*words), capture_output=True, text=True)
        return done.stdout + done.stderr

    def healthy(self) -> bool:
        """Run the health check."""
        kind, *words = self._health
        if kind == "CMD-SHELL":
            words = ["sh", "-c", words[0].replace("$$", "$")]
        return subprocess.run(self._command(*words), capture_output=True).returncode == 0

    def _main_process(self) -> int:
        """Return the id of the process that the engine would call 1: the last in the line of only children."""
        assert self.process
        pid = self.process.pid
        while True:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            executable = os.readlink(f"/proc/{pid}/exe")
            if not children or not executable.endswith(("buildah", "ip")):
                return pid
            pid = int(children[0])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._main_process(), number)

    def uid(self) -> int:
        """Return as whom the service runs."""
        found = re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{self._main_process()}/status").read_text(), re.M)
        assert found
        return int(found[1])

    def wait(self, timeout_s: float = 60) -> int:
        """Return the exit code."""
        assert self.process
        return self.process.wait(timeout_s)

    def written(self) -> list[str]:
        """Return what was written to the container's own file system, where mounts are left out."""
        upper = Path(buildah("mount", self.container)).parent / "diff"
        buildah("umount", self.container)
        assert upper.is_dir(), f"{upper}: only the storage driver overlay is known here"
        mounts = {"/tmp", "/dev", "/proc", "/sys", "/etc/hosts", "/etc/resolv.conf", "/run/.containerenv"}
        mounts |= {word.split(":")[1] for word in self._options if word.startswith("/") and ":" in word}
        written = ["/" + str(path.relative_to(upper)) for path in upper.rglob("*") if not path.is_dir()]
        return [path for path in written if not any(path == m or path.startswith(m + "/") for m in mounts)]


def _folder(path: Path, mode: int) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(mode)
    return path


def _substituted(value: str) -> str:
    """Return a value with compose's `${NAME:-default}` as where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
