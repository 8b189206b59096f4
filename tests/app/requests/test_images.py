"""What comes in as an image, and what is kept of it."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat

from app.requests import images
from app.requests.decode_image import SIDE, decode_image
from app.requests.images import normalise_image
from clipsynth.errors import ClipSynthError, ImageTooLarge, ImageUndecodable, RateLimited, UnsupportedMedia
from clipsynth.settings import Settings

SETTINGS = Settings()
FORMATS = ["JPEG", "PNG", "WEBP", "AVIF"]


def encoded(image, fmt, **options):
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def kept(data):
    return Image.open(io.BytesIO(decode_image(data, SETTINGS.max_image_pixels)))


def noise(size=(300, 200), mode="RGB", seed=0):
    pixels = random.Random(seed).randbytes(size[0] * size[1])
    return Image.frombytes("L", size, pixels).convert(mode)


def photo(size=(1200, 800)):
    """Return an image with smooth areas and edges in all colours."""
    steps = Image.linear_gradient("L").resize(size)
    disc = Image.radial_gradient("L").resize(size)
    bars = Image.effect_mandelbrot(size, (-2, -1.2, 1, 1.2), 50)
    return Image.merge("RGB", [steps, disc, bars])


def difference(one, other):
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def mpo(image, **options):
    return encoded(image, "MPO", save_all=True, append_images=[noise((160, 120)), noise((80, 60))], **options)


PHOTO = photo()
TWO = PHOTO.quantize(2, dither=Image.Dither.NONE).convert("RGB")
SIXTEEN = PHOTO.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
# What people send, and the image that it shows.
PHOTOS = {
    "phone, a second image": (mpo(PHOTO), PHOTO),
    "phone, turned and a second image": (mpo(PHOTO.rotate(90, expand=True), **turned(6)), PHOTO),
    "phone, a video behind the image": (encoded(PHOTO, "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(9999), PHOTO),
    "24 megapixels": (encoded(PHOTO.resize((5712, 4284)), "JPEG"), PHOTO.resize((512, 384))),
    "48 megapixels": (encoded(PHOTO.resize((8064, 5952)), "JPEG"), PHOTO.resize((512, 378))),
    "progressive": (encoded(PHOTO, "JPEG", progressive=True), PHOTO),
    "grey": (encoded(PHOTO.convert("L"), "JPEG"), PHOTO.convert("L")),
    "print": (encoded(PHOTO.convert("CMYK"), "JPEG"), PHOTO),
    "AVIF": (encoded(PHOTO, "AVIF"), PHOTO),
    "WebP": (encoded(PHOTO, "WEBP"), PHOTO),
    "WebP, lossless": (encoded(PHOTO, "WEBP", lossless=True), PHOTO),
    "screenshot": (encoded(PHOTO.convert("RGBA"), "PNG"), PHOTO),
    "palette": (encoded(PHOTO.quantize(256), "PNG"), PHOTO.quantize(256).convert("RGB")),
    "palette of 2": (encoded(TWO.quantize(2), "PNG"), TWO),
    "palette with alpha": (encoded(TWO.convert("RGBA").quantize(2), "PNG"), TWO),
    "palette, one colour transparent": (encoded(TWO.quantize(2), "PNG", transparency=9), TWO),
    "1 bit": (encoded(PHOTO.convert("1"), "PNG"), PHOTO.convert("1").convert("L")),
    "grey with alpha": (encoded(PHOTO.convert("LA"), "PNG"), PHOTO.convert("L")),
    "16 bits": (encoded(SIXTEEN, "PNG"), PHOTO.convert("L")),
    "an APNG with one image": (encoded(PHOTO, "PNG", save_all=True), PHOTO),
    "JPEG without its end": (encoded(PHOTO, "JPEG")[:-2], PHOTO),
    "JPEG with half its end": (encoded(PHOTO, "JPEG")[:-1], PHOTO),
    "progressive without its end": (encoded(PHOTO, "JPEG", progressive=True)[:-2], PHOTO),
    "JPEG with zeros for its end": (encoded(PHOTO, "JPEG")[:-2] + bytes(500), PHOTO),
    "phone without its end": (mpo(PHOTO)[:-2], PHOTO),
    "PNG without its end": (encoded(PHOTO, "PNG")[:-12], PHOTO),
    "PNG without its checksum": (encoded(PHOTO, "PNG")[:-16], PHOTO),
    "PNG with more behind it": (encoded(PHOTO, "PNG") + b"more", PHOTO),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_an_image_is_kept_as_it_looks(name):
    data, image = PHOTOS[name]
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    result = kept(data)
    assert result.size == small.size
    assert difference(result, small) < 4


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied(fmt, orientation):
    image = photo((300, 200))
    undone = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = image.transpose(undone[orientation]) if orientation > 1 else image
    assert difference(kept(encoded(stored, fmt, **turned(orientation))), image) < 5


@pytest.mark.parametrize("fmt", FORMATS)
def test_profile_and_metadata_are_not_kept(fmt):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = kept(encoded(noise(), fmt, exif=exif, icc_profile=profile))
    image.load()
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    assert not image.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (20, 20), (200, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert kept(encoded(image, "PNG", **options)).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(2000, 1000), (1, 5000), (5000, 1)])
def test_stored_images_are_small(size):
    assert max(kept(encoded(noise(size), "PNG")).size) <= SIDE


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "AVIF"])
def test_an_animation_is_refused(fmt):
    frames = [noise(), noise(seed=1)]
    with pytest.raises(UnsupportedMedia, match="animated"):
        kept(encoded(frames[0], fmt, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(noise((32, 32)), "GIF"), "GIF"),
        (encoded(noise((32, 32)), "BMP"), "BMP"),
        (encoded(noise((32, 32)), "TIFF"), "TIFF"),
        (encoded(noise((32, 32)), "ICO"), "not an image"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic" + bytes(100), "HEIC; export it as JPEG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(100), "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(100), "video"),
        (b'<?xml version="1.0"?><svg/>', "text document"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\x0a" + bytes(100), "JPEG XL"),
        (b"", "not an image"),
    ],
)
def test_other_formats_are_refused_by_name(data, name):
    with pytest.raises(UnsupportedMedia, match=name):
        kept(data)


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    data = encoded(Image.new("1", (8000, 8000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageTooLarge, match="8000 x 8000"):
        kept(data)


def png(width, height, *more):
    """Return a PNG of that size by its header, with almost no data."""

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


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (50_000_001, 1)])
def test_a_decompression_bomb_is_too_large(size):
    with pytest.raises(ImageTooLarge):
        normalise_image(png(*size), SETTINGS)


def test_compressed_text_chunks_are_not_unpacked():
    text = (b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))
    with pytest.raises(ImageUndecodable):
        normalise_image(png(10, 10, *[text] * 3), SETTINGS)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_truncated_image_is_undecodable(fmt, share):
    data = encoded(PHOTO, fmt)
    with pytest.raises(ImageUndecodable):
        kept(data[: int(share * len(data))])


@pytest.mark.parametrize("fmt", FORMATS)
def test_mutated_bytes_end_in_an_image_or_a_typed_error(fmt):
    rng = random.Random(fmt)
    original = encoded(noise((60, 40)), fmt)
    for _ in range(25):
        data = bytearray(original)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            normalise_image(bytes(data), SETTINGS)
        except ClipSynthError:
            continue


def scans(data, number):
    """Return a progressive JPEG whose last scan stands `number` times in it."""
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + data[-2:]


def test_a_jpeg_with_many_scans_ends_at_the_limit_of_time():
    data = scans(encoded(PHOTO.resize((2000, 2000)), "JPEG", progressive=True, quality=20), 9000)
    limits = images.DECODING_LIMITS
    try:
        images.DECODING_LIMITS = images.Limits(1, 30, limits.memory_bytes, limits.output_bytes)
        with pytest.raises(ImageUndecodable, match="time or memory"):
            normalise_image(data, SETTINGS)
    finally:
        images.DECODING_LIMITS = limits


def test_few_images_are_decoded_at_once(monkeypatch):
    at_once, most = threading.Semaphore(0), []

    def counted(*_, **__):
        at_once.release()
        most.append(at_once._value)
        time.sleep(0.02)
        at_once.acquire()
        return b""

    monkeypatch.setattr(images, "run_limited", counted)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: normalise_image(b"", SETTINGS), range(8)))
    assert max(most) == images.MAX_DECODING


def test_the_wait_for_a_decoding_slot_is_bounded(monkeypatch):
    monkeypatch.setattr(images, "DECODING_WAIT_S", 0.05)
    for _ in range(images.MAX_DECODING):
        images._DECODING.acquire()
    try:
        with pytest.raises(RateLimited, match="being decoded"):
            normalise_image(encoded(noise(), "PNG"), SETTINGS)
    finally:
        for _ in range(images.MAX_DECODING):
            images._DECODING.release()
    normalise_image(encoded(noise(), "PNG"), SETTINGS)
