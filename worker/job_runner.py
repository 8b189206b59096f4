"""What a job is: from the payload on the queue to files in storage and a final public state. Knows no RQ."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from clipsynth.errors import NotFound, StorageUnavailable
from clipsynth.jobs.record import JobStatusView
from clipsynth.jobs.store import End, JobStore
from clipsynth.previews import put_views
from clipsynth.schemas.generation import (
    MEDIA_TYPES,
    TERMINAL,
    JobPayload,
    Nearness,
    Output,
    Problem,
    Status,
    TrainingClip,
    output_seed,
)
from clipsynth.schemas.replay_token import ReplayToken
from clipsynth.storage import Storage, audio_key, file_name
from models.sampler import SamplerRow
from worker.engine import SamplingRequest, is_out_of_memory
from worker.metrics import RECOVERED, kind
from worker.model_protocol import ServingModel
from worker.previews import peaks_json, spectrogram_png

logger = logging.getLogger(__name__)


class JobRejected(Exception):
    """The bundle cannot do what the payload asks for; the message is for the client."""

    code = "invalid_request"


class Unavailable(JobRejected):
    code = "method_unavailable"


@contextmanager
def refusing() -> Iterator[None]:
    """Make of what the bundle cannot do, and of an image that is gone, what the client is told."""
    try:
        yield
    except (ValueError, NotFound) as error:
        raise JobRejected(str(error)) from error


class JobRunner:
    """Makes tickets for the engine of payloads, and public states of ended tickets."""

    def __init__(self, model: ServingModel, state: JobStore, storage: Storage, *, max_attempts: int) -> None:
        self.model, self.state, self.storage, self.max_attempts = model, state, storage, max_attempts

    def read(self, generation_id: str, args: Any, status_view: JobStatusView | None) -> JobPayload | None:
        """Return the payload of a job that is to be run; otherwise see to its public state and return None."""
        if status_view is None or status_view.status in TERMINAL or status_view.cancel_requested:
            self._cancel(generation_id)
            return None
        if status_view.overdue:
            self.state.change(generation_id, Status.EXPIRED)
            return None
        if status_view.lost >= self.max_attempts:
            self._give_up(generation_id)
            return None
        try:
            named, raw_payload = args
            payload = JobPayload.model_validate(raw_payload)
            if named != generation_id:
                raise ValueError("of another generation")
        except (ValueError, TypeError) as error:
            count = error.error_count() if isinstance(error, ValidationError) else 1
            self.refuse(generation_id, f"payload: {count} errors")
            return None
        return payload

    def refuse(self, generation_id: str, detail: str) -> None:
        self.state.fail(generation_id, Problem(code="invalid_request", detail=detail))

    def ticket(self, generation_id: str, payload: JobPayload) -> SamplingRequest:
        shortcut = partial(self._retrieve, generation_id, payload)
        return SamplingRequest(
            shortcut=shortcut if payload.method == "retrieval" else None,
            prepare=partial(self._prepare, payload),
            deliver=partial(self._deliver, generation_id, payload),
            num_rows=payload.num_outputs,
            num_tokens=self.model.num_tokens(payload.duration_s),
            duration_s=payload.duration_s,
            passes=sum(payload.branches(self.model.distilled_guidance_range)),
            kind=kind(payload),
        )

    def _prepare(self, payload: JobPayload) -> list[SamplerRow]:
        with refusing():
            return self.model.rows(payload, self._images(payload))

    def _images(self, payload: JobPayload) -> dict[str, Image.Image]:
        keys = [condition.image_key for condition in payload.conditions if condition.image_key]
        return {key: Image.open(io.BytesIO(self.storage.get(key))) for key in keys}

    def _retrieve(self, generation_id: str, payload: JobPayload) -> Iterator[list[Output]]:
        """Find the training clips that a payload asks for, and write each as an output."""
        with refusing():
            if not self.model.retrieves:
                raise Unavailable("this worker has no training sounds to play")
            clips = self.model.nearest_clips(payload, self._images(payload))
        for n, number in enumerate(clips):
            waveform, clip = self.model.clip(number, payload.duration_s)
            yield self._deliver(generation_id, payload, n, waveform, clip)

    def _deliver(
        self,
        generation_id: str,
        payload: JobPayload,
        n: int,
        waveform: np.ndarray,
        clip: TrainingClip | None = None,
    ) -> list[Output]:
        """Write output n in every format asked for, and what of it can be seen; `clip` is what it was retrieved from."""
        sample_rate = self.model.manifest.sample_rate
        put_views(
            self.storage,
            generation_id,
            n,
            spectrogram=spectrogram_png(self.model.log_mel(waveform)),
            peaks=peaks_json(waveform, sample_rate),
        )
        recipe = self._recipe(payload, n)
        how = (
            f"retrieved by CLIPSynth from {clip.source} ({clip.licence})"
            if clip
            else "generated by CLIPSynth"
        )
        comment = f"{how}; recipe {recipe.id}"
        nearness = Nearness() if clip else self.model.nearness(waveform)
        outputs = []
        for fmt in payload.output_formats:
            data = self.model.encode_response(waveform, fmt, comment=comment)
            self.storage.put(audio_key(generation_id, n, fmt), data)
            outputs.append(
                Output(
                    index=n,
                    url=f"/v1/generations/{generation_id}/audio/{n}"
                    + ("" if fmt == payload.output_formats[0] else f"?format={fmt}"),
                    media_type=MEDIA_TYPES[fmt],
                    format=fmt,
                    filename=file_name(generation_id, n, fmt),
                    duration_s=len(waveform) / sample_rate,
                    sample_rate=sample_rate,
                    seed=output_seed(payload.seed, n),
                    clip=clip,
                    **dict(nearness),
                    recipe=recipe.token(),
                    spectrogram_url=f"/v1/generations/{generation_id}/spectrogram/{n}",
                    peaks_url=f"/v1/generations/{generation_id}/peaks/{n}",
                )
            )
        return outputs

    def _recipe(self, payload: JobPayload, n: int) -> ReplayToken:
        taken = ReplayToken.model_fields.keys() & JobPayload.model_fields.keys() - {"v", "seed", "rank"}
        return ReplayToken(
            **payload.model_dump(include=set(taken)),
            rank=payload.rank + n if payload.method == "retrieval" else 0,
            seed=output_seed(payload.seed, n),
            version=self.model.manifest.version,
            dtype=self.model.dtype,
            torch=torch.__version__,
        )

    # ------------------------------------------------------------------------------------------------ the end

    def outcome(
        self, generation_id: str, ticket: SamplingRequest, stopped_by: Status | Problem | None
    ) -> End:
        """Return how an ended ticket's generation is to end; `stopped_by` is why the worker had it stopped."""
        if isinstance(stopped_by, Status):
            return End(generation_id, stopped_by)
        if stopped_by is not None or ticket.error is not None:
            problem = stopped_by or self._problem(generation_id, cast(Exception, ticket.error))
            return End(generation_id, Status.FAILED, {"error": problem.model_dump_json()})
        outputs = [o.model_dump() for n in sorted(ticket.results) for o in ticket.results[n]]
        return End(generation_id, Status.SUCCEEDED, {"outputs": outputs})

    def confirm(self, end: End, *, made: bool) -> None:
        """See to what follows an end. It was not made where its cancel came first, which ended it, or another worker that took this one for lost."""
        if not made or end.status is Status.CANCELED:
            self._cancel(end.generation_id)
        if made:
            logger.info("job %s: %s", end.status, end.generation_id)

    def _problem(self, generation_id: str, error: Exception) -> Problem:
        """Return what the client may know of an error; the log has the rest."""
        if isinstance(error, JobRejected):
            return Problem(code=error.code, detail=str(error))
        logger.error("job failed: %s", generation_id, exc_info=error)
        if is_out_of_memory(error):
            return Problem(
                code="out_of_memory", detail="the device has too little memory for this sound alone"
            )
        if isinstance(error, StorageUnavailable):
            return Problem(code="storage_failed", detail="the sound could not be stored")
        return Problem(code="generation_failed", detail="the model could not make this sound")

    def _cancel(self, generation_id: str) -> None:
        """End a generation that nobody waits for, and remove its files; leave one that ended otherwise."""
        status_view = self.state.status_views([generation_id])[0]
        if status_view is None or status_view.status is Status.CANCELED or status_view.cancel_requested:
            self.state.change(generation_id, Status.CANCELED)
            try:
                self.storage.delete(generation_id)
            except StorageUnavailable:
                logger.warning("files of %s are left to the janitor", generation_id, exc_info=True)

    def abandoned(self, generation_id: str) -> None:
        """Count that the job's worker was lost; RQ puts the job back on the queue."""
        RECOVERED.inc()
        if self.state.abandon(generation_id) >= self.max_attempts:
            self._give_up(generation_id)

    def _give_up(self, generation_id: str) -> None:
        detail = f"the worker was lost {self.max_attempts} times while it ran this job alone"
        self.state.fail(generation_id, Problem(code="worker_lost", detail=detail))
