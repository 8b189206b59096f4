"""What comes in as an image, and what is kept of it."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageCms

from app.requests import images
from app.requests.images import SIDE, normalise_image
from clipsynth.errors import ClipSynthError, ImageTooLarge, ImageUndecodable, UnsupportedMedia
from clipsynth.settings import Settings

SETTINGS = Settings()


def encoded(image, fmt, **options):
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def kept(data):
    return Image.open(io.BytesIO(normalise_image(data, SETTINGS)))


def noise(size=(300, 200), mode="RGB", seed=0):
    pixels = random.Random(seed).randbytes(size[0] * size[1])
    return Image.frombytes("L", size, pixels).convert(mode)


def test_few_images_are_decoded_at_once(monkeypatch):
    at_once, most, reencode = threading.Semaphore(0), [], images._reencode

    def counted(image):
        at_once.release()
        most.append(at_once._value)
        time.sleep(0.02)
        made = reencode(image)
        at_once.acquire()
        return made

    monkeypatch.setattr(images, "_reencode", counted)
    data = encoded(noise(), "PNG")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: normalise_image(data, SETTINGS), range(8)))
    assert max(most) == images.MAX_DECODING


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_profile_and_metadata_are_not_kept(fmt):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = kept(encoded(noise(), fmt, exif=exif, icc_profile=profile))
    image.load()
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    assert not image.getexif()


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    assert kept(encoded(noise((300, 200)), "JPEG", exif=exif)).size == (200, 300)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (20, 20), (200, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert kept(encoded(image, "PNG", **options)).getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bits_keep_their_greys():
    assert kept(encoded(Image.new("I;16", (20, 20), 0x8000), "PNG")).getpixel((5, 5)) == (128, 128, 128)


@pytest.mark.parametrize("size", [(2000, 1000), (1, 5000), (5000, 1)])
def test_stored_images_are_small(size):
    assert max(kept(encoded(noise(size), "PNG")).size) <= SIDE


@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_an_animation_is_refused(fmt):
    frames = [noise(), noise(seed=1)]
    with pytest.raises(UnsupportedMedia, match="animated"):
        normalise_image(encoded(frames[0], fmt, save_all=True, append_images=frames[1:]), SETTINGS)


@pytest.mark.parametrize("fmt", ["GIF", "BMP", "TIFF", "ICO"])
def test_other_formats_are_refused(fmt):
    with pytest.raises(UnsupportedMedia):
        normalise_image(encoded(noise((32, 32)), fmt), SETTINGS)


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    data = encoded(Image.new("1", (6000, 6000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageTooLarge, match="6000 x 6000"):
        normalise_image(data, SETTINGS)


def png(width, height, *more):
    """Return a PNG of that size, as it says, with next to no data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        header,
        *(chunk(*part) for part in more),
        chunk(b"IDAT", zlib.compress(b"")),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (24_000_001, 1)])
def test_a_decompression_bomb_is_too_large(size):
    with pytest.raises(ImageTooLarge):
        normalise_image(png(*size), SETTINGS)


def test_compressed_text_chunks_are_not_unpacked():
    text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(ImageUndecodable):
        normalise_image(png(10, 10, *[text] * 3), SETTINGS)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_undecodable(fmt):
    with pytest.raises(ImageUndecodable):
        normalise_image(encoded(noise(), fmt)[:2000], SETTINGS)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_mutated_bytes_end_in_an_image_or_a_typed_error(fmt):
    rng = random.Random(fmt)
    original = encoded(noise((60, 40)), fmt)
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            normalise_image(bytes(data), SETTINGS)
        except ClipSynthError:
            continue
