"""Limit the size of bodies and the time for them to arrive."""

from __future__ import annotations

import asyncio
import io
import threading

from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.responses.problems import refusal
from clipsynth.errors import (
    ImageTooLarge,
    ImageUndecodable,
    PayloadTooLarge,
    ReceiveTimeout,
    UnsupportedMedia,
)
from clipsynth.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP")
SIDE = 512
MAX_DECODING = 2  # one decoding takes up to 480 MB
_DECODING = threading.BoundedSemaphore(MAX_DECODING)


class BodyLimit:
    """ASGI middleware that limits the size of a body and the time for it to arrive.

    Content-Length is not trusted. After an answer to an incomplete body the connection is closed, because its
    client may continue to send.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        declared = int(length) if length.isdecimal() else 0
        whole = not declared and "transfer-encoding" not in headers
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        size = 0

        async def counted() -> Message:
            nonlocal size, whole
            if whole:  # the only message left is the disconnect
                return await receive()
            if max(size, declared) > self.max_bytes:
                raise refusal(PayloadTooLarge(f"the body is larger than {self.max_bytes} bytes"))
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise refusal(ReceiveTimeout(f"the body was not whole after {self.timeout_s:g} s")) from None
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                return await counted()
            whole = not message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and not whole:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, counted, closing)


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
