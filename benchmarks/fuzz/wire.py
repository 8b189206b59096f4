"""Send broken requests over sockets: no answer may be 5xx or hang, rejections are problem+json."""

from __future__ import annotations

import collections
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx

from benchmarks.fuzz.mutations import PARENT, BrokenRequest, case
from benchmarks.load.service import ServiceProcesses
from clipsynth.budgets import MAX_VIDEOS

# Far beyond the time after which the service closes unfinished requests.
TIMEOUT_S = 20.0
CLIENTS = 16
# One more at a time would be refused.
_VIDEOS = threading.BoundedSemaphore(MAX_VIDEOS)


def run(
    service: ServiceProcesses, *, first: int, requests: int, seed: int
) -> tuple[collections.Counter[str], list[str]]:
    """Send requests from `first` on; return the count of answers by kind and status, and complaints."""
    answers: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    with ThreadPoolExecutor(CLIENTS) as clients:
        for number, kind, status, complaint in clients.map(
            lambda n: _try(service, seed, n), range(first, first + requests)
        ):
            answers[f"{kind} {status}"] += 1
            if complaint:
                wrong.append(f"case {number} ({kind}): {complaint}")
    return answers, wrong


def _try(service: ServiceProcesses, seed: int, number: int) -> tuple[int, str, str, str | None]:
    broken = case(seed, number)
    if broken.kind == "remake":
        # Other requests delete all generations.
        broken = replace(broken, wire=broken.wire.replace(PARENT, _parent(service)))
    try:
        with _VIDEOS if broken.kind == "video" else contextlib.nullcontext():
            answer = b"".join(_exchange(service.port, broken))
    except TimeoutError:
        return number, broken.kind, "hang", f"no end of the answer in {TIMEOUT_S:.0f} s"
    except ConnectionError:
        # closed before all was read
        return number, broken.kind, "closed", None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 3:
        return number, broken.kind, "closed", None
    status = words[1].decode("latin-1")
    return number, broken.kind, status, complain(int(status), head.lower(), body, broken)


def _parent(service: ServiceProcesses) -> bytes:
    """Return the id of a new generation that has ended."""
    body = {"prompt": "rain", "num_inference_steps": 1, "duration_s": 1}
    answer = httpx.post(f"{service.url}/v1/generations", json=body, headers={"Prefer": "wait=10"}, timeout=20)
    return str(answer.json().get("id", "gone")).encode()


def _exchange(port: int, broken: BrokenRequest) -> Iterator[bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(broken.wire)
        while data := connection.recv(65536):
            yield data


def complain(status: int, head: bytes, body: bytes, broken: BrokenRequest) -> str | None:
    """Return the fault of an answer, or None."""
    if status >= 500:
        return f"status {status}: {body[:300]!r}"
    if status < 400 or b"invalid http request" in body.lower() or broken.wire[:4] == b"HEAD":
        return None
    if b"application/problem+json" not in head:
        return f"status {status} is no problem+json: {head[:200]!r}"
    whole = b"transfer-encoding: chunked" not in head
    if whole and "code" not in json.loads(body.partition(b"HTTP/1.1")[0] or b"{}"):
        return f"status {status} has no code: {body[:200]!r}"
    return None
