"""Entry of a worker process: announce, load once, take jobs until SIGTERM. One process serves one bundle."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import ValidationError
from redis.exceptions import RedisError
from rq.timeouts import JobTimeoutException

from clipsynth.errors import ModelUnusable, NotFound, ServeError
from clipsynth.process import let_threads_sleep
from clipsynth.queue import connect, get_queue
from clipsynth.schemas import (
    MEDIA_TYPES,
    JobPayload,
    ModelInfo,
    Output,
    Problem,
    Progress,
    Status,
    output_seed,
)
from clipsynth.settings import Settings
from clipsynth.state import MODEL_TTL_S, State
from clipsynth.storage import Storage, audio_key
from models.manifest import Manifest

if TYPE_CHECKING:
    from worker.predict import Predictor

logger = logging.getLogger(__name__)
PROGRESS_INTERVAL_S = 0.25


def main(settings: Settings) -> None:
    """Run a worker.

    Raises:
        ServeError: no Redis URL. ModelUnusable: the bundle or device cannot be used, and trying again would not help.
    """
    if not settings.redis_url:
        raise ServeError("a worker needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    started = time.perf_counter()
    try:
        info = model_info(Manifest.read(settings.model))
    except (OSError, ValueError) as error:
        raise ModelUnusable(str(error)) from error
    state = State.from_settings(connect(settings.redis_url), settings)
    state.announce_starting(info)
    try:
        predictor = _load(settings)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        state.announce_stopped(info.name)
        raise ModelUnusable(str(error)) from error

    from worker.rq_worker import GenerationJob, LeaseWorker

    handler = Handler(predictor, state, Storage(settings.results_url), max_attempts=settings.max_attempts)
    GenerationJob.run = staticmethod(handler.run)
    GenerationJob.abandoned = staticmethod(handler.abandoned)
    state.announce(info)
    threading.Thread(target=_keep_announcing, args=(state, info), daemon=True).start()
    logger.info("worker ready in %.1f s: model %s %s", time.perf_counter() - started, info.name, info.version)
    queue = get_queue(info.name, connect(settings.redis_url))
    worker = LeaseWorker(
        queue, redis_url=settings.redis_url, lease_s=settings.lease_s, beat_s=settings.beat_s
    )
    worker.start_recovery()
    worker.work(logging_level="WARNING")


def model_info(manifest: Manifest) -> ModelInfo:
    """Return what the API is to know of a bundle."""
    return ModelInfo(**{name: getattr(manifest, name) for name in ModelInfo.model_fields})


def _load(settings: Settings) -> Predictor:
    """Load the bundle and run it once, so that the first job pays for nothing."""
    let_threads_sleep()
    from worker.predict import Predictor

    predictor = Predictor.setup(settings)
    predictor.predict(
        prompt="warm-up",
        image=Image.new("RGB", (64, 64)),
        negative_prompt=None,
        seed=0,
        num_inference_steps=1,
        guidance_scale=1.0,
        duration_s=predictor.pipeline.manifest.min_duration_s,
    )
    return predictor


def _keep_announcing(state: State, info: ModelInfo) -> None:
    while True:
        time.sleep(MODEL_TTL_S / 3)
        try:
            state.announce(info)
        except RedisError:
            logger.warning("cannot announce: Redis does not answer")


class _Canceled(Exception):
    """The generation at hand is not wanted any more."""


class Handler:
    """What a job does: every path through `run` ends in a final public state, or leaves the job to be run again."""

    def __init__(self, predictor: Predictor, state: State, storage: Storage, *, max_attempts: int) -> None:
        self.predictor, self.state, self.storage, self.max_attempts = predictor, state, storage, max_attempts

    def run(self, generation_id: str, raw_payload: dict[str, Any]) -> None:
        try:
            payload = JobPayload.model_validate(raw_payload)
        except ValidationError as error:
            self.state.fail(
                generation_id,
                Problem(code="invalid_request", detail=f"payload: {error.error_count()} errors"),
            )
            return
        attempt = self.state.start(generation_id)
        if not attempt:
            return
        if self.state.unwanted(generation_id):
            self._cancel(generation_id)
            return
        if attempt > self.max_attempts:
            self._give_up(generation_id)
            return
        started = time.perf_counter()
        try:
            outputs = self._generate(generation_id, payload)
        except (ValueError, NotFound) as error:
            logger.warning("job refused: %s", generation_id, exc_info=True)
            self.state.fail(generation_id, Problem(code="invalid_request", detail=str(error)))
        except RedisError:
            raise
        except _Canceled:
            logger.info("job canceled: %s", generation_id)
            self._cancel(generation_id)
        except JobTimeoutException:
            self.state.fail(generation_id, Problem(code="timeout", detail="the job ran into its time limit"))
        except Exception:
            logger.exception("job failed: %s", generation_id)
            self.state.fail(
                generation_id, Problem(code="generation_failed", detail="the model could not make this sound")
            )
        else:
            if not self.state.succeed(generation_id, outputs):
                self._cancel(generation_id)  # or another worker, which took this one for lost, was first
                return
            logger.info(
                "job finished: %s in %.2f s, %d steps",
                generation_id,
                time.perf_counter() - started,
                payload.num_inference_steps,
            )

    def _generate(self, generation_id: str, payload: JobPayload) -> list[Output]:
        """Make the outputs one by one: alone, a seed's sound is the same to the byte however many are asked for."""
        image = Image.open(io.BytesIO(self.storage.get(payload.image_key))) if payload.image_key else None
        arguments = payload.model_dump(
            include={"prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "duration_s"}
        )
        sample_rate = self.predictor.pipeline.manifest.sample_rate
        outputs = []
        last = 0.0
        for n in range(payload.num_outputs):

            def on_step(step: int, num_steps: int, n: int = n) -> None:
                nonlocal last
                with contextlib.suppress(RedisError):
                    if self.state.unwanted(generation_id):
                        raise _Canceled
                if time.monotonic() - last > PROGRESS_INTERVAL_S:
                    last = time.monotonic()
                    progress = Progress(step=n * num_steps + step, num_steps=payload.num_outputs * num_steps)
                    with contextlib.suppress(RedisError):  # a hiccup does not cost the job
                        self.state.set_progress(generation_id, progress)

            seed = output_seed(payload.seed, n)
            waveform = self.predictor.predict(image=image, seed=seed, on_step=on_step, **arguments)
            for fmt in payload.output_formats:
                key = audio_key(generation_id, n, fmt)
                self.storage.put(key, self.predictor.encode_response(waveform))
                outputs.append(
                    Output(
                        index=n,
                        url=f"/v1/generations/{generation_id}/audio/{n}",
                        media_type=MEDIA_TYPES[fmt],
                        format=fmt,
                        duration_s=len(waveform) / sample_rate,
                        sample_rate=sample_rate,
                        seed=seed,
                    )
                )
        return outputs

    def _cancel(self, generation_id: str) -> None:
        """End a generation that nobody waits for, and remove its files."""
        if self.state.unwanted(generation_id):
            self.state.change(generation_id, Status.CANCELED)
            self.storage.delete(generation_id)

    def abandoned(self, generation_id: str) -> None:
        """RQ found the job without a living worker, or `run` could not reach Redis."""
        if self.state.attempts(generation_id) < self.max_attempts:
            self.state.change(generation_id, Status.QUEUED)
        else:
            self._give_up(generation_id)

    def _give_up(self, generation_id: str) -> None:
        detail = f"the worker was lost {self.max_attempts} times while it ran this job"
        self.state.fail(generation_id, Problem(code="worker_lost", detail=detail))
