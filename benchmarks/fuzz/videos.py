"""Broken videos: real files with changed bytes, sizes and counts."""

from __future__ import annotations

import io
import random
import re
import struct
from functools import cache

import av
from PIL import Image

# Container, codec, options of the muxer, and the beginning of the structures whose numbers are changed.
FILES = [
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("webm", "libvpx", {}),
]
BOX = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|stbl|stsd|avc1|avcC|st[tsc][sczo]|mdat|trun|moof"
)
NUMBERS = [0, 1, 7, 8, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
# Ids of EBML's segment, cluster, tracks, block, cues, and its sizes: not known, 2^56 - 2, 2^28 - 2, 0.
ELEMENT = re.compile(
    rb"\x18\x53\x80\x67|\x1f\x43\xb6\x75|\x16\x54\xae\x6b|\xa3|\x1c\x53\xbb\x6b|\xe0|\xb0|\xba"
)
SIZES = [b"\x01" + b"\xff" * 7, b"\x01" + b"\xff" * 6 + b"\xfe", b"\x1f\xff\xff\xfe", b"\x80", b"\xff"]


@cache
def video(number: int) -> bytes:
    """Return a real video of 0.6 s."""
    kind, codec, options = FILES[number]
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options={"fflags": "+bitexact", **options}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.thread_count = 1
        for n in range(6):
            image = Image.new("RGB", (48, 32), ("red", "green")[n // 3])
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return file.getvalue()


def draw_video(draw: random.Random) -> bytes:
    """Return a video; most have absurd numbers in their structure, or lack their end."""
    data = bytearray(video(draw.randrange(len(FILES))))
    for _ in range(draw.choice([0, 1, 1, 3])):
        if data[4:8] == b"ftyp":
            at = draw.choice(list(BOX.finditer(data))).start() + draw.choice([-4, 4, 8, 12, 16, 20])
            data[at : at + 4] = struct.pack(">I", draw.choice(NUMBERS))
        else:
            at = draw.choice(list(ELEMENT.finditer(data))).end()
            size = draw.choice(SIZES)
            data[at : at + draw.choice([1, len(size)])] = size
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.15 else data)
