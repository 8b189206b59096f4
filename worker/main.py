"""Entry of a worker process: announce, load once, take jobs until SIGTERM. One process serves one bundle; SIGHUP has it read again."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from clipsynth.errors import ModelUnusable, ServeError
from clipsynth.jobs.model_registry import MODEL_TTL_S
from clipsynth.jobs.queue import connect, get_queue
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import Method, ModelCost, ModelInfo
from clipsynth.services.metrics_server import expose
from clipsynth.services.processes import let_threads_sleep
from clipsynth.settings import Settings
from clipsynth.storage import Storage
from models.audio.attributes import taken
from models.bundle import Manifest
from worker import metrics

if TYPE_CHECKING:
    from worker.calibration import StepCost
    from worker.model_protocol import ServingModel
    from worker.rq_adapter.worker import BatchWorker

logger = logging.getLogger(__name__)
HEARTBEAT_TIMEOUT_S = (
    60.0  # without a beat the process hangs; a Redis that is away does not hold one up for so long
)
Load = Callable[[Settings], "ServingModel"]


def main(settings: Settings) -> None:
    """Run a worker.

    Raises:
        ServeError: no Redis URL, no memory for the model now, or the metrics' port is taken. ModelUnusable: the bundle or device cannot be used, and trying
            again would not help.
    """
    let_threads_sleep()
    try:
        manifest = Manifest.read(settings.model)
        info = model_info(manifest, read_scalars(settings.model), methods(settings, manifest))
    except (OSError, ValueError) as error:
        raise ModelUnusable(str(error)) from error
    run(settings, info, load)


def run(settings: Settings, info: ModelInfo, load: Load) -> None:
    """Serve what `load` returns under the name and limits of `info`; raises as `main`."""
    if not settings.redis_url:
        raise ServeError("a worker needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    started = time.perf_counter()
    state = JobStore.from_settings(connect(settings.redis_url), settings)
    state.announce_starting(info)
    from worker.engine import Engine, is_out_of_memory

    try:
        predictor = load(settings)
        cost = predictor.measure()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        state.announce_stopped(info.name)
        if is_out_of_memory(error):  # another process may have it, for now
            raise ServeError(f"no memory for the model: {error}") from error
        raise ModelUnusable(str(error)) from error

    from worker.job_runner import JobRunner
    from worker.rq_adapter.worker import BatchWorker

    runner = JobRunner(predictor, state, Storage(settings.results_url), max_attempts=settings.max_attempts)
    engine = Engine(predictor, limit=cost.limit)
    worker = BatchWorker(
        get_queue(info.name, connect(settings.redis_url)),
        redis_url=settings.redis_url,
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        runner=runner,
        engine=engine,
    )
    if settings.metrics_port is not None:
        expose(metrics.REGISTRY, settings.metrics_port, healthy=lambda: is_alive(worker))
    served = ServedBundle(settings, load, worker, with_cost(info, predictor, cost))
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=served.reload, daemon=True).start())
    served.announce()
    threading.Thread(target=served.keep_announcing, daemon=True).start()
    engine.start()
    worker.leases.start()
    metrics.CLAIMED.set_function(lambda: len(worker.claimed))
    metrics.STEP_AGE.set_function(lambda: worker.step_age_s)
    logger.info("worker ready in %.1f s: model %s %s", time.perf_counter() - started, info.name, info.version)
    worker.work(logging_level="WARNING")
    worker.leases.stop()
    engine.stop()


def is_alive(worker: BatchWorker) -> bool:
    """Return whether the process is alive. That Redis answers is not asked: a restart would not help."""
    return time.monotonic() - worker.leases.heartbeat_at < HEARTBEAT_TIMEOUT_S and not worker.engine.crashed


def read_scalars(folder: Path) -> list[str]:
    """Return what a bundle's condition encoder may be told beside embeddings; nothing where none is there."""
    file = folder / "condition_encoder" / "config.json"
    scalars: list[str] = json.loads(file.read_text()).get("scalars", []) if file.is_file() else []
    return scalars


def methods(settings: Settings, manifest: Manifest) -> list[Method]:
    """Return how sounds can be made: by retrieval too where the training sounds are at hand and the bundle has an index of them."""
    retrieves = settings.retrieval_audio is not None and "index.safetensors" in manifest.sha256
    return ["diffusion", "retrieval"] if retrieves else ["diffusion"]


def model_info(
    manifest: Manifest, scalars: Sequence[str] = (), methods: Sequence[Method] = ("diffusion",)
) -> ModelInfo:
    """Return what the API is to know of a bundle before it is loaded; `scalars` are what its condition encoder may be told."""
    fields = ModelInfo.model_fields.keys() - {"attributes", "cost", "methods"}
    return ModelInfo(
        **{name: getattr(manifest, name) for name in fields},
        attributes=list(taken(manifest.attributes, scalars)),
        methods=list(methods),
    )


def with_cost(info: ModelInfo, predictor: ServingModel, cost: StepCost) -> ModelInfo:
    """Add what was measured to what the API is to know."""
    return info.model_copy(
        update={
            "cost": ModelCost(
                audio_step_s=cost.step_s * predictor.num_tokens(1.0) / cost.limit,
                step_s=cost.step_s,
                guided_share=predictor.manifest.guided_share,
                distilled_guidance_range=list(predictor.distilled_guidance_range),
            )
        }
    )


def load(settings: Settings) -> ServingModel:
    """Load the bundle of the settings and use every part once, so that the first job pays for nothing."""
    from worker.predictor import Predictor

    predictor = Predictor.setup(settings)
    predictor.warm_up()
    return predictor


class ServedBundle:
    """The bundle at hand, and how it is exchanged for what lies in its folder now."""

    def __init__(self, settings: Settings, load: Load, worker: BatchWorker, info: ModelInfo) -> None:
        self.settings, self.load, self.worker, self.info = settings, load, worker, info
        self._loading = threading.Lock()

    def reload(self) -> None:
        """Load the bundle's folder beside what is served, and serve it once the running jobs have ended; keep the old one if that fails."""
        with self._loading:
            try:
                predictor = self.load(self.settings)
                manifest = predictor.manifest
                offered = methods(self.settings, manifest)
                info = model_info(manifest, read_scalars(self.settings.model), offered)
                if info.name != self.info.name:
                    raise ValueError(f"it is named {info.name!r}, and this worker serves {self.info.name!r}")
                cost = predictor.measure()
            except Exception:
                logger.exception(
                    "bundle %s not read again; version %s stays", self.settings.model, self.info.version
                )
                return
        told = with_cost(info, predictor, cost)
        self.worker.swap_when_idle(lambda: self._exchange(predictor, told, cost.limit))

    def _exchange(self, predictor: ServingModel, info: ModelInfo, limit: int) -> None:
        self.worker.runner.model = predictor
        self.worker.engine.model, self.worker.engine.limit = predictor, limit
        self.info = info
        metrics.UP.clear()
        logger.info("model %s is now version %s", info.name, info.version)
        self.announce()

    def announce(self) -> None:
        """Tell the API what is served; it has to be told again within MODEL_TTL_S."""
        metrics.UP.labels(self.info.name, self.info.version).set(1)
        try:
            self.worker.runner.state.announce(self.info)
        except RedisError:
            logger.warning("cannot announce: Redis does not answer")

    def keep_announcing(self) -> None:
        while True:
            time.sleep(MODEL_TTL_S / 3)
            self.announce()
