"""A video of a form: on disk from its first byte, then copied without its sound in a child process."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from app.dependencies import Services
from app.middleware.body_limit import content_length
from app.requests.images import FormFile, ReadImage
from clipsynth.errors import InvalidBody, PayloadTooLarge, TooLong, VideoTooLarge, VideoUndecodable
from clipsynth.limited_child import Limits
from clipsynth.schemas.prompts import StoredVideo
from clipsynth.security.api_keys import ApiKey
from clipsynth.services.limited_process import ChildError, ChildRaised, named, run_limited_async
from clipsynth.settings import Settings
from clipsynth.storage import Scratch

logger = logging.getLogger(__name__)
FIELD = "video"
# The API does not load PyAV.
_COPY = named("clipsynth.video_file", "copy_video")
_ERRORS = {f"{error.__module__}.{error.__name__}": error for error in (TooLong, VideoUndecodable)}
# Bytes of a form beside its video.
REST_BYTES = 1_048_576


@dataclass(frozen=True)
class CopiedVideo:
    """The image track of an upload in a file of its own, which lasts as long as its context."""

    path: Path
    stored: StoredVideo


class FormParser(MultiPartParser):
    """A parser of forms that writes the file `video` to disk, and refuses it when it is too large."""

    def __init__(self, request: Request, stream: Any, settings: Settings, **limits: int) -> None:
        super().__init__(request.headers, stream, **limits)
        self.max_video_bytes, self.video_bytes, self.has_video = settings.max_video_bytes, 0, False
        self.declared = content_length(request.headers)
        self.scratch: Scratch | None = None

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.field_name == FIELD and part.file is not None and part.file.filename:
            self.has_video = True
            self._check(self.declared - REST_BYTES)
            part.file.file.close()
            self.scratch = self.scratch or Scratch()
            file = tempfile.NamedTemporaryFile(dir=self.scratch.path)  # noqa: SIM115
            part.file.file = cast(BinaryIO, file)
            self._files_to_close_on_error.append(part.file.file)  # type: ignore[arg-type]

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.has_video and self._current_part.field_name == FIELD:
            self.video_bytes += end - start
            self._check(self.video_bytes)
        super().on_part_data(data, start, end)

    def _check(self, size: int) -> None:
        if size > self.max_video_bytes:
            raise VideoTooLarge(f"/video: a video may have {self.max_video_bytes} bytes")


@contextlib.asynccontextmanager
async def parsed_form(
    request: Request, services: Services, caller: ApiKey, **limits: int
) -> AsyncIterator[FormData]:
    """Parse a form; its files last as long as the context. One with a video holds a slot for videos.

    Raises:
        InvalidBody: it is no valid form.
        VideoTooLarge, RateLimited: the video is too large, or others are being received.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def stream() -> AsyncIterator[bytes]:
            is_holding = False
            async for chunk in request.stream():
                yield chunk
                # The parser has seen the chunk.
                if parser.has_video and not is_holding:
                    is_holding = True
                    await stack.enter_async_context(services.budgets.videos.hold(caller.id, max_waiting=0))

        parser = FormParser(request, stream(), services.settings, **limits)
        stack.callback(lambda: parser.scratch and parser.scratch.close())
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "maximum size" in error.message:
                largest = limits["max_part_size"]
                raise PayloadTooLarge(f"a field of the form is larger than {largest} bytes") from None
            raise InvalidBody(error.message) from None
        stack.push_async_callback(form.close)
        yield form


@contextlib.asynccontextmanager
async def copied(files: dict[str, ReadImage], settings: Settings) -> AsyncIterator[CopiedVideo]:
    """Copy the image track of the file `video` and remove the upload; raise the errors of `copy_video`."""
    upload = files.pop(FIELD)
    assert isinstance(upload, FormFile)
    limits = Limits(
        cpu_s=20,
        wall_s=60,
        memory_bytes=1_500_000_000,
        output_bytes=10_000,
        file_bytes=settings.max_video_bytes + 16_000_000,
    )
    with contextlib.closing(Scratch()) as scratch:
        target = scratch.path / "copy"
        try:
            extension, seconds = await run_limited_async(
                _COPY, str(upload.path), str(target), settings.max_video_s, limits=limits
            )
        except ChildRaised as error:
            kind = _ERRORS.get(error.kind, VideoUndecodable)
            detail = error.detail if error.kind in _ERRORS else "the video cannot be read"
            raise kind(f"/video: {detail}") from None
        except ChildError as error:
            logger.warning("video not copied: %r", error)
            raise VideoUndecodable("/video: it takes too much time or memory to read") from None
        upload.close()
        sha256 = await run_in_threadpool(_sha256, target)
        yield CopiedVideo(target, StoredVideo(extension=extension, sha256=sha256, seconds=seconds))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
