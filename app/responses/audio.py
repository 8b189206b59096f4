"""Choose the file of an output for a client, and build the response."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from app.dependencies import Services
from app.responses.accept import best_media_type
from app.responses.problems import FILE_PROBLEMS, problems
from app.responses.ranges import file_response, stored_response
from clipsynth.errors import NotFound, NotReady
from clipsynth.schemas.generation import MEDIA_TYPES, Format, Generation, Status
from clipsynth.security.api_keys import ApiKey
from clipsynth.storage import audio_key, file_name, result_video_key

SOUND = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}
SOUND_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "the sound", "content": SOUND},
    206: {"description": "the asked part", "content": SOUND},
    304: {"description": "the client has it"},
    **problems("not_acceptable", *FILE_PROBLEMS),
}


# Media types of the videos of outputs; no generation has both.
VIDEO_TYPES = ("video/mp4", "video/webm")


def succeeded(services: Services, generation_id: str, caller: ApiKey, *, n: int | None = None) -> Generation:
    """Return a succeeded generation of this caller, and check that it has output n.

    Raises:
        NotFound, Gone: as `JobStore.get`.
        NotReady: it has not succeeded.
    """
    generation = services.state.get(generation_id, owner=caller.id)
    if generation.status is not Status.SUCCEEDED:
        raise NotReady(f"the generation is {generation.status}; there is no sound")
    if n is not None and all(output.index != n for output in generation.outputs):
        raise NotFound(
            f"the generation has {generation.input.num_outputs} outputs, counted from 0; there is no {n}"
        )
    return generation


def sound(
    services: Services,
    caller: ApiKey,
    generation: Generation,
    n: int,
    request: Request,
    *,
    output_format: Format | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return output n in the requested format, else in the one that Accept prefers.

    Raises:
        NotFound: it was not made in that format.
        NotAcceptable: it was made in no format that Accept names.
        RangeNotSatisfiable, DownloadBudget: as `file_response`.
    """
    outputs = [o for o in generation.outputs if o.index == n]
    if output_format is not None:
        outputs = [o for o in outputs if o.format == output_format]
        if not outputs:
            made = ", ".join(generation.input.output_formats)
            raise NotFound(f"the generation has no file as {output_format}, only as {made}")
    accept = "" if output_format else request.headers.get("accept", "")
    media_type = best_media_type([o.media_type for o in outputs], accept)
    output = next(o for o in outputs if o.media_type == media_type)
    data = services.storage.get(audio_key(generation.folder, n, output.format))
    disposition = f'inline; filename="{file_name(generation.id, n, output.format)}"'
    response = file_response(
        request,
        data,
        media_type=output.media_type,
        disposition=disposition,
        account=(services.budgets.downloads, caller.id),
    )
    response.headers.update({"Vary": "Accept", **(headers or {})})
    return response


def video_type(generation: Generation) -> str | None:
    """Return the media type of the videos of a generation; None if its request had no video."""
    source = generation.input.video
    return f"video/{source.extension}" if source else None


def video_with_sound(
    services: Services,
    generation: Generation,
    n: int,
    request: Request,
    *,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return the video of the request with the sound of output n.

    Raises:
        NotFound: the request had no video.
        RangeNotSatisfiable, StorageUnavailable: as `stored_response`.
    """
    media_type = video_type(generation)
    if media_type is None:
        raise NotFound("the request had no video")
    extension = media_type.removeprefix("video/")
    key = result_video_key(generation.folder, n, extension)
    response = stored_response(
        request,
        services.storage,
        key,
        etag=key.replace("/", "-"),
        media_type=media_type,
        disposition=f'inline; filename="{generation.id}-{n}.{extension}"',
    )
    response.headers.update(headers or {})
    return response
