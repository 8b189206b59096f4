"""From a valid request to a job on the queue: what the bundle leaves open is filled in, its limits are held."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from redis.exceptions import RedisError

from app.dependencies import Services
from app.requests.images import RequestImage, read_images
from clipsynth.admission.estimate import forecast
from clipsynth.admission.limits import Reservation, admit, release_reservation
from clipsynth.errors import DeadlineUnreachable, InvalidRequest, MethodUnavailable, NotFound, NotReady
from clipsynth.jobs import idempotency
from clipsynth.schemas.generation import Generation, ModelInfo, Webhook
from clipsynth.schemas.prompt_parser import resolve_attributes
from clipsynth.schemas.request import GenerationRequest, JobPayload, StoredPrompt
from clipsynth.security.api_keys import ApiKey
from clipsynth.security.safe_http import UrlRefused, check_url
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from clipsynth.storage import image_key

logger = logging.getLogger(__name__)
MEANWHILE_S = 5.0


def accept(
    services: Services,
    caller: ApiKey,
    wanted: GenerationRequest,
    files: Mapping[str, bytes],
    idempotency_key: str | None,
) -> tuple[Generation, bool]:
    """Resolve, take room, store the images, and queue. What is acknowledged is on the queue.

    Args:
        files: those of a form, which `wanted` names as `part:<name>`.

    Returns:
        The generation, and whether it had been made before under the same idempotency key.
    """
    state, settings = services.state, services.settings
    images = read_images(wanted, files, settings) if files or wanted.has_images else []
    webhook = None if wanted.webhook_url is None else _webhook(settings, caller, wanted)
    generation_id = f"gen_{secrets.token_hex(13)}"
    if idempotency_key is not None:
        generation_id = _claim(services, caller, wanted, images, idempotency_key, generation_id)
        # Not found: it is new, or its first request was refused or interrupted.
        with contextlib.suppress(NotFound):
            return state.get(generation_id, owner=caller.id), True
    model = state.model(wanted.model)
    payload = resolve(wanted, model, generation_id)
    # The place in the queue comes before the images: under overload nearly all requests end here.
    cost = model.cost
    work = payload.work(*((cost.distilled_guidance_range, cost.guided_share) if cost else ()))
    reservation = Reservation(generation_id, caller.id, payload.model, work)
    if not admit(services.redis, reservation, settings, cost):
        return _wait_for_other(services, caller, generation_id), True
    has_deadline = payload.deadline_s is not None
    expected = forecast(
        services.redis, payload, work, cost, owner=caller.id, reserved=True, corrected=has_deadline
    )
    try:
        if payload.deadline_s and expected.p50_s and payload.deadline_s < expected.p50_s:
            raise DeadlineUnreachable(f"/deadline_s: it would take about {expected.p50_s:.1f} s")
        if images:
            _store(services, generation_id, payload, images)
        generation = state.submit(
            generation_id,
            payload,
            settings,
            reservation=replace(reservation, eta_s=expected.base_s),
            owner=caller.id,
            webhook=webhook,
            metadata=wanted.metadata,
        )
    except Exception:
        # If Redis is away, the janitor releases it.
        with contextlib.suppress(RedisError):
            release_reservation(services.redis, reservation)
        raise
    logger.info("job accepted: %s", generation_id, extra={"job_id": generation_id, "key_id": caller.id})
    return generation, False


def _store(
    services: Services, generation_id: str, payload: JobPayload, images: Sequence[RequestImage]
) -> None:
    """Store the images and note their hashes in the payload; none if one of them is refused."""
    small = [image.normalised(services.settings) for image in images]
    services.state.reserve(generation_id)
    for image, data in zip(images, small, strict=True):
        holder = payload.prompts[image.n] if payload.prompts else payload
        holder.image_sha256 = hashlib.sha256(data).hexdigest()
        services.storage.put(image_key(generation_id, image.n), data)


def _webhook(settings: Settings, caller: ApiKey, wanted: GenerationRequest) -> Webhook:
    url = wanted.webhook_url or ""
    try:
        check_url(url, allow_loopback=settings.webhook_loopback)
    except UrlRefused as error:
        raise InvalidRequest(f"/webhook_url: {error}") from None
    if not (caller.webhook_secret or settings.webhook_secret):
        raise InvalidRequest("/webhook_url: without an API key the service needs CLIPSYNTH_WEBHOOK_SECRET")
    return Webhook(url=url, events=list(dict.fromkeys(wanted.webhook_events)))


def _claim(
    services: Services,
    caller: ApiKey,
    wanted: GenerationRequest,
    images: Sequence[RequestImage],
    key: str,
    generation_id: str,
) -> str:
    """Return the id that the idempotency key stands for; `generation_id` where it is new."""
    request = wanted.model_dump_json(exclude={"image": True, "prompts": {"__all__": {"image"}}})
    seen = [image.fingerprint for image in images]
    return idempotency.claim(
        services.redis,
        owner=caller.id,
        key=key,
        fingerprint=hashlib.sha256("\n".join([request, *seen]).encode()).hexdigest(),
        generation_id=generation_id,
        ttl_s=services.settings.result_ttl_s,
    )


def _wait_for_other(services: Services, caller: ApiKey, generation_id: str) -> Generation:
    """Wait for the other request with the same idempotency key to create the generation."""
    if not wait_until(lambda: services.state.exists(generation_id), timeout_s=MEANWHILE_S):
        raise NotReady("an earlier request with this Idempotency-Key is not done yet")
    return services.state.get(generation_id, owner=caller.id)


def resolve(wanted: GenerationRequest, model: ModelInfo, generation_id: str) -> JobPayload:
    """Fill in the bundle's defaults, a seed and where images will lie, and hold the bundle's limits."""
    if wanted.method not in model.methods:
        raise MethodUnavailable(
            f"/method: model {model.name} offers {', '.join(model.methods)}, asked for {wanted.method}"
        )
    is_retrieval = wanted.method == "retrieval"
    lone_image = wanted.image is not None or wanted.image_url is not None
    asked = None if wanted.attributes is None else wanted.attributes.given()
    prompt, attributes = resolve_attributes(wanted.prompt, asked, model.attributes, model=model.name)
    payload = JobPayload(
        model=model.name,
        prompt=prompt,
        prompts=wanted.prompts
        and [
            StoredPrompt(
                text=item.text,
                image_key=image_key(generation_id, n) if item.is_image else None,
                weight=item.weight,
            )
            for n, item in enumerate(wanted.prompts)
        ],
        composition=wanted.composition,
        image_key=image_key(generation_id) if lone_image else None,
        negative_prompt=wanted.negative_prompt,
        attributes=attributes,
        method=wanted.method,
        rank=wanted.rank,
        seed=wanted.seed if wanted.seed is not None else 0 if is_retrieval else secrets.randbelow(2**32),
        num_inference_steps=wanted.num_inference_steps or model.num_inference_steps,
        guidance_scale=model.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale,
        duration_s=wanted.duration_s or model.duration_s,
        num_outputs=wanted.num_outputs,
        deadline_s=wanted.deadline_s,
        output_formats=wanted.output_formats,
    )
    if not model.min_duration_s <= payload.duration_s <= model.max_duration_s:
        raise InvalidRequest(
            f"/duration_s: model {model.name} makes {model.min_duration_s:g} to {model.max_duration_s:g} s, asked for {payload.duration_s:g}"
        )
    if payload.guidance_scale <= 1 and not is_retrieval:
        if payload.negative_prompt is not None:
            raise InvalidRequest("/negative_prompt: needs a guidance_scale above 1")
        for n, item in enumerate(payload.prompts or ()):
            if item.weight < 0:
                raise InvalidRequest(f"/prompts/{n}/weight: a negative one needs a guidance_scale above 1")
    return payload
