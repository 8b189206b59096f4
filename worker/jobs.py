"""What a job is: from the payload on the queue to files in storage and a final public state. Knows no RQ."""

from __future__ import annotations

import io
import logging
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from clipsynth.errors import NotFound
from clipsynth.recipe import Recipe
from clipsynth.record import Standing
from clipsynth.schemas import MEDIA_TYPES, TERMINAL, JobPayload, Output, Problem, Status, output_seed
from clipsynth.state import State
from clipsynth.storage import Storage, audio_key
from models.manifest import Manifest
from models.sampler import Row
from worker.cost import Cost
from worker.engine import Model, Ticket, is_out_of_memory

logger = logging.getLogger(__name__)


class Predictor(Model, Protocol):
    """A model that reads payloads; worker/predict.py has the one that is served."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def dtype(self) -> str: ...

    def num_tokens(self, duration_s: float) -> int: ...

    def measure(self) -> Cost: ...

    def rows(self, payload: JobPayload, image: Image.Image | None) -> list[Row]: ...

    def encode_response(self, waveform: np.ndarray) -> bytes: ...


class Refused(Exception):
    """The bundle cannot do what the payload asks for; the message is for the client."""


class Jobs:
    """Makes tickets for the engine of payloads, and public states of ended tickets."""

    def __init__(self, predictor: Predictor, state: State, storage: Storage, *, max_attempts: int) -> None:
        self.predictor, self.state, self.storage, self.max_attempts = predictor, state, storage, max_attempts

    def read(self, generation_id: str, args: Any, standing: Standing | None) -> JobPayload | None:
        """Return the payload of a job that is to be run; otherwise see to its public state and return None."""
        if standing is None or standing.status in TERMINAL or standing.cancel_requested:
            self._cancel(generation_id)
            return None
        if standing.overdue:
            self.state.change(generation_id, Status.EXPIRED)
            return None
        if standing.lost >= self.max_attempts:
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

    def ticket(self, generation_id: str, payload: JobPayload) -> Ticket:
        return Ticket(
            prepare=partial(self._prepare, payload),
            deliver=partial(self._deliver, generation_id, payload),
            num_rows=payload.num_outputs,
            num_tokens=self.predictor.num_tokens(payload.duration_s),
            duration_s=payload.duration_s,
        )

    def _prepare(self, payload: JobPayload) -> list[Row]:
        try:
            picture = self.storage.get(payload.image_key) if payload.image_key else None
            return self.predictor.rows(payload, Image.open(io.BytesIO(picture)) if picture else None)
        except (ValueError, NotFound) as error:
            raise Refused(str(error)) from error

    def _deliver(self, generation_id: str, payload: JobPayload, n: int, waveform: np.ndarray) -> list[Output]:
        """Write output n in every format asked for."""
        sample_rate = self.predictor.manifest.sample_rate
        outputs = []
        for fmt in payload.output_formats:
            self.storage.put(audio_key(generation_id, n, fmt), self.predictor.encode_response(waveform))
            outputs.append(
                Output(
                    index=n,
                    url=f"/v1/generations/{generation_id}/audio/{n}",
                    media_type=MEDIA_TYPES[fmt],
                    format=fmt,
                    duration_s=len(waveform) / sample_rate,
                    sample_rate=sample_rate,
                    seed=output_seed(payload.seed, n),
                    recipe=self._recipe(payload, n),
                )
            )
        return outputs

    def _recipe(self, payload: JobPayload, n: int) -> str:
        taken = Recipe.model_fields.keys() & JobPayload.model_fields.keys() - {"v", "seed"}
        return Recipe(
            **payload.model_dump(include=set(taken)),
            seed=output_seed(payload.seed, n),
            version=self.predictor.manifest.version,
            dtype=self.predictor.dtype,
            torch=torch.__version__,
        ).token()

    # ------------------------------------------------------------------------------------------------ the end

    def settle(
        self, generation_id: str, ticket: Ticket, stopped_by: Status | Problem | None
    ) -> Status | None:
        """Give an ended ticket's generation its final state and return it; None where it was forgotten.

        `stopped_by` is why the worker had it stopped. Another worker that took this one for lost may have been first.
        """
        if isinstance(stopped_by, Problem):
            self.state.fail(generation_id, stopped_by)
        elif stopped_by is Status.EXPIRED:
            self.state.change(generation_id, Status.EXPIRED)
        elif stopped_by is None and ticket.error is not None:
            self.state.fail(generation_id, self._problem(generation_id, ticket.error))
        elif stopped_by is None:
            outputs = [output for n in sorted(ticket.results) for output in ticket.results[n]]
            self.state.succeed(generation_id, outputs)
        standing = self.state.standings([generation_id])[0]
        if standing is None or standing.status not in TERMINAL or standing.status is Status.CANCELED:
            self._cancel(generation_id)
            return Status.CANCELED if standing else None
        logger.info("job %s: %s", standing.status, generation_id)
        return standing.status

    def _problem(self, generation_id: str, error: Exception) -> Problem:
        """Return what the client may know of an error; the log has the rest."""
        if isinstance(error, Refused):
            return Problem(code="invalid_request", detail=str(error))
        logger.error("job failed: %s", generation_id, exc_info=error)
        if is_out_of_memory(error):
            return Problem(
                code="out_of_memory", detail="the device has too little memory for this sound alone"
            )
        if isinstance(error, OSError):
            return Problem(code="storage_failed", detail="the sound could not be stored")
        return Problem(code="generation_failed", detail="the model could not make this sound")

    def _cancel(self, generation_id: str) -> None:
        """End a generation that nobody waits for, and remove its files; leave one that ended otherwise."""
        standing = self.state.standings([generation_id])[0]
        if standing is None or standing.status is Status.CANCELED or standing.cancel_requested:
            self.state.change(generation_id, Status.CANCELED)
            try:
                self.storage.delete(generation_id)
            except OSError:
                logger.warning("files of %s are left to the janitor", generation_id, exc_info=True)

    def abandoned(self, generation_id: str) -> None:
        """Count that the job's worker was lost; RQ puts the job back on the queue."""
        if self.state.abandon(generation_id) >= self.max_attempts:
            self._give_up(generation_id)

    def _give_up(self, generation_id: str) -> None:
        detail = f"the worker was lost {self.max_attempts} times while it ran this job alone"
        self.state.fail(generation_id, Problem(code="worker_lost", detail=detail))
