"""Broken requests, each a function of a seed and a number: images, multipart bodies, headers."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


def _to_bytes(value: Any) -> Any:
    """Return a JSON value with its strings, which hold one byte a character, as bytes."""
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, dict):
        return {_to_bytes(key): _to_bytes(item) for key, item in value.items()}
    return [_to_bytes(item) for item in value]


BOUNDARY = b"fuzzfuzzfuzz"
CORPUS = json.loads(Path(__file__).with_name("corpus.json").read_text())
VALUES, NAMES, TYPES, ODD, PATHS, HEADERS, SANE, METHODS, BODIES = map(_to_bytes, CORPUS.values())


@dataclass(frozen=True)
class BrokenRequest:
    """One request as bytes."""

    kind: str
    wire: bytes


def case(seed: int, number: int) -> BrokenRequest:
    """Return request `number` of a run."""
    draw = random.Random(f"{seed}:{number}")
    kind = ("image", "multipart", "header")[number % 3]
    return BrokenRequest(kind, _KINDS[kind](draw))


def _request(
    method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes = b"", *, close: bool = True
) -> bytes:
    """Join a request; a header that is given twice is sent twice."""
    named = {name.lower() for name, _ in headers}
    added = [] if b"host" in named else [(b"Host", b"localhost")]
    if body and not named & {b"content-length", b"transfer-encoding"}:
        added.append((b"Content-Length", str(len(body)).encode()))
    if close and b"connection" not in named:
        added.append((b"Connection", b"close"))
    lines = [name + b": " + value for name, value in (*added, *headers)]
    return method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


def _encoded_image(draw: random.Random) -> bytes:
    mode = draw.choice(["RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"])
    common = ["PNG", "JPEG", "WEBP", "GIF"]
    fmt = draw.choice([*common, "BMP", "TIFF", "ICO"] if draw.random() < 0.2 else common)
    image = Image.frombytes("L", (24, 16), draw.randbytes(24 * 16))
    file = io.BytesIO()
    try:
        deep = mode == "I;16"
        (Image.new(mode, (24, 16), draw.randrange(65536)) if deep else image.convert(mode)).save(file, fmt)
    except (OSError, ValueError):
        # not every format has every mode
        file = io.BytesIO()
        image.convert("RGB").save(file, fmt)
    return file.getvalue()


def _bomb(draw: random.Random) -> bytes:
    """Return a small PNG that claims a huge size, with zeros that compress well or almost no data."""
    sizes = [(100_000, 100_000), (65_535, 65_535), (2**31 - 1, 1), (30_000, 30_000), (4_900, 4_900), (0, 0)]
    width, height = draw.choice(sizes)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = zlib.compress(bytes(draw.choice([10, 1_000_000])), 9)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))) if draw.random() < 0.5 else b""
    depth, colour = draw.choice([1, 8, 16]), draw.choice([0, 2, 3, 6])
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw.randrange(2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def mutate(draw: random.Random, data: bytes) -> bytes:
    """Return `data` with bytes changed, cut, repeated or inserted."""
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
    data = _bomb(draw) if draw.random() < 0.1 else _encoded_image(draw)
    if draw.random() < 0.9:
        data = mutate(draw, data)
    if draw.random() < 0.3:
        encoded = base64.b64encode(data).decode()
        rain = {"text": "rain", "weight": draw.choice([0.5, -1, 1e308])}
        prompt = draw.choice([{"image": encoded}, {"prompts": [{"image": encoded}, rain]}])
        body = json.dumps(prompt | {"duration_s": 0.5, "num_inference_steps": 1}).encode()
        return _request(b"POST", b"/v1/generations", [(b"Content-Type", b"application/json")], body)
    one = [(b'name="image"; filename="x"', data)]
    weighted = b'[{"image": "part:beach"}, {"text": "rain", "weight": 0.5}]'
    two = [(b'name="beach"; filename="x"', data), (b'name="prompts"', weighted)]
    parts = [*draw.choice([one, two]), (b'name="duration_s"', b"0.5"), (b'name="num_inference_steps"', b"1")]
    content_type = b"multipart/form-data; boundary=" + BOUNDARY
    return _request(b"POST", b"/v1/generations", [(b"Content-Type", content_type)], _form(parts))


def _form(parts: list[tuple[bytes, bytes]], boundary: bytes = BOUNDARY) -> bytes:
    start = b"--" + boundary + b"\r\nContent-Disposition: form-data; "
    body = [start + head + b"\r\n\r\n" + value + b"\r\n" for head, value in parts]
    return b"".join(body) + b"--" + boundary + b"--\r\n"


def _multipart(draw: random.Random) -> bytes:
    names = [*NAMES, draw.choice(ODD)]
    parts = []
    for _ in range(draw.choice([0, 1, 2, 4, 40])):
        name = draw.choice(names).replace(b"\r\n", b" ")
        head = b'name="' + name + b'"'
        if draw.random() < 0.3:
            head += b'; filename="' + draw.choice(ODD).replace(b"\r\n", b"") + b'"'
        if draw.random() < 0.2:
            head += b"\r\nContent-Type: " + draw.choice(TYPES)
        if draw.random() < 0.1:
            head += b"\r\n" + draw.choice(HEADERS) + b": " + draw.choice(ODD)
        parts.append((head, draw.choice([*VALUES, *ODD])))
    boundary = draw.choice([BOUNDARY, BOUNDARY, b"", b'"', b"a" * 300, b"--", b"\xff", b"a b"])
    body = _form(parts, boundary)
    if draw.random() < 0.5:
        body = mutate(draw, body)
    others = [BOUNDARY + b"x", b'"' + boundary + b'"', boundary + b"; boundary=y"]
    declared = draw.choice([boundary, boundary, boundary, *others])
    path = draw.choice([b"/v1/generations", b"/v1/estimate"])
    headers = [(b"Content-Type", b"multipart/form-data; boundary=" + declared)]
    if draw.random() < 0.2:
        size = draw.choice([1, 7, 1000])
        chunks = [body[i : i + size] for i in range(0, len(body), size)] + [b""]
        chunked = b"".join(f"{len(c):x}".encode() + b"\r\n" + c + b"\r\n" for c in chunks)
        body = mutate(draw, chunked) if draw.random() < 0.5 else chunked
        headers.append((b"Transfer-Encoding", b"chunked"))
    return _request(b"POST", path, headers, body)


def _header(draw: random.Random) -> bytes:
    method, path, body = draw.choice(METHODS), draw.choice(PATHS), draw.choice(BODIES)
    headers = []
    for _ in range(draw.choice([1, 1, 2, 3, 8, 60])):
        name = draw.choice(HEADERS)
        value = draw.choice(SANE.get(name, ODD)) if draw.random() < 0.6 else draw.choice(ODD)
        headers.append((name if draw.random() < 0.95 else draw.choice(ODD), value))
    wire = _request(method, path, headers, body)
    return mutate(draw, wire) if draw.random() < 0.2 else wire


_KINDS = {"image": _image, "multipart": _multipart, "header": _header}
