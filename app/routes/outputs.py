"""Routes of an output's spectrogram, waveform peaks and video; these files are made with the sound."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.dependencies import Reader, ServicesDep
from app.responses.audio import succeeded, video_with_sound
from app.responses.problems import FILE_PROBLEMS, problems
from app.responses.ranges import file_response

router = APIRouter(prefix="/v1/generations", tags=["generations"])


def _responses(media_type: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    content = {media_type: {"schema": schema}}
    return {
        200: {"description": "the file", "content": content},
        206: {"description": "the requested part", "content": {media_type: {"schema": {"type": "string"}}}},
        304: {"description": "the client has it"},
        **problems(*FILE_PROBLEMS),
    }


_PEAKS = {
    "type": "object",
    "description": "in audiowaveform's format: `data` alternates minimum and maximum of each stretch",
    "required": ["version", "channels", "sample_rate", "samples_per_pixel", "bits", "length", "data"],
    "properties": {
        **{
            name: {"type": "integer"}
            for name in ("version", "channels", "sample_rate", "samples_per_pixel", "bits", "length")
        },
        "data": {"type": "array", "items": {"type": "integer"}},
    },
    "examples": [
        {
            "version": 2,
            "channels": 1,
            "sample_rate": 16000,
            "samples_per_pixel": 64,
            "bits": 16,
            "length": 2,
            "data": [-12, 15, -3021, 2810],
        }
    ],
}
_PNG = _responses("image/png", {"type": "string", "format": "binary"})
_BINARY = {"type": "string", "format": "binary"}
_VIDEO = _responses("video/mp4", _BINARY)
for status in (200, 206):
    _VIDEO[status]["content"]["video/webm"] = {"schema": _BINARY}
_JSON = _responses("application/json", _PEAKS)


@router.get("/{generation_id}/spectrogram/{n}", response_class=Response, responses=_PNG)
def spectrogram(
    generation_id: str, n: int, request: Request, services: ServicesDep, caller: Reader
) -> Response:
    """Return the mel spectrogram of output n as a PNG.

    10 ms per pixel, 0 to 8 kHz from the bottom, 80 dB from black to bright.
    """
    generation = succeeded(services, generation_id, caller, n=n)
    data = services.storage.get_preview(generation.folder, n, "png")
    name = f'inline; filename="{generation.id}-{n}.png"'
    account = services.budgets.downloads, caller.id
    return file_response(request, data, media_type="image/png", disposition=name, account=account)


@router.get("/{generation_id}/video/{n}", response_class=Response, responses=_VIDEO)
def video(generation_id: str, n: int, request: Request, services: ServicesDep, caller: Reader) -> Response:
    """Return the video of the request with the sound of output n."""
    generation = succeeded(services, generation_id, caller, n=n)
    return video_with_sound(services, generation, n, request)


@router.get("/{generation_id}/peaks/{n}", response_class=Response, responses=_JSON)
def peaks(generation_id: str, n: int, request: Request, services: ServicesDep, caller: Reader) -> Response:
    """Return the waveform peaks of output n, in up to 1,000 stretches, for a player."""
    generation = succeeded(services, generation_id, caller, n=n)
    data = services.storage.get_preview(generation.folder, n, "json")
    name = f'inline; filename="{generation.id}-{n}.json"'
    account = services.budgets.downloads, caller.id
    return file_response(request, data, media_type="application/json", disposition=name, account=account)
