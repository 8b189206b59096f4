"""Images of a request: from a form's file, base64, a data URL or another host to a small PNG."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from app.dependencies import Services
from app.requests.decode_image import decode_image
from clipsynth.budgets import MAX_DECODING
from clipsynth.errors import (
    ClipSynthError,
    ImageNotFetched,
    ImageTooLarge,
    ImageUndecodable,
    InvalidRequest,
    RateLimited,
    UnsupportedMedia,
)
from clipsynth.limited_child import Limits
from clipsynth.schemas.request import GenerationRequest
from clipsynth.security.api_keys import ApiKey
from clipsynth.security.safe_http import HostUnreachable, UrlRefused, ask, check_url
from clipsynth.services.limited_process import ChildError, ChildRaised, run_limited
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
# Time limit for one image of another host.
FETCH_S = 10.0
PART = "part:"
# How long an image waits for its turn.
DECODING_WAIT_S = 10.0
# For 50 MP the CPU time is at most 2 s, and the memory 900 MB (WebP) or less.
DECODING_LIMITS = Limits(cpu_s=5, wall_s=30, memory_bytes=900_000_000, output_bytes=2_000_000)
_BASE64 = str.maketrans("-_", "+/", " \t\n\f\r")
_DECODING = threading.BoundedSemaphore(MAX_DECODING)
_SETS = "prompts", "timeline"
_DECODING_ERRORS = {
    f"{error.__module__}.{error.__name__}": error
    for error in (UnsupportedMedia, ImageTooLarge, ImageUndecodable)
}

ReadImage = Callable[[], bytes]


class FormFile:
    """A file of a form, on disk if it is large. Each call reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __call__(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    @property
    def path(self) -> Path:
        """Path of a file that has a name."""
        self._file.flush()
        return Path(self._file.name)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


@dataclass(frozen=True)
class RequestImage:
    """One image of a request: of item `n` of prompts or timeline, or 0 without them.

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
            if not isinstance(self.read, FormFile) and len(data) > settings.max_image_bytes:
                raise ImageTooLarge(
                    f"an image may have {settings.max_image_bytes} bytes, this one has {len(data)}; a form "
                    "may have larger ones"
                )
            return normalise_image(data, settings)

    def _read(self) -> bytes:
        with self._named():
            return self.read()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ClipSynthError as error:
            error.args = (f"{self.pointer}: {error}",)
            raise


@asynccontextmanager
async def image_slot(services: Services, caller: ApiKey, wanted: GenerationRequest) -> AsyncIterator[None]:
    """Hold a slot if the request has images: decoding takes memory, fetching a thread.

    Raises:
        RateLimited: all slots for requests whose images are fetched are taken, or too many requests of this
            key wait for one.
    """
    if not wanted.has_images:
        yield
    elif wanted.has_urls:
        async with services.budgets.fetches.hold(caller.id, max_waiting=0):
            yield
    else:
        async with services.budgets.decoding.hold(caller.id):
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
        raise InvalidRequest(f"/{_SETS[bool(wanted.timeline)]}: no item names the file {min(left)!r}")
    return images


def _fields(wanted: GenerationRequest) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Return (item, pointer, image, image_url) of each image."""
    items = [(0, "", wanted.image, wanted.image_url)]
    name = _SETS[bool(wanted.timeline)]
    items += [(n, f"/{name}/{n}", item.image, item.image_url) for n, item in enumerate(wanted.items)]
    for n, parent, image, url in items:
        if image is not None or url is not None:
            yield n, f"{parent}/image" if image is not None else f"{parent}/image_url", image, url


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 or a data URL: with or without white space, padding and URL-safe digits.

    Raises:
        InvalidRequest: it is neither.
    """
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().replace(" ", "").endswith(";base64"):
            raise InvalidRequest("a data URL must be `data:image/…;base64,…`")
        text = unquote(text)
    elif re.match(r"https?://", text, re.IGNORECASE):
        raise InvalidRequest("this is a URL; send it as `image_url`")
    digits = text.translate(_BASE64).rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
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
    """Decode an image in a limited child process, as `decode_image`.

    Raises:
        UnsupportedMedia, ImageTooLarge, ImageUndecodable: the message says which limit or format.
        RateLimited: other images are being decoded.
    """
    if not _DECODING.acquire(timeout=DECODING_WAIT_S):
        raise busy_decoding()
    try:
        return run_limited(decode_image, data, settings.max_image_pixels, limits=DECODING_LIMITS)
    except ChildRaised as error:
        kind = _DECODING_ERRORS.get(error.kind)
        if kind is not None:
            raise kind(error.detail) from None
        raise ImageUndecodable("the image cannot be decoded") from None
    except ChildError as error:
        logger.warning("image not decoded: %r", error)
        raise ImageUndecodable("the image takes too much time or memory to decode") from None
    finally:
        _DECODING.release()


def busy_decoding() -> RateLimited:
    return RateLimited("too many images are being decoded", retry_after_s=DECODING_WAIT_S)
