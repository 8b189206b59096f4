"""Bodies of requests: JSON, or a form with the same field names and image files.

Routes read the body themselves, because FastAPI would read it before it checks the API key.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from mmap import mmap
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from app.dependencies import Services
from app.requests.decode_image import NAMES
from app.requests.images import PART, FormFile, ReadImage, decode_base64
from app.requests.upload import MAX_TEXT_BYTES, counted, spooled, text_too_large
from app.requests.video import FIELD, parsed_form
from clipsynth.errors import (
    ImageTooLarge,
    InvalidBody,
    InvalidRequest,
    UnsupportedCoding,
    UnsupportedMedia,
    json_pointer,
)
from clipsynth.schemas.prompts import MAX_IMAGES
from clipsynth.schemas.request import GenerationRequest
from clipsynth.security.api_keys import ApiKey
from clipsynth.settings import Settings

# Fields that a form repeats.
LISTS = frozenset({"output_formats", "webhook_events"})
# Fields that a form has as JSON text.
JSON_FIELDS = frozenset({"prompts", "timeline", "attributes", "metadata"})
# Objects and their names in a body, and errors that an answer reports.
MAX_NAMES, MAX_ERRORS = 1000, 20
# An image in base64 of at least this length is cut out of a JSON body before it is parsed.
MIN_CUT = 1024
# Escapes that JSON writers use in base64; line breaks are not part of it.
_ESCAPES = {rb"\/": b"/", rb"\n": b"\n", rb"\r": b"\r", rb"\u002B": b"+", rb"\u002b": b"+", rb"\u003D": b"="}
_IMAGE = re.compile(rb'"image"\s*:\s*"')
NO_FILE = "a video is a file of a form"
# Bytes of a body that is parsed in the event loop: 0.3 ms for the worst one tried.
PARSED_AT_ONCE = 2048
Body = TypeVar("Body", bound=BaseModel)
Parsed = TypeVar("Parsed")


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
    fields["image"] = {"type": "string", "format": "binary", "description": f"{NAMES}."}
    fields["video"] = {
        "type": "string",
        "format": "binary",
        "description": "MP4, MOV, WebM or Matroska: each scene gets a sound, and `prompt` adds to all. "
        "duration_s is by default its length. The outputs are also the video with the sound.",
    }
    examples = {
        "prompts": [{"image": "part:beach"}, {"text": "piano", "weight": 0.5}],
        "timeline": [{"text": "rain", "start_s": 0, "end_s": 8}, {"text": "a dog", "start_s": 2, "end_s": 4}],
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


@contextlib.asynccontextmanager
async def read_body(
    request: Request, services: Services, caller: ApiKey
) -> AsyncIterator[tuple[GenerationRequest, dict[str, ReadImage]]]:
    """Yield the request and its files, by name; they can be read while the context lasts."""
    content_type = _content_type(request)
    if content_type not in ("application/json", "multipart/form-data"):
        what = content_type or "nothing"
        raise UnsupportedMedia(f"send application/json or multipart/form-data, not {what}")
    async with counted(request, services, caller):
        if content_type == "application/json":
            async with spooled(request, images=True) as data:
                yield await _parsed(_read_json, data)
            return
        limits = {"max_files": MAX_IMAGES + 1, "max_fields": 32, "max_part_size": MAX_TEXT_BYTES}
        async with parsed_form(request, services, caller, **limits) as form:
            yield await run_in_threadpool(_read_form, form, services.settings)


async def read_json(request: Request, services: Services, caller: ApiKey, model: type[Body]) -> Body:
    """Return the JSON body, validated."""
    if (content_type := _content_type(request)) != "application/json":
        raise UnsupportedMedia(f"send application/json, not {content_type or 'nothing'}")
    async with counted(request, services, caller), spooled(request, images=False) as data:
        return await _parsed(lambda text: validate(model, _parse_object(bytes(text)), strict=True), data)


async def _parsed(parse: Callable[[bytes | mmap], Parsed], data: bytes | mmap) -> Parsed:
    """Parse a small body at once, because a change of thread costs more, and a larger one in a thread."""
    return parse(data) if len(data) <= PARSED_AT_ONCE else await run_in_threadpool(parse, data)


def _read_json(data: bytes | mmap) -> tuple[GenerationRequest, dict[str, ReadImage]]:
    rest, images = cut_images(data)
    wanted = validate(GenerationRequest, _parse_object(rest), strict=True)
    if wanted.video is not None:
        raise InvalidRequest(f"/{FIELD}: {NO_FILE}")
    return wanted, images


def cut_images(data: bytes | mmap) -> tuple[bytes, dict[str, ReadImage]]:
    """Replace long images in a JSON text by references to parts; return the rest, and the images by name.

    Parsing then costs the same with and without images. A string with a quotation mark is no image.

    Raises:
        PayloadTooLarge: the rest is larger than `MAX_TEXT_BYTES`.
    """
    prefix, done, at, left = secrets.token_hex(8), 0, 0, len(data)
    images: dict[str, ReadImage] = {}
    rest: list[bytes] = []
    for _ in range(MAX_NAMES):
        if len(images) == MAX_IMAGES or (at := data.find(b'"image"', at)) < 0:
            break
        match = _IMAGE.match(data, at)
        start = at = match.end() if match else at + 1
        end = data.find(b'"', start)
        if match and end - start >= MIN_CUT and data[end - 1] != ord("\\"):
            name = f"{prefix}-{len(images)}"
            images[name] = partial(_read_escaped, data, start, end)
            rest += [data[done : min(start, done + MAX_TEXT_BYTES + 1)], f"{PART}{name}".encode()]
            done = at = end
            left -= end - start
    if left > MAX_TEXT_BYTES:
        raise text_too_large()
    return b"".join([*rest, data[done:]]), images


def _read_escaped(data: bytes | mmap, start: int, end: int) -> bytes:
    text = data[start:end]
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return decode_base64(text.decode("latin-1"))


def _content_type(request: Request) -> str:
    """Return the media type of the body.

    Raises:
        UnsupportedCoding: the body is compressed.
    """
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedCoding(f"send the body as it is, not in {coding}")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def validate(
    model: type[Body], fields: dict[str, Any], *, strict: bool, context: dict[str, Any] | None = None
) -> Body:
    known = model.model_fields
    fields = {name: value for name, value in fields.items() if value is not None or name not in known}
    try:
        return model.model_validate(fields, strict=strict, context=context)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(errors[:MAX_ERRORS]) from None


def _parse_object(data: bytes) -> dict[str, Any]:
    body = _parse_json(data, "the body", with_nulls=True)
    if not isinstance(body, dict):
        raise InvalidBody("the body must be a JSON object")
    return body


def _parse_json(data: str | bytes, what: str, *, with_nulls: bool = False) -> Any:
    """Read a JSON text; null means absent. `with_nulls`: but not in the outermost object."""
    names = 0
    nulls: list[str] = []

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal names
        names += 1 + len(pairs)  # an empty object counts too
        if names > MAX_NAMES:
            raise ValueError(f"it has more than {MAX_NAMES} names and objects")
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in an object")
        nulls[:] = [name for name, value in pairs if value is None]
        return {name: value for name, value in pairs if value is not None}  # null means absent

    try:
        read = json.loads(
            data, parse_constant=_no_constant, parse_float=_number, object_pairs_hook=read_object
        )
    except (ValueError, RecursionError) as error:
        raise InvalidBody(f"{what} is not valid JSON: {error}") from None
    # The outermost object was read last.
    return read | dict.fromkeys(nulls) if with_nulls and isinstance(read, dict) else read


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _number(text: str) -> float:
    """Return 7.0 as an integer, as JSON Schema has it."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _read_form(form: FormData, settings: Settings) -> tuple[GenerationRequest, dict[str, ReadImage]]:
    """Read a form. Without `prompts` and `timeline`, its only file is the image, whatever its name.

    Browsers send a field that was left empty as an empty text or a file without name and content.
    """
    fields: dict[str, Any] = {}
    files: dict[str, ReadImage] = {}
    for name, value in form.multi_items():
        if value == "" or (isinstance(value, UploadFile) and not (value.size or value.filename)):
            continue
        if isinstance(value, UploadFile):
            if name in files:
                raise InvalidBody(f"{json_pointer(name)}: two files have this name")
            if name != FIELD and (value.size or 0) > settings.max_form_image_bytes:
                limit = settings.max_form_image_bytes
                raise ImageTooLarge(
                    f"{json_pointer(name)}: a file may have {limit} bytes, this one has {value.size}"
                )
            files[name] = FormFile(value.file)
        elif name in LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise InvalidBody(f"{json_pointer(name)}: is sent twice")
        else:
            fields[name] = _parse_json(value, f"/{name}") if name in JSON_FIELDS else value
    fields = {name: value for name, value in fields.items() if value is not None}
    if FIELD in files:
        fields[FIELD] = f"{PART}{FIELD}"
    elif FIELD in fields:
        raise InvalidRequest(f"/{FIELD}: {NO_FILE}")
    if not {"prompts", "timeline"} & fields.keys():
        for name in files.keys() - {FIELD}:
            if fields.setdefault("image", f"{PART}{name}") != f"{PART}{name}":
                raise InvalidRequest(f"/image: names another file than {name!r}")
    return validate(GenerationRequest, fields, strict=False), files
