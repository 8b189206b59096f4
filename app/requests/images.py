"""The images of a request: where each comes from (a form's file, base64, a data URL, another host), and what is stored of them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.middleware.body_limit import normalise_image
from clipsynth.errors import ClipSynthError, ImageNotFetched, InvalidRequest
from clipsynth.schemas.request import GenerationRequest
from clipsynth.security.safe_http import HostUnreachable, UrlRefused, ask, check_url
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
FETCH_S = 10.0  # for one image of another host
PART = "part:"


@dataclass(frozen=True)
class RequestImage:
    """One image of a request. `n` is the item of prompts that it is, 0 for one without prompts; `data` None where it is still to be fetched."""

    n: int
    pointer: str
    data: bytes | None
    url: str | None = None

    @property
    def fingerprint(self) -> str:
        return f"{self.pointer} {hashlib.sha256(self.data or b'').hexdigest()}"

    def normalised(self, settings: Settings) -> bytes:
        """Return what is stored of it; fetches it if need be, which takes up to `FETCH_S`.

        Raises:
            InvalidRequest, ImageNotFetched, UnsupportedMedia, ImageTooLarge, ImageUndecodable: each names the field.
        """
        try:
            data = _fetch(self.url or "", settings) if self.data is None else self.data
            return normalise_image(data, settings)
        except ClipSynthError as error:
            raise type(error)(f"{self.pointer}: {error}") from None


def read_images(
    wanted: GenerationRequest, files: Mapping[str, bytes], settings: Settings
) -> list[RequestImage]:
    """Return the images of a request, and look at no more of them than is needed to find them.

    Raises:
        InvalidRequest: one cannot be found, may not be fetched, or a file is named by none.
    """
    images = []
    left = set(files)
    for n, field, image, url in _fields(wanted):
        if image is None:
            _check(field, url or "", settings)
            images.append(RequestImage(n, field, None, url))
            continue
        if image.startswith(PART):
            name = image.removeprefix(PART)
            if name not in files:
                raise InvalidRequest(f"{field}: the form has no file {name!r}")
            left.discard(name)
            images.append(RequestImage(n, field, files[name]))
        else:
            images.append(RequestImage(n, field, _decode(field, image)))
    if left:
        raise InvalidRequest(f"/prompts: none names the file {min(left)!r}")
    return images


def _fields(wanted: GenerationRequest) -> Iterator[tuple[int, str, str | None, str | None]]:
    """Return (item, pointer, image, image_url) of each image."""
    items = [(0, "", wanted.image, wanted.image_url)]
    items += [(n, f"/prompts/{n}", item.image, item.image_url) for n, item in enumerate(wanted.prompts or ())]
    for n, parent, image, url in items:
        if image is not None or url is not None:
            yield n, f"{parent}/image" if image is not None else f"{parent}/image_url", image, url


def _decode(field: str, text: str) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise InvalidRequest(f"{field}: a data URL here is `data:image/…;base64,…`")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field}: not base64") from None


def _check(field: str, url: str, settings: Settings) -> None:
    if settings.image_urls == "off":
        raise InvalidRequest(f"{field}: this service fetches no images; send the image itself")
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
        raise ImageNotFetched(f"the other host answered with {answer.status}; redirects are not followed")
    return answer.body
