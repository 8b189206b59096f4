"""One service of docker-compose.yml, run by buildah as docker/check.py needs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.hosts import Host

NOT_COVERED = (
    "published ports, isolation of the internal network, and names by DNS (here: /etc/hosts)",
    "read_only, cap_drop, no-new-privileges, init, restart (instead: no writes outside volumes and /tmp)",
    "a fresh volume's contents and owner coming from the image (here: set by this script)",
    "--scale and depends_on (here: one of each, in order), GPUs, the profile metrics",
    "the images python:3.11.14-slim-bookworm and redis:7.2.11-bookworm (here: Debian's)",
)


def run(*command: str, **options: Any) -> str:
    """Run a command and return its output; exit with its error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:] or done.stdout[-2000:]}")
    return done.stdout.strip()


def buildah(*words: str, **options: Any) -> str:
    return run("buildah", *words, **options)


class ComposeService:
    """A container that is started as compose describes it; a context manager that ends it."""

    def __init__(
        self,
        name: str,
        spec: dict[str, Any],
        *,
        images: dict[str, str],
        hosts: dict[str, Host],
        folder: Path,
        root: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`variables` are compose's; for others its defaults count."""
        self._variables = variables or {}
        self.name, self.spec, self.host = name, spec, hosts[name]
        image = images.get(spec["image"], spec["image"])
        names = [word for host in hosts for word in ("--add-host", f"{host}:{hosts[host].address}")]
        self.container = buildah("from", *names, image)
        config = json.loads(buildah("inspect", self.container))["Docker"]["config"]
        own_check = (config.get("Healthcheck") or {}).get("Test")
        self._health = spec.get("healthcheck", {}).get("test") or own_check
        self._user = str(spec.get("user") or config["User"])
        self._options = ["--user", self._user, *self._volumes(folder, root)]
        self._environment = dict(pair.split("=", 1) for pair in config["Env"] or ())
        for key, value in spec.get("environment", {}).items():
            self._environment[key] = self._substituted(str(value))
            self._options += ["--env", f"{key}={self._environment[key]}"]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{name}.log"

    def _volumes(self, folder: Path, root: Path) -> list[str]:
        options = ["--volume", f"{_folder(folder / f'tmp-{self.name}', 0o1777)}:/tmp"]
        for volume in self.spec.get("volumes", ()):
            source, target, *mode = self._substituted(volume).split(":")
            if source.startswith((".", "/")):
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

    def _substituted(self, value: str) -> str:
        """Return a value of compose's with `${NAME:-default}` replaced."""
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: self._variables.get(m[1], m[2]), value)

    def __enter__(self) -> ComposeService:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                self.signal(signal.SIGKILL)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        buildah("rm", self.container)

    def _command(self, *words: str) -> list[str]:
        run = ("buildah", "run", "--isolation", "chroot")
        return self.host.command(*run, *self._options, self.container, "--", *words)

    def start(self, words: Sequence[str] = ()) -> None:
        """Start the service's command, or another, in its own network namespace."""
        command = self._command(*(words or self.spec["command"]))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the running container, as `docker exec` does."""
        pid = self._main_process()
        user, _, group = self._user.partition(":")
        enter = ["/usr/bin/nsenter", "--target", str(pid), "--mount", "--net", "--root", "--wd"]
        enter += ["--setuid", user, "--setgid", group or user, "--"]
        return subprocess.run([*enter, *words], env=self._environment, capture_output=True, text=True)

    def healthy(self) -> bool:
        """Run the health check; False before there is a process."""
        kind, *words = self._health
        if kind == "CMD-SHELL":
            words = ["sh", "-c", words[0].replace("$$", "$")]
        try:
            return self.execute(*words).returncode == 0
        except FileNotFoundError:
            return False

    def _main_process(self) -> int:
        """Return the id of the container's first process: the first descendant that is not buildah's.

        Raises:
            FileNotFoundError: there is none yet, or it has ended.
        """
        assert self.process
        pid = self.process.pid
        while Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"buildah", b"ip\0")):
            tasks = Path(f"/proc/{pid}/task").iterdir()
            children = [child for task in tasks for child in (task / "children").read_text().split()]
            if not children:
                raise FileNotFoundError(f"{self.name} has no process")
            pid = int(children[0])
        return pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._main_process(), number)

    def uid(self) -> int:
        found = re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{self._main_process()}/status").read_text(), re.M)
        assert found
        return int(found[1])

    def logged(self, name: str, **where: object) -> set[str]:
        """Return the values of the field `name` in lines of the JSON log whose fields match `where`."""
        found = set()
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                fields = json.loads(line)
                if isinstance(fields, dict) and where.items() <= fields.items() and name in fields:
                    found.add(fields[name])
        return found

    def volume(self, target: str) -> Path:
        """Return the folder on this machine that is mounted as `target`."""
        [source] = {w.split(":")[0] for w in self._options if w.split(":")[1:2] == [target]}
        return Path(source)

    def wait(self, timeout_s: float = 60) -> int:
        """Return the exit code, negative where a signal ended the process."""
        assert self.process
        code = self.process.wait(timeout_s)
        ended_by = re.search(r"subprocess exited on (\w+)\n", self.log.read_text()[-200:])
        return -signal.SIGTERM if code and ended_by and ended_by[1] == "terminated" else code

    def written(self) -> list[str]:
        """Return the files written to the container's own file system, outside of mounts."""
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
