"""Broken requests, each a function of a seed and a number: images, multipart bodies, headers. Knows no server."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

VALUES = (
    b"rain", b"7", b"wav", b"part:image", b"{}", b'{"a": 1}', b'[{"text": "rain"}]', b'[{"text": "a", "weight": NaN}]', b'[{"image": "part:image"}]',
    b'[{"text": "a", "image": "part:x"}]', b'[{"text": "\\ud800"}]', b'{"\\ud800": "\\u0000"}', b"https://127.0.0.1/x.png", b"https://[::1", b"data:image/png;base64,AA==",
)  # fmt: skip
BOUNDARY = b"fuzzfuzzfuzz"
ODD = (
    b"", b"\0", b"\xff\xfe", b"\r\n", b"%00", b"..%2f..%2f", b"../../etc/passwd", b"\xc3\x28", b"-1", b"1e999", b"9" * 400,
    b"A" * 6000, b"\xed\xa0\x80", b"[", b"::1]", b"{{7*7}}", b"'; --", b"\x7f", b"*", b";", b",", b"=", b'"', b"\\",
)  # fmt: skip
PATHS = (
    b"/v1/generations", b"/v1/estimate", b"/v1/replay", b"/v1/models", b"/healthz", b"/readyz", b"/metrics", b"/docs", b"/openapi.json",
    b"/v1/generations/gen_00000000000000000000000000", b"/v1/generations/gen_00000000000000000000000000/events",
    b"/v1/generations/gen_00000000000000000000000000/audio/0", b"/v1/generations/%2e%2e/audio/0", b"/docs/static/%2e%2e/main.py",
    b"/docs/static/..%2fmain.py", b"/v1/generations/a%00b", b"/v1/generations/%ff%fe", b"/v1/generations?cursor=%ff&limit=1",
    b"/v1/generations?limit=99999999999999999999999", b"/v1/generations?status=queued&status=x", b"/v1/generations/x/audio/-1",
    b"/v1/generations/x/audio/99999999999999999999?format=wav", b"/", b"/static/..%2fpage.py", b"/v1/sound-generation",
    b"/v1/sound-generation?output_format=mp3_9_9", b"/v1/sound-generation?output_format=%ff", b"/v1/generations/x/spectrogram/-1",
    b"/v1/generations/x/peaks/99999999999999999999", b"/v1/generations/x/recipe", b"/v1/generations/%2e%2e/recipe",
)  # fmt: skip
HEADERS = (
    b"Accept", b"Accept-Encoding", b"Authorization", b"Content-Type", b"Cookie", b"Expect", b"Forwarded", b"Host", b"Idempotency-Key",
    b"If-None-Match", b"If-Range", b"Last-Event-ID", b"Origin", b"Prefer", b"Range", b"Sec-Fetch-Site", b"Te", b"Transfer-Encoding",
    b"Upgrade", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Request-Id", b"Access-Control-Request-Method", b"Content-Length", b"Connection",
)  # fmt: skip
SANE = {
    b"Accept": (b"audio/wav", b"audio/ogg;q=0.5, audio/wav;q=abc", b"*/*", b"text/html", b";;;q=,,"),
    b"Authorization": (b"Bearer cs_0_0", b"Bearer", b"Bearer cs__", b"Basic Og==", b"bearer \xff"),
    b"Content-Type": (b"application/json", b"application/json; charset=utf-7", b"multipart/form-data", b"text/plain", b"multipart/form-data; boundary="),
    b"Host": (b"localhost", b"[::1", b"127.0.0.1:99999", b"evil.example", b"[", b"local host", b"xn--", b"@", b"localhost:abc"),
    b"Prefer": (b"wait=0", b"wait=999999", b"wait=-1", b"respond-async, wait=1", b"wait"),
    b"Range": (b"bytes=0-1", b"bytes=-0", b"bytes=9-1", b"bytes=0-1,2-3", b"lines=1-2", b"bytes=" + b"9" * 18 + b"-"),
    b"Sec-Fetch-Site": (b"cross-site", b"same-origin"),
    b"Expect": (b"100-continue", b"200-ok"),
    b"Upgrade": (b"websocket", b"h2c"),
    b"Connection": (b"upgrade", b"close", b"keep-alive, Upgrade"),
    b"Transfer-Encoding": (b"chunked", b"gzip, chunked", b"identity", b"chunked, chunked"),
    b"Content-Length": (b"0", b"5", b"-5", b"5, 5", b"99999999999999999999", b"+5", b"0x5"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One request as it is on the wire."""

    kind: str
    wire: bytes


