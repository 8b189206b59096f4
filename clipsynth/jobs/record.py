"""What Redis holds of one generation, read: the resource that clients see, and its standing that workers go by."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ResponseError

from clipsynth.redis_keys import RECORD_PREFIX
from clipsynth.schemas.generation import Delivery, Generation, Output, Problem, Progress, Status, Webhook
from clipsynth.schemas.request import JobPayload

STATUS_FIELDS = ("status", "cancel_requested", "solo", "lost", "deadline_at")  # what Standing.read takes


def is_wrong_type(error: Exception) -> bool:
    """Return whether Redis refused a command because its key holds another type: somebody wrote there."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def results(pipeline: Pipeline) -> list[Any]:
    """Execute a pipeline; a command whose key is of a wrong type has the error for its result, so that it does not fail the others. Other errors are raised."""
    found = pipeline.execute(raise_on_error=False)
    for result in found:
        if isinstance(result, Exception) and not is_wrong_type(result):
            raise result
    return found


def record_key(generation_id: str) -> str:
    """Return the name of a generation's hash."""
    return RECORD_PREFIX + generation_id


@dataclass(frozen=True)
class JobStatusView:
    """A generation as its worker sees it: `solo` is that it must run alone, `lost` how often it was lost with its worker when alone."""

    status: Status
    cancel_requested: bool
    run_alone: bool
    lost: int
    deadline_at: float | None

    @classmethod
    def read(cls, values: Any) -> JobStatusView | None:
        """Return the standing that the values of STATUS_FIELDS tell; None where there is no record, or none that can be read."""
        try:
            status, cancel_requested, run_alone, lost, deadline_at = values
            return cls(
                Status(status.decode()),
                cancel_requested is not None,
                run_alone is not None,
                int(lost or 0),
                float(deadline_at) if deadline_at else None,
            )
        except (AttributeError, TypeError, ValueError):
            return None

    @property
    def overdue(self) -> bool:
        return self.deadline_at is not None and time.time() >= self.deadline_at


def read_resource(generation_id: str, raw: dict[bytes, bytes], progress: bytes | None) -> Generation | None:
    """Return the resource of a record; None where there is none."""
    if not raw:
        return None
    fields = {k.decode(): v.decode() for k, v in raw.items()}
    return resource(generation_id, fields, JobPayload.known(fields["input"]), progress)


def resource(
    generation_id: str, fields: Mapping[str, str], payload: JobPayload, progress: bytes | None = None
) -> Generation:
    """Return the resource of a record's fields."""
    status = Status(fields["status"])
    return Generation(
        id=generation_id,
        status=status,
        created_at=float(fields["created_at"]),
        started_at=float(fields["started_at"]) if "started_at" in fields else None,
        finished_at=float(fields["finished_at"]) if "finished_at" in fields else None,
        expires_at=float(fields["expires_at"]) if "expires_at" in fields else None,
        model=payload.model,
        input=payload,
        seed=payload.seed,
        progress=Progress.model_validate_json(progress) if progress and status is Status.PROCESSING else None,
        outputs=[Output.model_validate(o) for o in json.loads(fields.get("outputs", "[]"))],
        error=Problem.model_validate_json(fields["error"]) if "error" in fields else None,
        webhook=_webhook(fields) if "webhook_url" in fields else None,
        metadata=json.loads(fields.get("metadata", "{}")),
        links={
            "self": f"/v1/generations/{generation_id}",
            "events": f"/v1/generations/{generation_id}/events",
            "cancel": f"/v1/generations/{generation_id}/cancel",
            "recipe": f"/v1/generations/{generation_id}/recipe",
        },
    )


def _webhook(fields: Mapping[str, str]) -> Webhook:
    noted = [v for name, v in sorted(fields.items()) if name.startswith("delivery:")]
    return Webhook(
        url=fields["webhook_url"],
        events=fields["webhook_events"].split(","),
        deliveries=[Delivery.model_validate_json(v) for v in noted],
    )
