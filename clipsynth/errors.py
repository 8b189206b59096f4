"""Errors of the service, each with a stable `code`. Knows no HTTP; `app/responses/problems.py` decides the status."""

from __future__ import annotations


class ClipSynthError(Exception):
    """Base of all. `code` is part of the API; the message is for people and safe to show."""

    code = "internal_error"
    retry_after_s: float | None = None  # where waiting helps


class InvalidBody(ClipSynthError):
    """The body cannot be read at all, as against one whose values are refused."""

    code = "invalid_body"


class InvalidRequest(ClipSynthError):
    code = "invalid_request"


class AttributeUnavailable(ClipSynthError):
    """The model was not told of an attribute that is asked for."""

    code = "attribute_unavailable"


class Unauthorized(ClipSynthError):
    code = "unauthorized"


class Forbidden(ClipSynthError):
    code = "forbidden"


class ModelNotFound(ClipSynthError):
    code = "model_not_found"


class MethodUnavailable(ClipSynthError):
    """The model does not offer what makes the sound: no worker of it may play training clips."""

    code = "method_unavailable"


class NotFound(ClipSynthError):
    code = "not_found"


class Gone(ClipSynthError):
    code = "gone"


class NotReady(ClipSynthError):
    code = "not_ready"


class AlreadyEnded(ClipSynthError):
    code = "already_ended"


class IdempotencyMismatch(ClipSynthError):
    code = "idempotency_mismatch"


class RecipeMismatch(ClipSynthError):
    """A recipe of another version of the model than the one served."""

    code = "recipe_mismatch"


class ImageGone(ClipSynthError):
    code = "image_gone"


class RangeNotSatisfiable(ClipSynthError):
    code = "range_not_satisfiable"


class RateLimited(ClipSynthError):
    code = "rate_limited"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class QueueFull(RateLimited):
    code = "queue_full"


class DeadlineUnreachable(ClipSynthError):
    code = "deadline_unreachable"


class NotInTime(ClipSynthError):
    """The sound was not there when who waits for it had waited enough."""

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
    """A body that comes too slowly."""

    code = "receive_timeout"


class StorageUnavailable(ClipSynthError):
    """Files cannot be written or read now: a full disk, missing rights, an object store that does not answer."""

    code = "storage_unavailable"


class ImageTooLarge(ClipSynthError):
    code = "image_too_large"


class ImageUndecodable(ClipSynthError):
    code = "image_undecodable"


class ImageNotFetched(ClipSynthError):
    code = "image_not_fetched"


class UnsupportedMedia(ClipSynthError):
    code = "unsupported_media"


class ServeError(ClipSynthError):
    """The embedded service cannot start; the message says what to do."""

    code = "serve_error"


class ModelUnusable(ServeError):
    """A worker cannot serve its bundle, and will not after a restart either; the message names the part."""

    code = "model_unusable"