def case(seed: int, number: int) -> Case:
    """Return request `number` of a run."""
    draw = random.Random(f"{seed}:{number}")
    kind = ("image", "multipart", "header")[number % 3]
    return Case(kind, _KINDS[kind](draw))


def _request(
    method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes = b"", *, close: bool = True
) -> bytes:
    """Join a request; what `headers` name twice is sent twice."""
    named = {name.lower() for name, _ in headers}
    added = [] if b"host" in named else [(b"Host", b"localhost")]
    if body and not named & {b"content-length", b"transfer-encoding"}:
        added.append((b"Content-Length", str(len(body)).encode()))
    if close and b"connection" not in named:
        added.append((b"Connection", b"close"))
    lines = [name + b": " + value for name, value in (*added, *headers)]
    return method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


# ---------------------------------------------------------------------------------------------------------- images


def _image(draw: random.Random) -> bytes:
    mode = draw.choice(["RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"])
    fmt = draw.choice(
        ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO"]
        if draw.random() < 0.2
        else ["PNG", "JPEG", "WEBP", "GIF"]
    )
    image = Image.frombytes("L", (24, 16), draw.randbytes(24 * 16))
    file = io.BytesIO()
    try:
        (image.convert(mode) if mode != "I;16" else Image.new(mode, (24, 16), draw.randrange(65536))).save(
            file, fmt
        )
    except (OSError, ValueError):  # not every format has every mode
        file = io.BytesIO()
        image.convert("RGB").save(file, fmt)
    return file.getvalue()


