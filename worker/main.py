"""Run a worker process for one bundle: announce, load, work until SIGTERM; SIGHUP reloads the bundle."""

from __future__ import annotations

import contextlib
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
from clipsynth.schemas.model_info import Method, ModelCost, ModelInfo, ModelSound
from clipsynth.services.metrics_server import expose
from clipsynth.services.processes import importing, let_threads_sleep
from clipsynth.settings import Settings
from clipsynth.storage import Storage
from models.audio.attributes import taken
from models.bundle import SCRIPTS, Manifest
from worker import metrics

if TYPE_CHECKING:
    from worker.calibration import StepCost
    from worker.model_protocol import ServingModel
    from worker.rq_adapter.worker import BatchWorker

logger = logging.getLogger(__name__)
# Without a heartbeat for this long the process hangs; an unreachable Redis delays a heartbeat by less.
HEARTBEAT_TIMEOUT_S = 60.0
# Sounds of a model that are listed.
MOST_SOUNDS = 100
Load = Callable[[Settings], "ServingModel"]


def main(settings: Settings) -> None:
    """Run a worker.

    Raises:
        ServeError: no Redis URL, too little memory for now, or the metrics port is taken.
        ModelUnusable: the bundle or the device cannot be used; a restart would not help.
    """
    let_threads_sleep()
    run(settings, describe(settings), load)


def describe(settings: Settings) -> ModelInfo:
    """Describe the bundle of the settings without loading it.

    Raises:
        ModelUnusable: it cannot be read.
    """
    try:
        manifest = Manifest.read(settings.model)
        return _info(settings, manifest)
    except (OSError, ValueError) as error:
        raise ModelUnusable(str(error)) from error


def run(settings: Settings, info: ModelInfo, load: Load) -> None:
    """Serve the model that `load` returns, under the name and limits of `info`; raises as `main`."""
    if not settings.redis_url:
        raise ServeError("a worker needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    started = time.perf_counter()
    state = JobStore.from_settings(connect(settings.redis_url), settings)
    state.announce_starting(info)
    with importing():
        from worker.calibration import is_out_of_memory, learner
        from worker.engine import Engine

    try:
        predictor = load(settings)
        cost = predictor.measure()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        state.announce_stopped(info.name)
        # Another process may free the memory later.
        if is_out_of_memory(error):
            raise ServeError(f"no memory for the model: {error}") from error
        raise ModelUnusable(str(error)) from error

    from worker.job_runner import JobRunner
    from worker.rq_adapter.worker import BatchWorker
    from worker.understanding.answers import Understander

    runner = JobRunner(predictor, state, Storage(settings.results_url), max_attempts=settings.max_attempts)
    engine = Engine(predictor, limit=cost.limit, learner=learner(predictor, cost))
    worker = BatchWorker(
        get_queue(info.name, connect(settings.redis_url)),
        redis_url=settings.redis_url,
        lease_s=settings.lease_s,
        heartbeat_s=settings.heartbeat_s,
        runner=runner,
        engine=engine,
    )
    if settings.metrics_port is not None:
        where = settings.metrics_port, settings.metrics_address
        expose(metrics.REGISTRY, *where, healthy=lambda: is_alive(worker))
    served = ServedBundle(settings, load, worker, with_cost(info, predictor, cost))
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=served.reload, daemon=True).start())
    served.announce()
    threading.Thread(target=served.keep_announcing, daemon=True).start()
    engine.start()
    understander = Understander(runner)
    understander.start()
    worker.leases.start()
    metrics.CLAIMED.set_function(lambda: len(worker.claimed))
    metrics.STEP_AGE.set_function(lambda: worker.step_age_s)
    logger.info("worker ready in %.1f s: model %s %s", time.perf_counter() - started, info.name, info.version)
    worker.work(logging_level="WARNING")
    served.withdraw()
    understander.stop()
    worker.leases.stop()
    engine.stop()


def is_alive(worker: BatchWorker) -> bool:
    """Return whether the process works. An unreachable Redis does not count: a restart would not help."""
    return time.monotonic() - worker.leases.heartbeat_at < HEARTBEAT_TIMEOUT_S and not worker.engine.crashed


def read_scalars(folder: Path) -> list[str]:
    """Return the scalars that a bundle's condition encoder takes; empty if it has none."""
    file = folder / "condition_encoder" / "config.json"
    scalars: list[str] = json.loads(file.read_text()).get("scalars", []) if file.is_file() else []
    return scalars


def methods(settings: Settings, manifest: Manifest) -> list[Method]:
    """Return the methods of this worker: retrieval needs the training sounds and an index in the bundle."""
    retrieves = settings.retrieval_audio is not None and "index.safetensors" in manifest.sha256
    return ["diffusion", "retrieval"] if retrieves else ["diffusion"]


def read_scripts(folder: Path, manifest: Manifest) -> list[str]:
    """Return the scripts that a bundle's encoder reads; empty if they are not known."""
    file = folder / "encoder" / "config.json"
    encoder: str = json.loads(file.read_text()).get("_class_name", "") if file.is_file() else ""
    return list(manifest.scripts or SCRIPTS.get(encoder, ()))


