"""A queue, and workers on it with a model without a network."""

from __future__ import annotations

import torch
from redis import Redis
from rq.serializers import JSONSerializer

from clipsynth.jobs.queue import connect, get_queue
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import JobPayload
from clipsynth.services.processes import wait_until
from clipsynth.storage import Storage
from models.bundle import Manifest
from models.networks.condition_encoder import ConditionTokens
from models.sampler import SamplerRow
from worker.calibration import StepCost
from worker.engine import Engine
from worker.job_runner import JobRunner
from worker.model_protocol import ServingModel
from worker.rq_adapter.worker import BatchWorker

TIMEOUT_S = 30
NONE = ConditionTokens(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool))


class Toy(ServingModel):
    """A model without a network. `before_step` is called with the prompts of the batch."""

    dtype = "float32"

    def __init__(self, **fields):
        self.manifest = Manifest(**{"name": "tiny", "min_duration_s": 0.5, "max_duration_s": 5.0} | fields)
        self.prompts = {}
        self.batches = []
        self.before_step = lambda _: None

    def measure(self):
        return StepCost(0.0, 1e-6, 1000)

    def num_tokens(self, duration_s):
        return round(10 * duration_s)

    def rows(self, payload, *_):
        if payload.prompt == "refused":
            raise ValueError("not this one")
        value = self.prompts.setdefault(payload.prompt, float(len(self.prompts) + 1))
        cond = ConditionTokens(torch.full((1, 1, 1), value), torch.ones(1, 1, dtype=torch.bool))
        shape = (1, self.num_tokens(payload.duration_s), 1)
        return [
            SamplerRow(torch.zeros(shape), [cond], NONE, payload.num_inference_steps, payload.guidance_scale)
            for _ in range(payload.num_outputs)
        ]

    def velocity(self, tokens, _, conditions, __):
        names = {value: name for name, value in self.prompts.items()}
        batch = [names[float(value)] for value in conditions.tokens[:, 0, 0]]
        self.batches.append(batch)
        self.before_step(batch)
        if "broken" in batch:
            raise RuntimeError("secret")
        if "huge" in batch:
            raise torch.OutOfMemoryError("secret")
        return conditions.tokens[:, :1].expand_as(tokens)

    def decode(self, rows, _):
        return [row.latents.flatten().numpy() for row in rows]

    def log_mel(self, waveform):
        return waveform[:, None]

    def encode_response(self, waveform, *_, **__):
        return waveform.tobytes()


class Workplace:
    """A queue, and workers on it that share a toy model."""

    def __init__(self, settings):
        self.settings = settings
        self.redis = Redis.from_url(settings.redis_url)
        self.redis.flushall()
        self.state = JobStore.from_settings(self.redis, settings)
        self.storage = Storage(settings.results_url)
        self.toy = Toy()
        self.queue = get_queue("tiny", connect(settings.redis_url))
        self.engines = []
        self.worker = self.new_worker()

    def new_worker(self, lease_s=1):
        engine = Engine(self.toy, limit=1000)
        engine.start()
        self.engines.append(engine)
        runner = JobRunner(self.toy, self.state, self.storage, max_attempts=self.settings.max_attempts)
        url = self.settings.redis_url
        queue = get_queue("tiny", connect(url))
        return BatchWorker(
            queue, redis_url=url, lease_s=lease_s, heartbeat_s=0.2, runner=runner, engine=engine
        )

    def post(self, prompt="rain", **fields):
        generation_id = f"gen_{self.redis.incr('count'):026x}"
        defaults = {"num_inference_steps": 2, "guidance_scale": 1.0, "duration_s": 1.0, "num_outputs": 1}
        payload = JobPayload(
            model="tiny",
            prompt=prompt,
            image_key=None,
            negative_prompt=None,
            seed=0,
            output_formats=["wav"],
            **(defaults | fields),
        )
        self.state.submit(generation_id, payload)
        return generation_id

    def work(self):
        self.worker.work(burst=True, logging_level="ERROR")

    def hold_first_step(self, jobs):
        """Have the first step wait until so many jobs are claimed and prepared: they share the second one."""

        def before_step(_):
            if len(self.toy.batches) == 1:
                claimed = self.worker.claimed
                assert wait_until(
                    lambda: sum(bool(c.request.rows) for c in claimed.snapshot()) >= jobs, timeout_s=TIMEOUT_S
                )

        self.toy.before_step = before_step

    def come_round(self):
        """Wait until the worker has looked at all that it looks at, once more from the start."""
        for _ in range(2):
            seen = self.worker._due.get("watch")
            assert wait_until(lambda seen=seen: self.worker._due.get("watch") != seen, timeout_s=TIMEOUT_S)

    def statuses(self, *ids):
        return [self.state.get(generation_id).status for generation_id in ids]

    def lose(self):
        """Claim the next job as a worker does that dies right then; return when its lease is over."""
        worker = self.new_worker()
        self.redis.lmove(self.queue.key, self.queue.intermediate_queue_key, "LEFT", "RIGHT")
        job_id = self.redis.lindex(self.queue.intermediate_queue_key, -1).decode()
        job = worker.job_class.fetch(job_id, self.redis, JSONSerializer)
        job.connection = worker.connection
        worker.prepare_execution(job)
        worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
        self.state.start(job_id, batched_with_others=False)
        worker.leases.stop()
        assert wait_until(
            lambda: worker.leases.recover() or self.state.get(job_id).status != "processing",
            timeout_s=TIMEOUT_S,
        )

    def nothing_left(self):
        keys = ("rq:wip:clipsynth-tiny", self.queue.key, self.queue.intermediate_queue_key)
        return not self.redis.exists(*keys)

    def close(self):
        for engine in self.engines:
            engine.stop()
        self.worker.leases.stop()
        self.redis.close()