def _bomb(draw: random.Random) -> bytes:
    """Return a small PNG that says it is huge: rows of zeros that compress well, or nearly no data."""
    width, height = draw.choice(
        [(100_000, 100_000), (65_535, 65_535), (2**31 - 1, 1), (30_000, 30_000), (4_900, 4_900), (0, 0)]
    )

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = zlib.compress(bytes(draw.choice([10, 1_000_000])), 9)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))) if draw.random() < 0.5 else b""
    header = struct.pack(
        ">IIBBBBB", width, height, draw.choice([1, 8, 16]), draw.choice([0, 2, 3, 6]), 0, 0, draw.randrange(2)
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def mutate(draw: random.Random, data: bytes) -> bytes:
    """Return `data` with bytes changed, cut, repeated, moved or put in."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0 if at < len(changed):
                changed[at] = draw.randrange(256)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = draw.choice(ODD)
            case 3:
                del changed[at : at + draw.randrange(1, 40)]
            case 4:
                changed[at:at] = changed[at : at + draw.randrange(1, 200)]
            case _ if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _image(draw: random.Random) -> bytes:
    data = _bomb(draw) if draw.random() < 0.1 else _image(draw)
    if draw.random() < 0.9:
        data = mutate(draw, data)
    if draw.random() < 0.3:
        encoded = base64.b64encode(data).decode()
        prompt = draw.choice(
            [
                {"image": encoded},
                {"prompts": [{"image": encoded}, {"text": "rain", "weight": draw.choice([0.5, -1, 1e308])}]},
            ]
        )
        body = json.dumps(prompt | {"duration_s": 0.5, "num_inference_steps": 1}).encode()
        return _request(b"POST", b"/v1/generations", [(b"Content-Type", b"application/json")], body)
    one = [(b'name="image"; filename="x"', data)]
    two = [
        (b'name="beach"; filename="x"', data),
        (b'name="prompts"', b'[{"image": "part:beach"}, {"text": "rain", "weight": 0.5}]'),
    ]
    parts = [*draw.choice([one, two]), (b'name="duration_s"', b"0.5"), (b'name="num_inference_steps"', b"1")]
    content_type = b"multipart/form-data; boundary=" + BOUNDARY
    return _request(b"POST", b"/v1/generations", [(b"Content-Type", content_type)], _form(parts))


# -------------------------------------------------------------------------------------------------- multipart bodies


def _form(parts: list[tuple[bytes, bytes]], boundary: bytes = BOUNDARY) -> bytes:
    body = [
        b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    ]
    return b"".join(body) + b"--" + boundary + b"--\r\n"


def _multipart(draw: random.Random) -> bytes:
    names = [
        b"prompt",
        b"seed",
        b"image",
        b"num_outputs",
        b"output_formats",
        b"webhook_events",
        b"model",
        b"metadata",
        b"prompts",
        b"image_url",
        b"composition",
        draw.choice(ODD),
    ]
    parts = []
    for _ in range(draw.choice([0, 1, 2, 4, 40])):
        name = draw.choice(names).replace(b"\r\n", b" ")
        head = b'name="' + name + b'"'
        if draw.random() < 0.3:
            head += b'; filename="' + draw.choice(ODD).replace(b"\r\n", b"") + b'"'
        if draw.random() < 0.2:
            head += b"\r\nContent-Type: " + draw.choice(
                [b"image/png", b"text/plain; charset=utf-7", b"application/octet-stream", b"x"]
            )
        if draw.random() < 0.1:
            head += b"\r\n" + draw.choice(HEADERS) + b": " + draw.choice(ODD)
        parts.append((head, draw.choice([*VALUES, *ODD])))
    boundary = draw.choice([BOUNDARY, BOUNDARY, b"", b'"', b"a" * 300, b"--", b"\xff", b"a b"])
    body = _form(parts, boundary)
    if draw.random() < 0.5:
        body = mutate(draw, body)
    said = draw.choice(
        [boundary, boundary, boundary, BOUNDARY + b"x", b'"' + boundary + b'"', boundary + b"; boundary=y"]
    )
    path = draw.choice([b"/v1/generations", b"/v1/estimate"])
    headers = [(b"Content-Type", b"multipart/form-data; boundary=" + said)]
    if draw.random() < 0.2:  # chunks, some of which are broken
        size = draw.choice([1, 7, 1000])
        chunks = [body[i : i + size] for i in range(0, len(body), size)] + [b""]
        chunked = b"".join(f"{len(c):x}".encode() + b"\r\n" + c + b"\r\n" for c in chunks)
        body = mutate(draw, chunked) if draw.random() < 0.5 else chunked
        headers.append((b"Transfer-Encoding", b"chunked"))
    return _request(b"POST", path, headers, body)


# ------------------------------------------------------------------------------------------------------------ headers


def _header(draw: random.Random) -> bytes:
    method = draw.choice(
        [b"GET", b"POST", b"HEAD", b"DELETE", b"PUT", b"OPTIONS", b"PATCH", b"TRACE", b"get", b"A" * 100]
    )
    path = draw.choice(PATHS)
    body = draw.choice(
        [
            b"",
            b'{"prompt": "a", "duration_s": 0.5, "num_inference_steps": 1}',
            b"{",
            b'{"prompt": "\\ud800"}',
            b'{"prompts": [{"text": "a", "weight": 1e999}]}',
            b'{"text": "rain", "duration_seconds": 0.5}',
            b'{"image_url": "https://localhost\\u0000/"}',
            b'{"prompt": "a", "metadata": {"\\ud800": []}}',
            b'{"\\ud800": 1}',
            b"[" * 5000,
            b"\xff\xfe{\0}\0",
        ]
    )
    headers = []
    for _ in range(draw.choice([1, 1, 2, 3, 8, 60])):
        name = draw.choice(HEADERS)
        value = draw.choice(SANE.get(name, ODD)) if draw.random() < 0.6 else draw.choice(ODD)
        headers.append((name if draw.random() < 0.95 else draw.choice(ODD), value))
    wire = _request(method, path, headers, body)
    return mutate(draw, wire) if draw.random() < 0.2 else wire


_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "image": _image,
    "multipart": _multipart,
    "header": _header,
}
