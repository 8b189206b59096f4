"""Bodies of requests: JSON, or a form with the same field names and image files.

Routes read the body themselves, because FastAPI would read it before it checks the API key.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from app.requests.images import PART
from clipsynth.errors import InvalidBody, InvalidRequest, UnsupportedMedia
from clipsynth.schemas.prompts import MAX_IMAGES
from clipsynth.schemas.request import GenerationRequest

# Fields that a form repeats.
LISTS = frozenset({"output_formats", "webhook_events"})
# Fields that a form has as JSON text.
JSON_FIELDS = frozenset({"prompts", "attributes", "metadata"})
Body = TypeVar("Body", bound=BaseModel)


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body; app/main.py adds the schema."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"required": True, "content": {"application/json": {"schema": reference}}}


def request_body() -> dict[str, Any]:
    """Return the OpenAPI description of the JSON body and the form of a generation."""
    body = json_body(GenerationRequest)
    form = GenerationRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    form.pop("$defs", None)
    form.pop("examples")
    fields = form["properties"]
    fields["image"] = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
    examples = {
        "prompts": [{"image": "part:beach"}, {"text": "piano", "weight": 0.5}],
        "attributes": {"pitch": 0.85},
        "metadata": {"project": "demo"},
    }
    for name in sorted(JSON_FIELDS):
        fields[name] = {
            "type": "string",
            "contentMediaType": "application/json",
            "description": f"`{name}` of the JSON body, as JSON text.",
            "examples": [json.dumps(examples[name])],
        }
    body["content"]["multipart/form-data"] = {"schema": form}
    return body


async def read_body(request: Request) -> tuple[GenerationRequest, dict[str, bytes]]:
    """Return the request and the uploaded files, by field name."""
    content_type = _content_type(request)
    if content_type == "application/json":
        return validate(GenerationRequest, _parse_object(await request.body()), strict=True), {}
    if content_type == "multipart/form-data":
        async with request.form(max_files=MAX_IMAGES, max_fields=32) as form:
            return await _read_form(form)
    raise UnsupportedMedia(f"send application/json or multipart/form-data, not {content_type or 'nothing'}")


async def read_json(request: Request, model: type[Body]) -> Body:
    """Return the JSON body, validated."""
    if (content_type := _content_type(request)) != "application/json":
        raise UnsupportedMedia(f"send application/json, not {content_type or 'nothing'}")
    return validate(model, _parse_object(await request.body()), strict=True)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def validate(model: type[Body], fields: dict[str, Any], *, strict: bool) -> Body:
    try:
        return model.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _parse_object(data: bytes) -> dict[str, Any]:
    body = _parse_json(data, "the body")
    if not isinstance(body, dict):
        raise InvalidBody("the body must be a JSON object")
    return body


def _parse_json(data: str | bytes, what: str) -> Any:
    try:
        return json.loads(data, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidBody(f"{what} is not valid JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return dict(pairs)


async def _read_form(form: FormData) -> tuple[GenerationRequest, dict[str, bytes]]:
    """Read a form. Without `prompts`, its only file is the image, whatever its name."""
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name in files:
                raise InvalidBody(f"/{name}: two files have this name")
            files[name] = await value.read()
        elif name in LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise InvalidBody(f"/{name}: is sent twice")
        else:
            fields[name] = _parse_json(value, f"/{name}") if name in JSON_FIELDS else value
    if "prompts" not in fields:
        for name in files:
            if fields.setdefault("image", f"{PART}{name}") != f"{PART}{name}":
                raise InvalidRequest(f"/image: names another file than {name!r}")
    return validate(GenerationRequest, fields, strict=False), files
