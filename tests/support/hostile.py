"""Files that are called videos and are none, or none to learn from."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from tests.support.videos import write_video

PLAYLIST = "#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/{n}.mp4\n"


def write_hostile(folder: Path, number: int) -> dict[str, str]:
    """Write `number` files, each of `KINDS` in turn; return {name: how its reason starts}."""
    reasons = {}
    for n in range(number):
        kind, reason = KINDS[n % len(KINDS)]
        path = folder / f'{n:03d}\'s "{kind.__name__.strip("_")}"\n{{}} %s.mp4'
        kind(path, n)
        reasons[path.name] = reason
    return reasons


def _empty(path: Path, _: int) -> None:
    path.write_bytes(b"")


def _random(path: Path, n: int) -> None:
    path.write_bytes(np.random.default_rng(n).bytes(5000 + n))


def _page(path: Path, n: int) -> None:
    path.write_text(f"<!DOCTYPE html><title>Video {n} is not available in your country</title>" * 50)


def _playlist(path: Path, n: int) -> None:
    path.write_text(PLAYLIST.format(n=n))


def _truncated(path: Path, n: int) -> None:
    data = write_video(path, hz=300 + n).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _mute(path: Path, n: int) -> None:
    write_video(path, seconds=1 + n / 30, sound=False)


def _silent(path: Path, n: int) -> None:
    write_video(path, samples=np.zeros(16000 + 100 * n), seconds=1.0)


def _short(path: Path, n: int) -> None:
    write_video(path, samples=0.1 * np.random.default_rng(n).standard_normal(4000), seconds=0.3)


def _pipe(path: Path, _: int) -> None:
    os.mkfifo(path)


def _giant(path: Path, n: int) -> None:
    """Write an image of 64 megapixels in a few kilobytes, with a second of noise."""
    with av.open(str(path), "w", format="mov") as container:
        images = container.add_stream("png", rate=1)
        images.width, images.height, images.pix_fmt = 8000, 8000, "gray"
        track = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        image = av.VideoFrame.from_image(Image.new("L", (8000, 8000), n)).reformat(format="gray")
        image.pts = 0
        container.mux(images.encode(image))
        noise = np.random.default_rng(n).integers(-3000, 3000, (1, 16000)).astype(np.int16)
        sound = av.AudioFrame.from_ndarray(noise, "s16", "mono")
        sound.sample_rate, sound.pts = 16000, 0
        container.mux(track.encode(sound))
        container.mux(images.encode(None))


def _write_sound(path: Path, samples: np.ndarray) -> bytearray:
    """Write an MOV of red images and float samples (T,) at 16 kHz; return its bytes."""
    with av.open(str(path), "w", format="mov") as container:
        images = container.add_stream("mjpeg", rate=10)
        images.width, images.height, images.pix_fmt = 64, 64, "yuvj420p"
        track = container.add_stream("pcm_f32le", rate=16000, layout="mono")
        for n, block in enumerate(np.split(samples.astype(np.float32), len(samples) // 1600)):
            image = av.VideoFrame.from_image(Image.new("RGB", (64, 64), "red"))
            image.pts = n
            container.mux(images.encode(image))
            sound = av.AudioFrame.from_ndarray(block[None], "flt", "mono")
            sound.sample_rate, sound.pts = 16000, 1600 * n
            container.mux(track.encode(sound))
        container.mux(images.encode(None))
    return bytearray(path.read_bytes())


def _noise(n: int, samples: int = 16000) -> np.ndarray:
    return 0.1 * np.random.default_rng(n).standard_normal(samples)


def _not_a_number(path: Path, n: int) -> None:
    _write_sound(path, np.where(np.arange(16000) == n, np.nan, _noise(n)))


def _absurdly_loud(path: Path, n: int) -> None:
    _write_sound(path, np.where(np.arange(16000) == n, 1e29, _noise(n)))


def _patch_sound(path: Path, n: int, box: bytes, at: int, value: bytes) -> None:
    """Replace bytes of a box about the sound in an MOV."""
    data = _write_sound(path, _noise(n))
    start = data.rindex(box) + at
    data[start : start + len(value)] = value
    path.write_bytes(data)


def _rate_of_1_hz(path: Path, n: int) -> None:
    _patch_sound(path, n, b"stsd", 44, (1 << 16).to_bytes(4, "big"))


def _channels(path: Path, n: int) -> None:
    _patch_sound(path, n, b"stsd", 36, b"\xff\xff")


def _claims_ten_hours(path: Path, n: int) -> None:
    """Write an index that says 10 h, whose sound and images are cut off."""
    data = _write_sound(path, _noise(n))
    moov = data.rindex(b"moov") - 4
    index = data[moov:]
    for box, at in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        start = -1
        while (start := index.find(box, start + 1)) > 0:
            index[start + 4 + at : start + 8 + at] = (0x7FFFFFFF).to_bytes(4, "big")
    path.write_bytes(data[:20] + index)


def _all_at_once(path: Path, n: int) -> None:
    _patch_sound(path, n, b"stts", 16, bytes(4))


def _concat(path: Path, n: int) -> None:
    path.write_text(f"ffconcat version 1.0\nfile '000.mp4'\nduration {n}\n")


def _local_playlist(path: Path, n: int) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:{n}\n#EXTINF:2,\n000.mp4\n")


def _loop(path: Path, _: int) -> None:
    path.symlink_to(path)


def _endless(path: Path, _: int) -> None:
    path.symlink_to("/dev/zero")


def _picture(path: Path, n: int) -> None:
    Image.new("RGB", (64, 64), (n, 0, 0)).save(path, format="jpeg")


def _archive(path: Path, n: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{n}.mp4", bytes(5000))


def _no_content(path: Path, n: int) -> None:
    """Write packets of a transport stream that hold nothing."""
    path.write_bytes((b"\x47\x1f\xff\x10" + bytes([n]) * 184) * 3000)


def _only_a_cover(path: Path, n: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        track = container.add_stream("aac", rate=16000, layout="mono")
        image = av.VideoFrame.from_image(Image.new("RGB", (64, 64), "red"))
        container.mux(cover.encode(image))
        container.mux(cover.encode(None))
        sound = av.AudioFrame.from_ndarray(_noise(n)[None].astype(np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(track.encode(sound))
        container.mux(track.encode(None))


def _encrypted(path: Path, n: int) -> None:
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    write_video(path, seconds=1.0, samples=_noise(n), muxer=options)


KINDS = (
    (_empty, "cannot be decoded"),
    (_random, "cannot be decoded"),
    (_page, "cannot be decoded"),
    (_playlist, "cannot be decoded"),
    (_truncated, "cannot be decoded"),
    (_mute, "no sound"),
    (_silent, "silent"),
    (_short, "shorter than"),
    (_pipe, "not a file"),
    (_giant, "images of 8000 x 8000 pixels"),
    (_not_a_number, "samples that are not finite"),
    (_absurdly_loud, "samples up to"),
    (_rate_of_1_hz, "sound of 1 Hz"),
    (_channels, "shorter than"),
    (_claims_ten_hours, "no image"),
    (_all_at_once, "shorter than"),
    (_concat, "a list of other files"),
    (_local_playlist, "cannot be decoded"),
    (_loop, "not a file"),
    (_endless, "not a file"),
    (_picture, "no sound"),
    (_archive, "cannot be decoded"),
    (_no_content, "cannot be decoded"),
    (_only_a_cover, "no image"),
    (_encrypted, "no image"),
)
