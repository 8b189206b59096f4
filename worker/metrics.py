"""Prometheus metrics of a worker process, as module globals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from rq.job import Job
from rq.utils import now as rq_now

from clipsynth.schemas.generation import JobPayload, Status

# At run time these would load torch.
if TYPE_CHECKING:
    from models.sampler import SamplerRow
    from worker.engine import SamplingRequest

REGISTRY = CollectorRegistry()
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
_FACTORS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)

JOBS = Counter(
    "clipsynth_jobs",
    "Jobs ended by this worker. kind: text, image or mix; outcome: final status, or not_made if it had one.",
    ("model", "kind", "outcome"),
    registry=REGISTRY,
)
JOB_SECONDS = Histogram(
    "clipsynth_job_seconds",
    "Time of a job per stage: queue (until claimed), encode_prompt, batch_wait (until its first step), "
    "sample (its steps), vocode (a vocoder call), write (encode and store), total (until the final state).",
    ("stage",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
BATCH_SIZE = Histogram("clipsynth_batch_size", "Rows per network call.", buckets=_ROWS, registry=REGISTRY)
BATCH_FILL = Histogram(
    "clipsynth_batch_fill_ratio",
    "Tokens of the rows divided by tokens of the padded batch.",
    buckets=_SHARES,
    registry=REGISTRY,
)
STEP_SECONDS = Histogram(
    "clipsynth_step_seconds", "Time of a network call.", buckets=_SECONDS, registry=REGISTRY
)
STEPS = Counter("clipsynth_steps", "Denoising steps, summed over rows.", registry=REGISTRY)
REAL_TIME_FACTOR = Histogram(
    "clipsynth_real_time_factor",
    "Seconds from claim to end per second of sound.",
    buckets=_FACTORS,
    registry=REGISTRY,
)
UP = Gauge("clipsynth_worker_up", "1 once the bundle is loaded.", ("model", "version"), registry=REGISTRY)
PRECISIONS = Gauge(
    "clipsynth_model_precisions",
    "Precisions among the workers of a model. With two, a seed may mean two sounds.",
    ("model",),
    registry=REGISTRY,
)
CLAIMED = Gauge("clipsynth_worker_jobs", "Claimed jobs.", registry=REGISTRY)
STEP_AGE = Gauge(
    "clipsynth_last_step_age_seconds",
    "Time since the last step; 0 without claimed jobs.",
    registry=REGISTRY,
)
LEASE_RENEWALS = Counter("clipsynth_lease_renewals", "Heartbeats that renewed all leases.", registry=REGISTRY)
RECOVERED = Counter(
    "clipsynth_recovered_jobs", "Jobs of lost workers requeued by this worker.", registry=REGISTRY
)
OUT_OF_MEMORY = Counter("clipsynth_out_of_memory", "Network calls that ran out of memory.", registry=REGISTRY)


def kind(payload: JobPayload) -> str:
    """Return the kind of a payload's conditions: text, image or mix."""
    wanted = [item for item in payload.conditions if item.weight > 0]
    if len(wanted) != 1:
        return "mix"
    return "text" if wanted[0].text is not None else "image"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Observe the duration of the block, unless it raises."""
    started = time.monotonic()
    yield
    JOB_SECONDS.labels(name).observe(time.monotonic() - started)


def count_step(rows: Sequence[SamplerRow], seconds: float) -> None:
    """Count a network call."""
    lengths = [row.num_tokens for row in rows]
    BATCH_SIZE.observe(len(rows))
    BATCH_FILL.observe(sum(lengths) / (max(lengths) * len(lengths)))
    STEP_SECONDS.observe(seconds)
    STEPS.inc(len(rows))


def count_finished(
    model: str, job: Job, request: SamplingRequest, status: Status | None, seconds: float
) -> None:
    """Count a finished job.

    Args:
        status: the status it was given; None if it already had a final one.
        seconds: time since the claim.
    """
    JOBS.labels(model, request.kind, status or "not_made").inc()
    if job.created_at:
        JOB_SECONDS.labels("total").observe((rq_now() - job.created_at).total_seconds())
    if status is Status.SUCCEEDED:
        REAL_TIME_FACTOR.observe(seconds / (request.num_rows * request.duration_s))
