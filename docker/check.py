"""Build the images, run docker-compose.yml's services from them, and try the tasks of an installation.

    sudo PYTHONPATH=. python docker/check.py            # needs buildah, debootstrap, iproute2, PyYAML

Each service runs its compose command in its image (buildah, chroot isolation) on a network namespace, with
compose's names, ports, users, volumes, environment and health checks. The end lists the parts not covered.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import yaml
from compose_service import NOT_COVERED, ComposeService, run
from images import REDIS, build, make_base, make_redis, sizes, unpinned

from benchmarks.chaos.hosts import Host, network

ROOT = Path(__file__).resolve().parents[1]
# The id of one request, in all logs.
REQUEST_ID = "check-1"
RUN = ("secrets", "redis", "app", "worker", "janitor", "webhooks")
TWO_STEPS = {"vocoder.steps": 2, "denoiser.steps": 2}
TWO_STEPS |= {"vocoder.batch_size": 2, "denoiser.batch_size": 2}
TRAINING_S = 900
MAKE_VIDEOS = """import pathlib, make
pathlib.Path("videos").mkdir()
for n, colour in enumerate(("red", "green")):
    make.write_video(pathlib.Path(f"videos/{n}.mp4"), hz=220.0 * 2**n, colour=colour)
"""


class Api:
    """A client of the API on this machine."""

    def __init__(self, host: Host) -> None:
        self.url = f"http://{host.address}:8000"
        self.key: dict[str, str] = {}

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        # The published port is asked under this machine's name; without an engine nothing publishes it.
        own = {"Host": "localhost:8000", "Content-Type": "application/json", **self.key}
        headers = own | {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str) -> dict:
        return json.loads(self.ask("GET", path)[1])


def wait(what: str, condition: Callable[[], bool], timeout_s: float = 120) -> None:
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise SystemExit(f"FAILED: {what}, not within {timeout_s:.0f} s")
        time.sleep(0.2)
    check(f"{what} ({time.monotonic() - started:.1f} s)", True)


def check(what: str, held: bool) -> None:
    if not held:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


def sounds(data: bytes) -> bool:
    """Return whether a file is a WAV of 16 kHz that is not silent."""
    with wave.open(io.BytesIO(data)) as file:
        frames = file.readframes(file.getnframes())
        return file.getframerate() == 16000 and file.getnframes() > 8000 and len(set(frames)) > 20


def try_services(services: dict[str, ComposeService], api: Api) -> None:
    """Start all services in compose's order, and ask them for sounds."""
    services["secrets"].start()
    check("secrets made a password and ended with 0", services["secrets"].wait() == 0)
    services["redis"].start()
    wait("redis is healthy", services["redis"].healthy)
    pong = services["redis"].execute("redis-cli", "ping").stdout
    check("redis rejects a client without the password", "NOAUTH" in pong)
    for name in ("app", "worker", "janitor", "webhooks"):
        services[name].start()
    wait("app is healthy", services["app"].healthy)
    wait("worker is healthy", services["worker"].healthy)
    for name in ("janitor", "webhooks"):
        wait(f"{name} is healthy", services[name].healthy)
    check("before the first key all requests are rejected", api.ask("GET", "/v1/models")[0] == 503)
    token = services["app"].execute("clipsynth", "keys", "create", "check").stdout.split()[0]
    check("after it others are", api.ask("GET", "/v1/models")[0] == 401)
    api.key = {"authorization": f"Bearer {token}"}
    wait("the API knows the demo bundle", lambda: [m["status"] for m in api.get("/v1/models")] == ["ready"])
    headers = {"prefer": "wait=60", "accept": "audio/wav", "x_request_id": REQUEST_ID}
    status, data = api.ask("POST", "/v1/generations", {"prompt": "a dog barking", "seed": 7}, **headers)
    check("a prompt became a WAV", status == 200 and sounds(data))
    jobs = partial(ComposeService.logged, name="job_id", request_id=REQUEST_ID)
    wait("the API logs one job under the request's id", lambda: len(jobs(services["app"])) == 1)
    wait("the worker logs the same", lambda: jobs(services["app"]) == jobs(services["worker"]))
    read = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    scrape = services["worker"].execute("python", "-c", read).stdout
    check("the worker's metrics count it", 'clipsynth_jobs_total{kind="text"' in scrape)

    made = [api.ask("POST", "/v1/generations", {"prompt": "rain", "seed": n}) for n in range(6)]
    ids = [json.loads(body)["id"] for status, body in made if status == 202]
    check("six more are accepted", len(ids) == 6)
    wait("some of them run", lambda: statuses(api, ids).count("processing") > 0)
    services["worker"].signal(signal.SIGTERM)
    check("SIGTERM ends the worker with 0", services["worker"].wait() == 0)
    left = statuses(api, ids)
    check(f"what ran has ended: {left}", set(left) <= {"succeeded", "queued"} and "succeeded" in left)
    services["worker"].start()
    wait("the next worker makes the rest", lambda: set(statuses(api, ids)) == {"succeeded"})

    restart_from_backup(services["redis"])
    wait("redis is healthy on the backup", services["redis"].healthy)
    wait("redis has the records of the backup", lambda: set(statuses(api, ids)) == {"succeeded"})
    for name in ("webhooks", "janitor", "worker", "app"):
        uid = services[name].uid()
        services[name].signal(signal.SIGTERM)
        code = services[name].wait()
        check(f"{name} ran as user {uid} and ends on SIGTERM", uid == 10001 and code in (0, -signal.SIGTERM))
    services["redis"].signal(signal.SIGTERM)
    services["redis"].wait()
    for name in RUN:
        check(f"{name} wrote nothing outside its volumes and /tmp", services[name].written() == [])


