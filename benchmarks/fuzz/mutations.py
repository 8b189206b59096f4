"""Broken requests, each a function of a seed and a number."""

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

from benchmarks.fuzz.videos import draw_video


def _to_bytes(value: Any) -> Any:
    """Return a JSON value with its strings, which hold one byte a character, as bytes."""
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, dict):
        return {_to_bytes(key): _to_bytes(item) for key, item in value.items()}
    return [_to_bytes(item) for item in value]


BOUNDARY = b"fuzzfuzzfuzz"
# The wire sends the id of a generation that has succeeded instead.
PARENT = b"gen_" + b"0" * 25 + b"1"
JSON_TYPE = (b"Content-Type", b"application/json")
CORPUS = json.loads(Path(__file__).with_name("corpus.json").read_text())
VALUES, NAMES, TYPES, ODD, PATHS, HEADERS, SANE, METHODS, BODIES = map(_to_bytes, CORPUS.values())


@dataclass(frozen=True)
class BrokenRequest:
    """One request as bytes."""

    kind: str
    wire: bytes


def case(seed: int, number: int) -> BrokenRequest:
    draw = random.Random(f"{seed}:{number}")
    kind = list(_KINDS)[number % len(_KINDS)]
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
        return _request(b"POST", b"/v1/generations", [JSON_TYPE], body)
    one = [(b'name="image"; filename="x"', data)]
    weighted = b'[{"image": "part:beach"}, {"text": "rain", "weight": 0.5}]'
    two = [(b'name="beach"; filename="x"', data), (b'name="prompts"', weighted)]
    parts = [*draw.choice([one, two]), (b'name="duration_s"', b"0.5"), (b'name="num_inference_steps"', b"1")]
    return _post_form(b"/v1/generations", parts)


def _post_form(path: bytes, parts: list[tuple[bytes, bytes]]) -> bytes:
    content_type = b"multipart/form-data; boundary=" + BOUNDARY
    return _request(b"POST", path, [(b"Content-Type", content_type)], _form(parts))


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


def _number(draw: random.Random, *sane: float) -> Any:
    odd = [-1, 0, 1e-9, 0.05, 59.9995, 60, 61, 1e308, 2**63, None, True, "4", [], {"a": 0}]
    return draw.choice(sane if draw.random() < 0.7 else odd)


def _item(draw: random.Random) -> Any:
    start_s = _number(draw, 0, 0.5, 1.5, 8)
    end_s = start_s + draw.choice([0.1, 1, 5]) if type(start_s) in (int, float) else _number(draw, 2, 9, 30)
    item: dict[str, Any] = {
        "text": draw.choice(["rain", "a loud dog", ""]),
        "start_s": start_s,
        "end_s": end_s,
    }
    for name in ("weight", "fade_s"):
        if draw.random() < 0.3:
            item[name] = _number(draw, 0.1, 0.5, 2)
    if draw.random() < 0.2:
        item["attributes"] = draw.choice([{"pitch": 0.5}, {"pitch": 2}, {"": 0}, [], {"loudness": None}])
    if draw.random() < 0.1:
        item["image"] = draw.choice(["part:x", "AAAA", "", 3])
    if draw.random() < 0.1:
        item.pop(draw.choice(list(item)))
    return item if draw.random() < 0.95 else draw.choice([None, [], "rain", {"start_s": {}}])


def _timeline_fields(draw: random.Random) -> dict[str, Any]:
    """Return the fields of a long sound, a loop, a timeline or a sentence of several sounds."""
    fields: dict[str, Any] = {"num_inference_steps": 1, "seed": 1}
    if draw.random() < 0.7:
        fields["timeline"] = [_item(draw) for _ in range(draw.choice([0, 1, 2, 3, 8, 33]))]
    if "timeline" not in fields or draw.random() < 0.1:
        fields["prompt"] = draw.choice(
            ["a violin and a piano", "rain, , and & while", "a+b+c+d+e+f+g+h+i+j", "and"]
        )
    for name, values in {
        "loop": [True, True, False, 1, "true", "", None],
        "interpret": [True, False, False, 0, "no", [], None],
        "composition": ["set", "compose", "mix", "x"],
        "duration_s": [_number(draw, 0.5, 4, 12.5, 30, 60)],
        "num_outputs": [1, 2, 8, 9],
        "method": ["diffusion", "retrieval"],
        "negative_prompt": ["noise"],
    }.items():
        if draw.random() < 0.3:
            fields[name] = draw.choice(values)
    return fields


def _timeline(draw: random.Random) -> bytes:
    fields = _timeline_fields(draw)
    path = draw.choice([b"/v1/generations", b"/v1/generations", b"/v1/estimate"])
    if draw.random() < 0.3:
        texts = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()
        }
        parts = [(f'name="{name}"'.encode(), text.encode()) for name, text in texts.items()]
        return _post_form(path, parts)
    body = json.dumps(fields).encode()
    return _request(b"POST", path, [JSON_TYPE], mutate(draw, body) if draw.random() < 0.2 else body)


def _remake(draw: random.Random) -> bytes:
    """Return a variation or a continuation."""
    unknown = [b"x", b"%00", b"%2e%2e", b"gen_" + b"0" * 26, PARENT + b"%20", PARENT.upper()]
    parent = PARENT if draw.random() < 0.9 else draw.choice(unknown)
    name, field, sane = draw.choice(
        [("variations", "strength", (0, 0.4, 1)), ("continuations", "extend_s", (4, 0.5))]
    )
    fields = {field: _number(draw, *sane)}
    for name_, values in {
        "output": [0, 1, 7, 8, -1, 2**63, 0.5, "0"],
        "seed": [0, 2**32 - 1, 2**32, -1, 1.5],
        "num_outputs": [1, 8, 9, None],
        draw.choice(["strength", "extend_s", "timeline", "\ud800"]): [1, {}],
    }.items():
        if draw.random() < 0.2:
            fields[name_] = draw.choice(values)
    headers = [JSON_TYPE]
    if draw.random() < 0.2:
        headers.append((b"Idempotency-Key", draw.choice([b"a", b"b", *ODD])))
    body = json.dumps(fields).encode()
    body = mutate(draw, body) if draw.random() < 0.15 else body
    return _request(b"POST", b"/v1/generations/" + parent + f"/{name}".encode(), headers, body)


def _video(draw: random.Random) -> bytes:
    data = draw_video(draw)
    data = mutate(draw, data) if draw.random() < 0.4 else data
    names = [b'; filename="x.mp4"', b'; filename="x.webm"', b'; filename="x.png"', b'; filename="/"', b""]
    parts = [(b'name="video"' + draw.choice([*names[:3], *names]), data)]
    others = [(b'name="prompt"', b"rain"), (b'name="image"; filename="x"', _encoded_image(draw))]
    others += [(b'name="video"; filename="y"', data), (b'name="timeline"', b"[]"), (b'name="video"', b"1")]
    others += [(b'name="duration_s"', draw.choice([b"0.5", b"0.6", b"60", b"-1"])), (b'name="loop"', b"true")]
    others += [(b'name="prompts"', b'[{"image": "part:video"}]'), (b'name="output_formats"', b"flac")]
    if draw.random() < 0.6:
        parts += draw.sample(others, draw.choice([1, 1, 2, 4]))
    draw.shuffle(parts)
    return _post_form(draw.choice([b"/v1/generations"] * 4 + [b"/v1/estimate"]), parts)


_KINDS = {
    "image": _image,
    "multipart": _multipart,
    "header": _header,
    "timeline": _timeline,
    "remake": _remake,
    "video": _video,
}
