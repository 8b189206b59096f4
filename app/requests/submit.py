"""From a validated request to a job in the queue."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

from redis.exceptions import RedisError

from app.dependencies import Services
from app.requests.conditions import interpret, stored_parts, stored_prompts, stored_timeline
from app.requests.images import ReadImage, RequestImage, read_images
from app.requests.recipe import ParentSound
from app.requests.texts import readable
from app.requests.video import CopiedVideo
from clipsynth.admission.limits import Admission, Claim, Reservation, release_reservation, reserve
from clipsynth.errors import (
    InvalidRequest,
    MethodUnavailable,
    NotFound,
    NotReady,
    TooLong,
)
from clipsynth.jobs import idempotency
from clipsynth.jobs.queue import withdraw
from clipsynth.jobs.store import new_id
from clipsynth.schemas.generation import Generation, JobPayload, Status, Webhook
from clipsynth.schemas.model_info import ModelInfo
from clipsynth.schemas.prompt_parser import resolve_attributes
from clipsynth.schemas.prompts import MAX_TOTAL_S, StoredParent, StoredPrompt, StoredVideo
from clipsynth.schemas.request import GenerationRequest
from clipsynth.schemas.sentences import Part
from clipsynth.schemas.understanding import Understanding
from clipsynth.security.api_keys import ApiKey
from clipsynth.security.headers import ANSWER_HEADERS
from clipsynth.security.safe_http import UrlRefused, check_url
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from clipsynth.storage import image_key, parent_key, video_key

logger = logging.getLogger(__name__)
# How long to wait for a concurrent request with the same idempotency key.
CONCURRENT_S = 5.0
WITHOUT_IMAGES: Any = {"image": True, "prompts": {"__all__": {"image"}}, "timeline": {"__all__": {"image"}}}
# Requests that wait so at a time; each occupies a thread.
_WAITING = threading.BoundedSemaphore(4)


def accept(
    services: Services,
    caller: ApiKey,
    wanted: GenerationRequest,
    files: Mapping[str, ReadImage],
    idempotency_key: str | None,
    video: CopiedVideo | None = None,
    *,
    parent: ParentSound | None = None,
    is_replay: bool = False,
    sent: str | None = None,
    precision: str | None = None,
    sent_as: Mapping[str, str] | None = None,
) -> tuple[Generation, bool]:
    """Resolve a request, reserve a place, store its images, and submit its job.

    Args:
        files: images of a form, which `wanted` names as `part:<name>`.
        parent: the output that it varies or continues.
        is_replay: as for `resolve`.
        precision: of the recipe that is replayed.
        sent_as: names of the fields in another body than `wanted`, as of `clipsynth.errors.naming`.
        sent: path and body of a request that names its parent; the idempotency key belongs to them.

    Returns:
        The generation, and whether an earlier request with the same idempotency key has created it.
    """
    settings, state = services.settings, services.state
    if (wanted.ttl_s or 0) > settings.result_ttl_s:
        raise InvalidRequest(f"/ttl_s: at most {settings.result_ttl_s}")
    images = read_images(wanted, files, settings) if files or wanted.has_images else []
    webhook = _webhook(settings, caller, wanted) if wanted.webhook_url is not None else None
    sent_as = sent_as or fields_sent(wanted)
    generation_id, claim = new_id(), None
    if idempotency_key is not None:
        text = sent or _sent(wanted, images, video)
        # With `sent`, the caller has just looked for an earlier one.
        if not sent and (earlier := repeated(services, caller, idempotency_key, text)):
            return earlier, True
        claim = _claim(caller, idempotency_key, text, generation_id)
    services.budgets.room.check()
    model = state.model(wanted.model)
    asks = model.sounds and not is_replay and not video
    parts, known = interpret(services, wanted, model) if asks else ([], [])
    stored = video.stored if video else None, parent.stored if parent else None
    payload = resolve(wanted, model, generation_id, settings, *stored, parts=parts, is_replay=is_replay)
    if model.status == "ready" and precision not in (None, model.precision):
        payload.precision = precision
    reservation = Reservation(generation_id, caller.id, payload.model, payload.work(model), claim)
    reservation.rate_per_s, reservation.max_kept_bytes = caller.rate_per_s, caller.max_kept_bytes
    waits = bool(images or video or parent or payload.deadline_s is not None)
    keeps_s = 0 if waits else settings.result_ttl_s
    admission = Admission(reservation, settings, model.cost, payload.num_inference_steps, keeps_s)
    generation, reserved = None, False
    try:
        # Admission comes before the images, because it is the cheapest reason to refuse a request.
        reserved = waits and reserve(services.redis, admission, payload.deadline_s)
        if reserved or not waits:
            if images:
                store_images(services, generation_id, payload, images)
            if video:
                state.expect_files(generation_id)
                services.storage.put(video_key(generation_id, video.stored.extension), video.path)
            if parent and payload.parent:
                data = parent.read()
                payload.parent.audio_sha256 = hashlib.sha256(data).hexdigest()
                state.expect_files(generation_id)
                services.storage.put(payload.parent.audio_key, data)
            generation = state.submit(
                generation_id,
                payload,
                reservation,
                admission=None if waits else admission,
                webhook=webhook,
                metadata=wanted.metadata,
                ttl_s=wanted.ttl_s,
                understanding=Understanding.of(payload, known, wanted.prompt if parts else None)
                if known
                else None,
                sent_as=sent_as,
            )
    except Exception:
        if reserved:
            with contextlib.suppress(RedisError):  # then the janitor releases it
                release_reservation(services.redis, reservation)
        raise
    finally:
        if reservation.requests:
            ANSWER_HEADERS.get({}).update(_rate_headers(*reservation.requests))
    if generation is None:
        if claim and reservation.bound:
            generation_id = idempotency.bound_id(reservation.bound, claim)
        return _earlier(services, caller, generation_id), True
    logger.info("job accepted: %s", generation_id, extra={"job_id": generation_id, "key_id": caller.id})
    return generation, False


def _rate_headers(left: int, most: int, seconds: int) -> dict[str, str]:
    """Return the headers of draft-ietf-httpapi-ratelimit-headers: what a key may send until when."""
    return {
        "RateLimit-Policy": f'"requests";q={most}',
        "RateLimit": f'"requests";r={left};t={seconds}',
    }


def fields_sent(wanted: GenerationRequest) -> dict[str, str]:
    """Return the names that fields of the payload have in the request, where they differ."""
    return {} if wanted.image_url is None else {"/image": "/image_url"}


def store_images(
    services: Services, generation_id: str, payload: JobPayload, images: Sequence[RequestImage]
) -> None:
    """Store the images and note their hashes in the payload; store none if one is refused."""
    encoded = [image.normalised(services.settings) for image in images]
    services.state.expect_files(generation_id)
    for image, data in zip(images, encoded, strict=True):
        items: Sequence[StoredPrompt] = payload.prompts or payload.timeline or ()
        holder = items[image.n] if items else payload
        holder.image_sha256 = hashlib.sha256(data).hexdigest()
        services.storage.put(holder.image_key or "", data)


def cancel_generation(services: Services, generation_id: str, *, owner: str | None = None) -> Generation:
    """Cancel a generation if it is queued, else have its worker stop it; raise as `JobStore.cancel`."""
    services.state.cancel(generation_id, owner=owner)
    generation = services.state.get(generation_id)
    if generation.status is Status.CANCELED:
        withdraw(services.redis, generation_id, generation.model)
    return generation


def _webhook(settings: Settings, caller: ApiKey, wanted: GenerationRequest) -> Webhook:
    url = wanted.webhook_url or ""
    try:
        check_url(url, allow_loopback=settings.webhook_loopback)
    except UrlRefused as error:
        raise InvalidRequest(f"/webhook_url: {error}") from None
    if not (caller.webhook_secret or settings.webhook_secret):
        raise InvalidRequest("/webhook_url: without an API key the service needs CLIPSYNTH_WEBHOOK_SECRET")
    return Webhook(url=url, events=list(dict.fromkeys(wanted.webhook_events)))


def _sent(wanted: GenerationRequest, images: Sequence[RequestImage], video: CopiedVideo | None) -> str:
    """Return the text that stands for a request: its fields and the hashes of its files."""
    parts = [wanted.model_dump_json(exclude=WITHOUT_IMAGES), *(image.fingerprint for image in images)]
    return "\n".join([*parts, f"/video {video.stored.sha256}"] if video else parts)


def _claim(caller: ApiKey, key: str, sent: str, generation_id: str) -> Claim:
    fingerprint = hashlib.sha256(sent.encode()).hexdigest()
    return idempotency.claim(owner=caller.id, key=key, fingerprint=fingerprint, generation_id=generation_id)


def repeated(services: Services, caller: ApiKey, key: str, sent: str) -> Generation | None:
    """Return the generation of an earlier request with the same idempotency key, if there is one.

    Raises:
        IdempotencyMismatch: it was another request.
        NotReady: as `_earlier`.
    """
    claim = _claim(caller, key, sent, "")
    bound = cast(bytes | None, services.redis.get(claim.key))
    return _earlier(services, caller, idempotency.bound_id(bound, claim)) if bound else None


def _earlier(services: Services, caller: ApiKey, generation_id: str) -> Generation:
    """Return the generation of an earlier request with the same idempotency key, which may still run.

    Raises:
        NotReady: it has not created its generation within `CONCURRENT_S`.
    """
    with contextlib.suppress(NotFound):
        return services.state.get(generation_id, owner=caller.id)
    is_free = _WAITING.acquire(blocking=False)
    try:
        if not (is_free and wait_until(lambda: services.state.exists(generation_id), timeout_s=CONCURRENT_S)):
            raise NotReady("an earlier request with this Idempotency-Key is still running")
    finally:
        if is_free:
            _WAITING.release()
    return services.state.get(generation_id, owner=caller.id)


def resolve(
    wanted: GenerationRequest,
    model: ModelInfo,
    generation_id: str,
    settings: Settings,
    video: StoredVideo | None = None,
    parent: StoredParent | None = None,
    *,
    parts: Sequence[Part] = (),
    is_replay: bool = False,
) -> JobPayload:
    """Fill in the model's defaults, a seed and the keys of images; check the limits.

    Args:
        parts: the sounds that the prompt asks for, if they are several.
        is_replay: the texts come from a recipe and stay as they are.
    """

    def read(text: str | None, pointer: str) -> str | None:
        return text if text is None or is_replay else readable(text, model, pointer)

    if wanted.method not in model.methods:
        raise MethodUnavailable(
            f"/method: model {model.name} offers {', '.join(model.methods)}, not {wanted.method}"
        )
    is_retrieval = wanted.method == "retrieval"
    has_image = wanted.image is not None or wanted.image_url is not None
    requested = None if wanted.attributes is None else wanted.attributes.model_dump(exclude_none=True)
    # Words of a part bind to it.
    text = None if parts else read(wanted.prompt, "/prompt")
    prompt, attributes = resolve_attributes(text, requested, model.attributes, model=model.name)
    sounds: dict[str, Any] = {
        "composition": wanted.composition,
        "duration_s": wanted.duration_s or _length_s(wanted, video, model, settings) or model.duration_s,
    }
    if parts:
        sounds |= stored_parts(parts, wanted, requested, model, settings)
    elif wanted.prompts is not None:
        sounds["prompts"] = stored_prompts(wanted.prompts, model, generation_id, read)
    elif wanted.timeline:
        sounds["timeline"] = stored_timeline(wanted, model, generation_id, read)
    payload = JobPayload(
        model=model.name,
        prompt=prompt,
        image_key=image_key(generation_id) if has_image else None,
        negative_prompt=read(wanted.negative_prompt, "/negative_prompt"),
        attributes=attributes,
        method=wanted.method,
        rank=wanted.rank,
        loop=wanted.loop,
        seed=wanted.seed if wanted.seed is not None else 0 if is_retrieval else secrets.randbelow(2**32),
        num_inference_steps=wanted.num_inference_steps or model.num_inference_steps,
        guidance_scale=model.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale,
        video=video,
        parent=parent
        and parent.model_copy(update={"audio_key": parent_key(generation_id, parent.audio_key)}),
        num_outputs=wanted.num_outputs,
        deadline_s=wanted.deadline_s,
        output_formats=wanted.output_formats,
        **sounds,
    )
    pointer = "/duration_s"
    if wanted.timeline and not wanted.duration_s:
        # Its length is that of the items.
        last = max((item.end_s, n) for n, item in enumerate(wanted.timeline))[1]
        pointer = f"/timeline/{last}/end_s"
    _check_length(payload, model, settings, pointer)
    if video and payload.duration_s > max(video.seconds, model.min_duration_s):
        raise InvalidRequest(f"/duration_s: the video has {video.seconds:g} s")
    if payload.guidance_scale <= 1 and not is_retrieval:
        if payload.negative_prompt is not None:
            raise InvalidRequest("/negative_prompt: requires a guidance_scale above 1")
        for n, item in enumerate(payload.prompts or ()):
            if item.weight < 0:
                raise InvalidRequest(f"/prompts/{n}/weight: below 0 requires a guidance_scale above 1")
    return payload


def _length_s(
    wanted: GenerationRequest, video: StoredVideo | None, model: ModelInfo, settings: Settings
) -> float:
    """Return the seconds of a timeline, or of sound for a video in whole milliseconds; 0 without them."""
    if video is None:
        return max((item.end_s for item in wanted.timeline or ()), default=0.0)
    longest_s = max(settings.max_duration_s, model.window_s or model.max_duration_s)
    return round(min(max(video.seconds, model.min_duration_s), longest_s), 3)


def _check_length(payload: JobPayload, model: ModelInfo, settings: Settings, pointer: str) -> None:
    """Raise InvalidRequest for a sound that is too short, and TooLong for one, or all, that are too long.

    Args:
        pointer: the field that sets the length.
    """
    seconds, total_s = payload.duration_s, payload.duration_s * payload.num_outputs
    # A model without windows is served by an older worker.
    longest_s = model.window_s or model.max_duration_s
    if model.window_s and payload.method == "diffusion":
        longest_s = max(longest_s, settings.max_duration_s)
    if seconds < model.min_duration_s:
        raise InvalidRequest(f"{pointer}: model {model.name} makes {model.min_duration_s:g} s or more")
    if seconds > longest_s:
        raise TooLong(f"{pointer}: a sound has at most {longest_s:g} s, requested {seconds:g}")
    if total_s > MAX_TOTAL_S:
        raise TooLong(
            f"/num_outputs: the sounds of a request have at most {MAX_TOTAL_S:g} s, requested {total_s:g}"
        )
    if model.cost and (took_s := payload.work(model) * model.cost.audio_step_s) > settings.job_timeout_s:
        raise TooLong(
            f"{pointer}: it would take about {took_s:.0f} s; a job ends after {settings.job_timeout_s} s"
        )