def restart_from_backup(redis: ComposeService) -> None:
    """Copy Redis' folder while it runs, and start it on the copy, as docs/operations.md describes."""
    cli = 'REDISCLI_AUTH=$(cat /run/secrets/clipsynth_redis_password) redis-cli "$@"'
    data = redis.volume("/data")
    for percentage in ("0", "100"):
        said = redis.execute("sh", "-c", cli, "-", "config", "set", "auto-aof-rewrite-percentage", percentage)
        check(f"Redis rewrites its file at {percentage} % (0: never)", said.stdout.strip() == "OK")
        if percentage == "0":
            run("tar", "-C", str(data), "-cf", str(data.parent / "redis.tar"), "appendonlydir")
    redis.signal(signal.SIGTERM)
    redis.wait()
    shutil.rmtree(data / "appendonlydir")
    run("tar", "-C", str(data), "-xf", str(data.parent / "redis.tar"))
    redis.start()


def try_training(train: ComposeService) -> None:
    """Prepare two videos and train two steps of each part, as `docker compose run --rm train …` does."""
    folder = train.volume("/runs")
    shutil.copy(ROOT / "tests/support/videos.py", folder / "make.py")
    train.start(["python", "-c", MAKE_VIDEOS])
    check("two videos were made with the image's codecs", train.wait() == 0)
    shutil.copytree(folder / "videos", train.volume("/videos"), dirs_exist_ok=True)
    steps = [f"--set={part}={n}" for part, n in TWO_STEPS.items()]
    for what, words in {
        "prepare": ["clipsynth", "prepare", "/videos", "data/demo", "--clip-seconds", "1"],
        "train, two steps of each part": ["clipsynth", "train", "/app/recipes/demo.yaml", *steps],
        "inspect": ["clipsynth", "inspect", "runs/demo/bundle"],
    }.items():
        started = time.monotonic()
        train.start(words)
        code = train.wait(TRAINING_S)
        check(f"{what} ({time.monotonic() - started:.0f} s)", code == 0)
    check("training left a bundle", (folder / "runs/demo/bundle/clipsynth.json").exists())
    check("train wrote nothing outside its volumes and /tmp", train.written() == [])


def statuses(api: Api, ids: list[str]) -> list[str]:
    return [api.get(f"/v1/generations/{i}")["status"] for i in ids]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--suite", default="bookworm", help="Debian release of the base image")
    parser.add_argument("--mount", action="append", default=[], help="path that builds can read")
    parser.add_argument("--build", nargs="*", default=["app", "worker", "train"], help="images to build")
    parser.add_argument("--run", nargs="*", default=["services", "train"], help="parts to try")
    arguments = parser.parse_args()
    known = sizes()
    if "clipsynth-base:latest" not in known:
        make_base(arguments.suite)
    if "clipsynth-check-redis:latest" not in known:
        make_redis(arguments.mount)
    for role in arguments.build:
        print(f"built clipsynth-{role} in {build(role, arguments.mount):.0f} s", flush=True)
        check(f"all packages in clipsynth-{role} are pinned", unpinned(role) == set())
    for name, value in sorted(sizes().items()):
        if name.startswith("clipsynth-"):
            print(f"{name}: {value}", flush=True)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    images = {"redis:7.2.11-bookworm": REDIS}
    with ExitStack() as stack:
        hosts = stack.enter_context(network(*RUN, "train"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (videos := folder / "videos").mkdir()

        def service(name: str) -> ComposeService:
            places = {"images": images, "hosts": hosts, "folder": folder, "root": ROOT}
            variables = {"VIDEOS": str(videos)}
            spec = compose["services"][name]
            return stack.enter_context(ComposeService(name, spec, variables=variables, **places))

        try:
            if "train" in arguments.run:
                try_training(service("train"))
            if "services" in arguments.run:
                try_services({name: service(name) for name in RUN}, Api(hosts["app"]))
        except SystemExit:
            for log in sorted(folder.glob("*.log")):
                print(f"----- {log.name}", *log.read_text().splitlines()[-20:], sep="\n", flush=True)
            raise
    print("not covered without a container engine:", *NOT_COVERED, sep="\n  - ")


if __name__ == "__main__":
    sys.exit(main())
