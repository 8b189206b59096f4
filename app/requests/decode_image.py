"""Decode an image that a client sent: runs in a limited child process, and imports little."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from clipsynth.errors import ImageTooLarge, ImageUndecodable, UnsupportedMedia

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
NAMES = "PNG, JPEG, WebP, AVIF"
# Not JPEG: a phone's photo may have a second image inside (Pillow calls it MPO); the first is the photo.
_ANIMATED = {"PNG", "WEBP", "AVIF"}
# Longest side of a stored image, in pixels.
SIDE = 512
_OURS = re.compile(rb"\x89PNG|\xff\xd8\xff|RIFF.{4}WEBP|.{4}ftyp(?:m[is]f1.{4}(?:.{4})*)?avi[fs]", re.DOTALL)
# Formats that people send and that are not decoded: the first bytes, and the name with advice.
_REFUSED = {
    rb".{4}ftyp(hei[cxms]|hev[cmsx]|.{4}.{4}(.{4})*(hei[cx]|hev[cx]))": "HEIC; export it as JPEG (iPhone: "
    "Settings, Camera, Formats, Most Compatible)",
    rb".{4}ftyp": "a video or another file of the MP4 family; send a single frame",
    rb"GIF8[79]a": "GIF; send a single frame as PNG",
    rb"(II\*\0|MM\0\*)": "TIFF or a camera's raw file; export it as JPEG",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL; export it as JPEG",
    rb"BM": "BMP; export it as PNG",
    rb"%PDF": "PDF; export the page as PNG",
    rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE)": "a text document, such as SVG or HTML; export it as PNG",
}


def decode_image(data: bytes, max_pixels: int) -> bytes:
    """Return the image as an RGB PNG of at most 512 px: upright, transparency on white, without metadata.

    An image whose last bytes are missing is taken if they change no pixel.

    Raises:
        UnsupportedMedia, ImageTooLarge, ImageUndecodable: the message says which limit or format.
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"an image may have {max_pixels} pixels, this one has {width} x {height}")
    if image.format in _ANIMATED and getattr(image, "is_animated", False):
        raise UnsupportedMedia("the image is animated; send a single frame")
    try:
        small = _load(image)
    except MemoryError:
        raise
    except Exception:
        small = _load_unfinished(data)
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()


def _open(data: bytes) -> Image.Image:
    is_ours = _OURS.match(data[:256])
    for start, name in _REFUSED.items():
        if not is_ours and re.match(start, data[:256], re.DOTALL):
            raise UnsupportedMedia(f"an image may be {NAMES}; this is {name}")
    # The limit of pixels is checked after this.
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if is_ours:
            raise ImageUndecodable("the image cannot be decoded; is it cut off?") from None
        raise UnsupportedMedia(f"not an image in one of the formats {NAMES}") from None
    except Exception:  # on hostile bytes Pillow raises many kinds of errors
        raise ImageUndecodable("the image cannot be decoded") from None


def _load(image: Image.Image) -> Image.Image:
    """Decode an image, and return only its pixels, small and upright."""
    # JPEG's decoder scales by 1/2, 1/4 or 1/8, in little memory.
    image.draft("RGB", (SIDE, SIDE))
    image.load()
    turned = image.getexif().get(0x0112)
    if image.mode.startswith("I"):  # 16 bits: a plain conversion would clip to white
        image = image.convert("I").point(lambda value: value / 256, "L")
    elif image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "RGBA", "L", "CMYK"):
        # 1 bit and palettes have no colours between theirs.
        image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    layers = image.convert("RGBA")
    flat = Image.new("RGB", layers.size, "white")
    flat.paste(layers, mask=layers.getchannel("A"))
    flat.getexif()[0x0112] = turned
    return ImageOps.exif_transpose(flat)


def _load_unfinished(data: bytes) -> Image.Image:
    """Decode an image without its last bytes: it has all its pixels if two endings give the same."""
    try:
        first, second = (_load(_open(data + ending)) for ending in _endings(data))
        if ImageChops.difference(first, second).getbbox() is None:
            return first
    except MemoryError:
        raise
    # A decoder may raise anything; the error below says what the client needs.
    except Exception:  # noqa: S110
        pass
    raise ImageUndecodable("the image cannot be decoded; is it cut off?")


def _endings(data: bytes) -> Iterator[bytes]:
    if data[:2] == b"\xff\xd8":
        yield from (b"\xff\xd9", bytes(range(1, 64)) * 8 + b"\xff\xd9")
    elif data[:4] == b"RIFF":
        missing = 8 + int.from_bytes(data[4:8], "little") - len(data)
        yield from (bytes(min(missing, 64)), b"\xaa" * min(missing, 64))
