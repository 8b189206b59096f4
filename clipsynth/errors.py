"""Errors of the service, each with a stable `code`.

`app/responses/problems.py` decides the HTTP status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class ClipSynthError(Exception):
    """Base class. `code` is part of the API; the message is for people and safe to show."""

    code = "internal_error"

    retry_after_s: float | None = None  # for temporary errors
    headers: Mapping[str, str] = {}  # of the response


def json_pointer(*parts: object) -> str:
    """Return the JSON pointer (RFC 6901) of a value; without parts that of the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


@contextmanager
def naming(fields: Mapping[str, str]) -> Iterator[None]:
    """Rename the field that an error names: `fields` by the pointer, and by "" for all others.

    With an empty name the error names no field.
    """
    try:
        yield
    except ClipSynthError as error:
        pointer, colon, detail = str(error).partition(": ")
        if colon and pointer.startswith("/"):
            name = fields.get(pointer, fields.get("", pointer))
            error.args = (f"{name}: {detail}" if name else detail,)
        raise


class InvalidBody(ClipSynthError):
    """The body cannot be parsed. (Bad values are `InvalidRequest`.)"""

    code = "invalid_body"


class InvalidRequest(ClipSynthError):
    code = "invalid_request"


class UnreadablePrompt(ClipSynthError):
    """A text has no letter of a script that the model reads."""

    code = "unreadable_prompt"


class AttributeUnavailable(ClipSynthError):
    """The model does not support a requested attribute."""

    code = "attribute_unavailable"


class Unauthorized(ClipSynthError):
    code = "unauthorized"


class Forbidden(ClipSynthError):
    code = "forbidden"


class KeysMissing(ClipSynthError):
    """Keys are needed, and Redis has none: it was emptied or replaced, or none was created."""

    code = "keys_missing"


class ModelNotFound(ClipSynthError):
    code = "model_not_found"


class MethodUnavailable(ClipSynthError):
    """The model does not offer the requested method, such as retrieval."""

    code = "method_unavailable"


class NotFound(ClipSynthError):
    code = "not_found"


class Gone(ClipSynthError):
    code = "gone"


class RecordUnreadable(ClipSynthError):
    code = "record_unreadable"


class NotReady(ClipSynthError):
    code = "not_ready"


class AlreadyEnded(ClipSynthError):
    code = "already_ended"


class IdempotencyMismatch(ClipSynthError):
    code = "idempotency_mismatch"


class RecipeMismatch(ClipSynthError):
    """The recipe belongs to another version of the model."""

    code = "recipe_mismatch"


class ImageGone(ClipSynthError):
    code = "image_gone"


class NotAcceptable(ClipSynthError):
    """No media type that the client accepts can be made."""

    code = "not_acceptable"


class RangeNotSatisfiable(ClipSynthError):
    code = "range_not_satisfiable"

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"the file has {num_bytes} bytes")
        self.headers = {"Content-Range": f"bytes */{num_bytes}"}


class RateLimited(ClipSynthError):
    code = "rate_limited"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class QueueFull(RateLimited):
    code = "queue_full"


class UploadBudget(RateLimited):
    """A key, or the process, receives too many bytes at a time."""

    code = "upload_budget"


class DownloadBudget(RateLimited):
    """A key, or the process, sends too many bytes at a time: its clients read slowly."""

    code = "download_budget"


class KeptQuota(RateLimited):
    """The generations that a key keeps take too much room."""

    code = "kept_quota"


class DeadlineUnreachable(ClipSynthError):
    code = "deadline_unreachable"


class NotInTime(ClipSynthError):
    """The sound was not ready within the time that a synchronous route waits."""

    code = "not_in_time"


class GenerationFailed(ClipSynthError):
    code = "generation_failed"


class NoWorker(ClipSynthError):
    code = "no_worker"


class RedisUnavailable(ClipSynthError):
    code = "redis_unavailable"


class PayloadTooLarge(ClipSynthError):
    code = "payload_too_large"


class ReceiveTimeout(ClipSynthError):
    """The body arrived too slowly."""

    code = "receive_timeout"


class StorageUnavailable(ClipSynthError):
    """Files cannot be written or read now.

    For example a full disk, missing rights, or an object store that does not answer.
    """

    code = "storage_unavailable"


class StorageFull(ClipSynthError):
    """Redis or the disk has no room for more jobs."""

    code = "storage_full"


class ImageTooLarge(ClipSynthError):
    code = "image_too_large"


class ImageUndecodable(ClipSynthError):
    code = "image_undecodable"


class ImageNotFetched(ClipSynthError):
    code = "image_not_fetched"


class UnsupportedMedia(ClipSynthError):
    code = "unsupported_media"


class UnsupportedCoding(UnsupportedMedia):
    """The body is compressed."""

    headers: Mapping[str, str] = {"Accept-Encoding": "identity"}


class ServeError(ClipSynthError):
    """A process cannot start; the message says what to do."""

    code = "serve_error"


class ModelUnusable(ServeError):
    """A worker cannot use its bundle, now and after a restart; the message names the part."""

    code = "model_unusable"


class VideoTooLarge(ClipSynthError):
    code = "video_too_large"


class VideoUndecodable(ClipSynthError):
    code = "video_undecodable"


class TooLong(ClipSynthError):
    """A sound, or all sounds of a request together, are longer than the service makes."""

    code = "too_long"
