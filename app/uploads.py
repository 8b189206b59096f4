"""What arrives: bodies counted as they come, pictures checked before they are decoded and re-encoded small."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipsynth.errors import ImageTooLarge, ImageUndecodable, PayloadTooLarge, UnsupportedMedia
from clipsynth.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP")
SIDE = 512


class BodyLimit:
    """ASGI middleware that ends a request whose body grows past `max_bytes`, whatever its Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise PayloadTooLarge(f"the body is larger than {self.max_bytes} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def normalise_image(data: bytes, settings: Settings) -> bytes:
    """Return the picture as an RGB PNG of at most 512 px, upright, without metadata; the first frame only.

    Raises:
        UnsupportedMedia, ImageTooLarge, ImageUndecodable: what the picture is or is not.
    """
    if len(data) > settings.max_image_bytes:
        raise ImageTooLarge(f"a picture may have {settings.max_image_bytes} bytes, this one has {len(data)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise UnsupportedMedia(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
        except Image.DecompressionBombError:
            raise ImageTooLarge(f"a picture may have {settings.max_image_pixels} pixels") from None
        except (OSError, SyntaxError, ValueError):
            raise ImageUndecodable("the picture cannot be decoded") from None
        width, height = image.size
        if width * height > settings.max_image_pixels:
            raise ImageTooLarge(
                f"a picture may have {settings.max_image_pixels} pixels, this one has {width} x {height}"
            )
        try:
            image.draft("RGB", (SIDE, SIDE))
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError):
            raise ImageUndecodable("the picture cannot be decoded; is it cut off?") from None
    upright.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    upright.save(file, "PNG")
    return file.getvalue()