def _info(settings: Settings, manifest: Manifest) -> ModelInfo:
    folder = settings.model
    offered = methods(settings, manifest)
    return model_info(manifest, read_scalars(folder), offered, read_scripts(folder, manifest))


def model_info(
    manifest: Manifest,
    scalars: Sequence[str] = (),
    methods: Sequence[Method] = ("diffusion",),
    scripts: Sequence[str] = (),
) -> ModelInfo:
    """Describe a bundle for the API before it is loaded; `scalars` as `read_scalars` returns them."""
    later = {"attributes", "cost", "device", "methods", "precision", "scripts", "sounds", "window_s"}
    fields = ModelInfo.model_fields.keys() - later
    return ModelInfo(
        **{name: getattr(manifest, name) for name in fields},
        attributes=list(taken(manifest.attributes, scalars)),
        methods=list(methods),
        window_s=manifest.max_duration_s,
        scripts=list(scripts),
    )


def sounds_of(predictor: ServingModel) -> list[ModelSound]:
    """Return the most frequent sounds of the training clips; none without an index."""
    named = predictor.frames.sounds()[:MOST_SOUNDS] if predictor.frames else []
    return [ModelSound(name=name, share=round(share, 4)) for name, share in named]


def with_cost(info: ModelInfo, predictor: ServingModel, cost: StepCost) -> ModelInfo:
    """Add the cost of a step to the description of a bundle."""
    return info.model_copy(
        update={
            "precision": predictor.dtype,
            "device": predictor.device,
            "sounds": sounds_of(predictor),
            "cost": ModelCost(
                audio_step_s=cost.step_s * predictor.num_tokens(1.0) / cost.limit,
                step_s=cost.step_s,
                guided_share=predictor.manifest.guided_share,
                distilled_guidance_range=list(predictor.distilled_guidance_range),
            ),
        }
    )


def load(settings: Settings) -> ServingModel:
    """Load the bundle of the settings and warm it up."""
    with importing():
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        from worker.predictor import Predictor

    # A log is no terminal.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    predictor = Predictor.setup(settings)
    predictor.warm_up()
    return predictor


class ServedBundle:
    """The served bundle; `reload` replaces it by the present content of its folder."""

    def __init__(self, settings: Settings, load: Load, worker: BatchWorker, info: ModelInfo) -> None:
        self.settings, self.load, self.worker, self.info = settings, load, worker, info
        self._loading = threading.Lock()

    def reload(self) -> None:
        """Load the folder again and swap after the running jobs; keep the old bundle on an error."""
        with self._loading:
            try:
                predictor = self.load(self.settings)
                manifest = predictor.manifest
                info = _info(self.settings, manifest)
                if info.name != self.info.name:
                    raise ValueError(f"its name is {info.name!r}, but this worker serves {self.info.name!r}")
                cost = predictor.measure()
            except Exception:
                logger.exception(
                    "bundle %s not reloaded; version %s stays", self.settings.model, self.info.version
                )
                return
        new_info = with_cost(info, predictor, cost)
        self.worker.swap_when_idle(lambda: self._exchange(predictor, new_info, cost))

    def _exchange(self, predictor: ServingModel, info: ModelInfo, cost: StepCost) -> None:
        from worker.calibration import learner

        engine = self.worker.engine
        self.worker.runner.model = engine.model = predictor
        engine.limit, engine.learner = cost.limit, learner(predictor, cost)
        self.info = info
        metrics.UP.clear()
        logger.info("model %s is now version %s", info.name, info.version)
        self.announce()

    def announce(self) -> None:
        """Publish the description of the bundle, with its latest cost; it expires after MODEL_TTL_S."""
        learner = self.worker.engine.learner
        info = with_cost(self.info, self.worker.runner.model, learner.cost) if learner else self.info
        metrics.UP.labels(self.info.name, self.info.version).set(1)
        try:
            state = self.worker.runner.state
            state.announce(info)
            precisions = state.precisions(info.name)
            metrics.PRECISIONS.labels(info.name).set(len(precisions))
            if len(precisions) > 1:
                logger.warning(
                    "workers of model %s have several precisions: %s; set CLIPSYNTH_PRECISION",
                    info.name,
                    ", ".join(precisions),
                )
        except RedisError:
            logger.warning("cannot announce the model: Redis does not answer")

    def keep_announcing(self) -> None:
        """Announce the bundle until the worker is asked to stop, then withdraw it.

        The first time is soon: a worker that ended meanwhile may have withdrawn the model, because RQ did not
        know this one yet.
        """
        announce_at = 0.0
        while not self.worker.is_stopping:
            time.sleep(1.0)
            if time.monotonic() >= announce_at:
                self.announce()
                announce_at = time.monotonic() + MODEL_TTL_S / 3
        self.withdraw()

    def withdraw(self) -> None:
        """Announce that this worker no longer serves the bundle."""
        with contextlib.suppress(RedisError):
            self.worker.runner.state.withdraw_worker(self.info.name, self.worker.key)
