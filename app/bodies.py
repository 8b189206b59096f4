"""Bodies of requests for a generation: JSON, or a form with the same field names and a picture."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from clipsynth.errors import InvalidBody, InvalidRequest, UnsupportedMedia
from clipsynth.schemas import GenerationRequest

LISTS = frozenset({"output_formats", "webhook_events"})  # fields that a form repeats


def request_body() -> dict[str, Any]:
    """Describe both in OpenAPI."""
    reference = {"$ref": "#/components/schemas/GenerationRequest"}
    form = GenerationRequest.model_json_schema()
    form["properties"]["image"] = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"}
    content = {"application/json": {"schema": reference}, "multipart/form-data": {"schema": form}}
    return {"required": True, "content": content}


async def read_body(request: Request) -> tuple[GenerationRequest, bytes | None]:
    """Return the request and the uploaded picture of a JSON or multipart body."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        return validate(_parse_json(await request.body()), strict=True), None
    if content_type == "multipart/form-data":
        async with request.form(max_files=1, max_fields=32) as form:
            return await _read_form(form)
    raise UnsupportedMedia(f"send application/json or multipart/form-data, not {content_type or 'nothing'}")


def validate(fields: dict[str, Any], *, strict: bool) -> GenerationRequest:
    try:
        return GenerationRequest.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidBody(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidBody("the body must be a JSON object")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return dict(pairs)


async def _read_form(form: FormData) -> tuple[GenerationRequest, bytes | None]:
    """Read fields as text. The picture is the only file, whatever its name; a field `image` may say `part:<name>`."""
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        elif name in LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise InvalidBody(f"/{name}: sent twice")
        else:
            fields[name] = value
    for name in files:
        if fields.setdefault("image", f"part:{name}") != f"part:{name}":
            raise InvalidRequest(f"/image: names another part than the file {name!r}")
    return validate(fields, strict=False), next(iter(files.values()), None)
