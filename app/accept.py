"""From a valid request to a job on the queue: what the bundle leaves open is filled in, its limits are held."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import secrets

from app.deps import Services
from app.uploads import normalise_image
from clipsynth import idempotency
from clipsynth.errors import InvalidRequest, NotFound
from clipsynth.keys import ApiKey
from clipsynth.queue import enqueue
from clipsynth.schemas import Generation, GenerationRequest, JobPayload, ModelInfo
from clipsynth.state import new_id
from clipsynth.storage import image_key


def accept(
    services: Services,
    caller: ApiKey,
    wanted: GenerationRequest,
    picture: bytes | None,
    idempotency_key: str | None,
) -> tuple[Generation, bool]:
    """Resolve, store the picture, and queue. What is acknowledged is on the queue.

    Returns:
        The generation, and whether it had been made before under the same idempotency key.
    """
    if picture is None and wanted.image is not None:
        try:
            picture = base64.b64decode(wanted.image, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("/image: not base64") from None
    small = normalise_image(picture, services.settings) if picture is not None else None
    generation_id = new_id()
    if idempotency_key is not None:
        request = wanted.model_dump_json(exclude={"image"}).encode()
        fingerprint = hashlib.sha256(request + b"\0" + (small or b"")).hexdigest()
        generation_id = idempotency.claim(
            services.redis,
            owner=caller.id,
            key=idempotency_key,
            fingerprint=fingerprint,
            generation_id=generation_id,
            ttl_s=services.settings.result_ttl_s,
        )
        # not found: it is new, or its first request was cut off before it was queued
        with contextlib.suppress(NotFound):
            return services.state.get(generation_id, owner=caller.id), True
    payload = _resolve(
        wanted, services.state.model(wanted.model), image_key(generation_id) if small else None
    )
    if small is not None:
        payload.image_sha256 = hashlib.sha256(small).hexdigest()
    if small is not None:
        services.state.reserve(generation_id)
        services.storage.put(image_key(generation_id), small)
    enqueue(services.redis, services.state, generation_id, payload, services.settings, owner=caller.id)
    return services.state.get(generation_id), False


def _resolve(wanted: GenerationRequest, model: ModelInfo, key: str | None) -> JobPayload:
    """Fill in the bundle's defaults and a seed, and hold the bundle's limits."""
    payload = JobPayload(
        model=model.name,
        prompt=wanted.prompt,
        image_key=key,
        negative_prompt=wanted.negative_prompt,
        seed=secrets.randbelow(2**32) if wanted.seed is None else wanted.seed,
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
    if payload.negative_prompt is not None and payload.guidance_scale <= 1:
        raise InvalidRequest("/negative_prompt: needs a guidance_scale above 1")
    return payload
