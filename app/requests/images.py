"""Images of a request: from a form's file, base64, a data URL or another host to a small PNG."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageOps, UnidentifiedImageError

from app.dependencies import Services
from clipsynth.errors import (
    ClipSynthError,
    ImageNotFetched,
    ImageTooLarge,
    ImageUndecodable,
    InvalidRequest,
    RateLimited,
    UnsupportedMedia,
)
from clipsynth.schemas.request import GenerationRequest
from clipsynth.security.safe_http import HostUnreachable, UrlRefused, ask, check_url
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
# Time limit for one image of another host.
FETCH_S = 10.0
PART = "part:"
FORMATS = ("PNG", "JPEG", "WEBP")
# Longest side of a stored image, in pixels.
SIDE = 512
# Images decoded at a time; each takes up to 480 MB.
MAX_DECODING = 2
# Requests at a time whose images are fetched; each occupies a thread.
MAX_FETCHES = 8
FETCH_RETRY_S = 10.0
_DECODING = threading.BoundedSemaphore(MAX_DECODING)


ReadImage = Callable[[], bytes]


@dataclass(frozen=True)
class RequestImage:
    """One image of a request: of item `n` of prompts, or 0 without prompts.

    `read` returns its bytes; with a `url` it fetches them, which takes up to `FETCH_S`.
    """

    n: int
    pointer: str
    read: ReadImage
    url: str | None = None

    @property
    def fingerprint(self) -> str:
        data = b"" if self.url else self._read()
        return f"{self.pointer} {hashlib.sha256(data).hexdigest()}"

    def normalised(self, settings: Settings) -> bytes:
        """Return the PNG to store.

        Raises:
            InvalidRequest, ImageGone, ImageNotFetched, UnsupportedMedia, ImageTooLarge, ImageUndecodable:
                each names the field.
        """
        data = self._read()
        with self._named():
            return normalise_image(data, settings)

    def _read(self) -> bytes:
        with self._named():
            return self.read()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ClipSynthError as error:
            raise type(error)(f"{self.pointer}: {error}") from None


@asynccontextmanager
async def image_slot(services: Services, wanted: GenerationRequest) -> AsyncIterator[None]:
    """Hold a slot if the request has images: decoding takes memory, fetching a thread.

    Raises:
        RateLimited: all slots for requests whose images are fetched are taken.
    """
    if not wanted.has_images:
        yield
        return
    if wanted.has_urls and services.fetches.locked():
        raise RateLimited("too many images are being fetched", retry_after_s=FETCH_RETRY_S)
    async with services.fetches if wanted.has_urls else services.decoding:
        yield


def read_images(
    wanted: GenerationRequest, files: Mapping[str, ReadImage], settings: Settings
) -> list[RequestImage]:
    """Find the images of a request, without reading them.

    Raises:
        InvalidRequest: an image is missing or may not be fetched, or no field names a file.
    """
    images = []
    left = set(files)
    for n, field, image, url in _fields(wanted):
        if image is None:
            _check(field, url or "", settings)
            images.append(RequestImage(n, field, partial(_fetch, url or "", settings), url))
            continue
        read: ReadImage = partial(decode_base64, image)
        if image.startswith(PART):
            name = image.removeprefix(PART)
            if name not in files:
                raise InvalidRequest(f"{field}: the form has no file {name!r}")
            left.discard(name)
            read = files[name]
        images.append(RequestImage(n, field, read))
    if left:
        raise InvalidRequest(f"/prompts: no item names the file {min(left)!r}")
    return images


def _fields(wanted: GenerationRequest) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Return (item, pointer, image, image_url) of each image."""
    items = [(0, "", wanted.image, wanted.image_url)]
    items += [(n, f"/prompts/{n}", item.image, item.image_url) for n, item in enumerate(wanted.prompts or ())]
    for n, parent, image, url in items:
        if image is not None or url is not None:
            yield n, f"{parent}/image" if image is not None else f"{parent}/image_url", image, url


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 or a data URL.

    Raises:
        InvalidRequest: it is neither.
    """
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InvalidRequest("a data URL must be `data:image/…;base64,…`")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("not base64") from None


def _check(field: str, url: str, settings: Settings) -> None:
    if settings.image_urls == "off":
        raise InvalidRequest(f"{field}: this service does not fetch images; send the image")
    try:
        check_url(url, allow_loopback=settings.image_urls == "loopback")
    except UrlRefused as error:
        raise InvalidRequest(f"{field}: {error}") from None


def _fetch(url: str, settings: Settings) -> bytes:
    try:
        answer = asyncio.run(
            ask(
                "GET",
                url,
                headers={"Accept": "image/png, image/jpeg, image/webp", "User-Agent": "CLIPSynth"},
                timeout_s=FETCH_S,
                max_bytes=settings.max_image_bytes,
                allow_loopback=settings.image_urls == "loopback",
            )
        )
    except UrlRefused as error:
        raise InvalidRequest(str(error)) from None
    except HostUnreachable as error:
        raise ImageNotFetched(str(error)) from None
    if answer.status != 200:
        raise ImageNotFetched(f"the other host answered {answer.status}; redirects are not followed")
    return answer.body


def normalise_image(data: bytes, settings: Settings) -> bytes:
    """Return the image as an RGB PNG of at most 512 px: upright, transparency on white, without metadata.

    Raises:
        UnsupportedMedia, ImageTooLarge, ImageUndecodable: the message says which limit or format.
    """
    if len(data) > settings.max_image_bytes:
        raise ImageTooLarge(f"an image may have {settings.max_image_bytes} bytes, this one has {len(data)}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnsupportedMedia(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge(f"an image may have {settings.max_image_pixels} pixels") from None
    except Exception:  # on hostile bytes Pillow raises many kinds of errors
        raise ImageUndecodable("the image cannot be decoded") from None
    width, height = image.size
    if width * height > settings.max_image_pixels:
        raise ImageTooLarge(
            f"an image may have {settings.max_image_pixels} pixels, this one has {width} x {height}"
        )
    if getattr(image, "is_animated", False):
        raise UnsupportedMedia("the image is animated; send a single frame")
    try:
        with _DECODING:
            image.draft("RGB", (SIDE, SIDE))
            return _reencode(ImageOps.exif_transpose(image))
    except Exception:
        raise ImageUndecodable("the image cannot be decoded; is it cut off?") from None


def _reencode(image: Image.Image) -> bytes:
    """Copy only the pixels into a new, small image."""
    if image.mode.startswith("I"):  # 16 bits: a plain conversion would clip to white
        image = image.convert("I").point(lambda value: value / 256, "L")
    image.thumbnail((SIDE, SIDE))
    layers = image.convert("RGBA")
    flat = Image.new("RGB", layers.size, "white")
    flat.paste(layers, mask=layers.getchannel("A"))
    file = io.BytesIO()
    flat.save(file, "PNG")
    return file.getvalue()
