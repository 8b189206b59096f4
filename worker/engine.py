"""Continuous batching: rows of many jobs share one network call per step. Knows no Redis.

A job's rows join before any step and leave after their last one. Side threads prepare, decode and deliver
rows meanwhile. Only the thread that calls `turn` changes the state; other threads put calls into its inbox.
A waveform that was batched with others differs from the same one made alone by at most 2e-3 of full scale.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from models.sampler import GROUP_ROWS, SamplerRow, advance
from worker.calibration import CostLearner, free_cache, is_device_lost, is_out_of_memory
from worker.metrics import JOB_SECONDS, OUT_OF_MEMORY, count_step, stage
from worker.model_protocol import ServingModel

logger = logging.getLogger(__name__)
# Slow tasks have a thread of their own, so that other requests do not wait for them.
SIDE_THREADS, SLOW_THREADS = 2, 1
# Components decoded in one call; a row with more is decoded alone.
MAX_DECODED = 8


@dataclass(eq=False)
class SamplingRequest:
    """One job in the engine.

    Attributes:
        prepare, prepares_slowly: returns the job's rows, on a side thread; whether it takes many seconds.
        deliver: takes (row index, waveform (T,)) and returns the row's result; runs on a side thread.
        num_rows, num_tokens, passes: rows of the job, tokens per row, and network passes per guided step.
        kind, close: label for the metrics; removes the job's temporary files after its end.
        shortcut: yields the results of all rows on a side thread, instead of `prepare`, steps and `deliver`.
        results: results of `deliver` by row index; complete unless canceled or failed.
        error, tasks: the exception that ended the job; running side tasks.
        joined_at: monotonic time at which the first row joined the batch; 0 before.
    """

    prepare: Callable[[], list[SamplerRow]]
    deliver: Callable[[int, np.ndarray], Any]
    num_rows: int
    num_tokens: int
    duration_s: float
    passes: int = 2
    kind: str = "text"
    prepares_slowly: bool = False
    shortcut: Callable[[], Iterable[Any]] | None = None
    close: Callable[[], None] = lambda: None
    rows: list[SamplerRow] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)
    error: Exception | None = None
    canceled: bool = False
    tasks: int = 0
    ended: bool = False
    prepared_at: float = 0.0
    joined_at: float = 0.0

    @property
    def dead(self) -> bool:
        return self.canceled or self.error is not None

    @property
    def steps_done(self) -> int:
        return sum(row.step for row in self.rows)

    @property
    def full_load(self) -> int:
        return self.passes * self.num_rows * self.num_tokens

    def load(self, ahead: int = 0) -> int:
        """Return the tokens per step of this job after `ahead` more steps.

        A row without a step so far always counts, because it may still wait.
        """
        if not self.rows:
            return 0 if self.ended else self.full_load
        left = [row for row in self.rows if not row.step or row.step + ahead < row.num_inference_steps]
        return self.num_tokens * sum(row.passes for row in left)


@dataclass(eq=False)
class _Slot:
    request: SamplingRequest
    index: int
    row: SamplerRow


def weight(rows: Sequence[SamplerRow]) -> int:
    """Return the tokens of one step of these rows, padding included."""
    return sum(row.passes for row in rows) * max((row.num_tokens for row in rows), default=0)


class Engine:
    """Runs requests and puts each into `ended`: complete, failed or canceled.

    A lost device ends the sampling thread instead (`crashed`): the process exits, its leases run out,
    and other workers run the jobs.

    Attributes:
        limit: most tokens of one network call; more rows take several calls. One row alone may exceed it.
        group_rows: rows of the network in a call for a sound of many windows that exceeds the limit.
        learner: learns the limit from the steps, if there is one.
        step_s, stepped_at: duration and monotonic time of the last step.
    """

    def __init__(self, model: ServingModel, *, limit: int, learner: CostLearner | None = None) -> None:
        self.model, self.limit, self.learner = model, limit, learner
        self.group_rows = GROUP_ROWS
        self.step_s = self.stepped_at = 0.0
        self.ended: queue.SimpleQueue[SamplingRequest] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[_Slot] = deque()
        self._running: list[_Slot] = []
        self._side = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side")
        self._slow = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix="slow")
        self._thread: threading.Thread | None = None
        self._stopping = False

    # ------------------------------------------------------------------------------------- for any thread

    def start(self) -> None:
        """Run turns in a new thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)
        self._thread.start()

    @property
    def crashed(self) -> bool:
        """Whether the thread ended without `stop`."""
        return self._thread is not None and not self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        """End the thread after its turn and wait for the side threads."""
        self._inbox.put(partial(setattr, self, "_stopping", True))
        if self._thread:
            self._thread.join()
        self._side.shutdown()
        self._slow.shutdown()

    def submit(self, request: SamplingRequest) -> None:
        """Prepare the rows now; they join before the next step with room for them."""
        work = self._take_shortcut if request.shortcut else self._prepare
        self._run_task(request, partial(work, request))

    def cancel(self, request: SamplingRequest) -> None:
        """End the request before its next step."""
        self._inbox.put(partial(setattr, request, "canceled", True))

    # ----------------------------------------------------------------------------------- the sampling thread

    def _run(self) -> None:
        while not self._stopping:
            self.turn()

    def turn(self) -> None:
        """Run the calls of the inbox, then one step of every running row; wait if there is none."""
        self._read_inbox()
        for slot in (*self._waiting, *self._running):
            self._end_if_complete(slot.request)
        self._waiting = deque(slot for slot in self._waiting if not slot.request.dead)
        self._running = [slot for slot in self._running if not slot.request.dead]
        self._join()
        if not self._running:
            return
        started = time.perf_counter()
        with torch.inference_mode():
            self._step()
        self.step_s = time.perf_counter() - started
        done = [slot for slot in self._running if slot.row.done and not slot.request.dead]
        self._running = [slot for slot in self._running if not slot.row.done and not slot.request.dead]
        self._send_to_decoder(done)

    def _read_inbox(self) -> None:
        block = not self._running and not self._waiting
        while True:
            try:
                call = self._inbox.get(block)
            except queue.Empty:
                return
            call()
            block = False

    def _join(self) -> None:
        together = self._chunk([*self._running, *self._waiting])
        while len(self._running) < len(together):
            slot = self._waiting.popleft()
            if not slot.request.joined_at:
                slot.request.joined_at = time.monotonic()
                JOB_SECONDS.labels("batch_wait").observe(slot.request.joined_at - slot.request.prepared_at)
            self._running.append(slot)

    def _step(self) -> None:
        """Take one step of every running row, in as few calls as the limit allows."""
        left = list(self._running)
        while left:
            chunk = self._chunk(left)
            out_of_memory = False
            rows, started = [slot.row for slot in chunk], time.monotonic()
            try:
                advance(rows, self.model.velocity, self.group_rows)
                self.stepped_at = time.monotonic()
                count_step(rows, seconds := self.stepped_at - started)
                if self.learner:
                    self.limit = self.learner.observe(weight(rows), seconds)
            except Exception as error:
                if is_device_lost(error):
                    raise
                can_split = rows[0].windows and min(self.group_rows, rows[0].passes) > 1
                out_of_memory = is_out_of_memory(error) and (len(chunk) > 1 or bool(can_split))
                if not out_of_memory:
                    self._step_one_by_one(chunk, error)
            # Outside `except`, so that the traceback no longer holds tensors.
            if out_of_memory:
                OUT_OF_MEMORY.inc()
                if len(chunk) > 1:
                    self.limit = max(1, weight(rows) // 2)
                    if self.learner:
                        self.learner.bound(self.limit)
                else:
                    self.group_rows //= 2
                logger.warning("no memory; now at most %d tokens, %d windows", self.limit, self.group_rows)
                free_cache()
            else:
                left = left[len(chunk) :]

    def _chunk(self, slots: list[_Slot]) -> list[_Slot]:
        """Return as many first slots as the limit allows, at least one."""
        passes, longest = 0, 0
        for size, slot in enumerate(slots):
            passes += slot.row.passes
            longest = max(longest, slot.row.num_tokens)
            if size and passes * longest > self.limit:
                return slots[:size]
        return slots

    def _step_one_by_one(self, chunk: list[_Slot], error: Exception) -> None:
        """Step each job alone after an error, so that only the broken one fails."""
        requests = list(dict.fromkeys(slot.request for slot in chunk))
        for request in requests:
            try:
                if len(requests) == 1:
                    raise error
                advance([slot.row for slot in chunk if slot.request is request], self.model.velocity)
            except Exception as own_error:
                if is_device_lost(own_error):
                    raise
                request.error = own_error
                self._end_if_complete(request)

    def _run_task(self, request: SamplingRequest, work: Callable[[], None]) -> None:
        """Run `work` on a side thread; its exception fails only this request."""
        request.tasks += 1

        def run() -> None:
            error = None
            try:
                if not request.dead:
                    work()
            except Exception as raised:
                error = raised
            self._inbox.put(partial(self._task_done, request, error))

        (self._slow if request.prepares_slowly else self._side).submit(run)

    def _task_done(self, request: SamplingRequest, error: Exception | None) -> None:
        if error is not None and is_device_lost(error):
            raise error
        request.tasks -= 1
        request.error = request.error or error
        self._end_if_complete(request)

    def _prepare(self, request: SamplingRequest) -> None:
        with stage("encode_prompt"):
            request.rows = rows = request.prepare()
        request.prepared_at = time.monotonic()
        self._inbox.put(lambda: self._waiting.extend(_Slot(request, n, row) for n, row in enumerate(rows)))

    def _take_shortcut(self, request: SamplingRequest) -> None:
        assert request.shortcut is not None
        for n, result in enumerate(request.shortcut()):
            request.results[n] = result
            if request.dead:
                return

    def _send_to_decoder(self, done: list[_Slot]) -> None:
        """Decode rows of equal length together; padding would change the end of a shorter one.

        A timeline's rows are not decoded with those of another request, nor two sounds of many windows.
        """
        groups: dict[tuple[int, ...], list[_Slot]] = {}
        for slot in done:
            row = slot.row
            own = id(slot.request) if row.plateaus or row.parent is not None else 0
            key = (row.components * max(1, len(row.windows)), row.length, row.loop, own)
            groups.setdefault((*key, round(slot.request.duration_s * 1e6)), []).append(slot)
        for (parts, *_), slots in groups.items():
            size = max(1, MAX_DECODED // parts)
            for start in range(0, len(slots), size):
                self._decode(slots[start : start + size])

    def _decode(self, slots: list[_Slot]) -> None:
        """Decode on a side thread and deliver each row separately."""
        for slot in slots:
            slot.request.tasks += 1
            JOB_SECONDS.labels("sample").observe(time.monotonic() - slot.request.joined_at)

        def run() -> None:
            for slot, result in zip(slots, self._waveforms(slots), strict=True):
                error = result if isinstance(result, Exception) else None
                try:
                    if not isinstance(result, Exception) and not slot.request.dead:
                        with stage("write"):
                            slot.request.results[slot.index] = slot.request.deliver(slot.index, result)
                except Exception as raised:
                    error = raised
                self._inbox.put(partial(self._task_done, slot.request, error))

        self._side.submit(run)

    def _waveforms(self, slots: list[_Slot]) -> Iterator[np.ndarray | Exception]:
        try:
            with torch.inference_mode(), stage("vocode"):
                waveforms = self.model.decode([slot.row for slot in slots], slots[0].request.duration_s)
        except Exception as error:
            if len(slots) == 1:
                yield error
            else:
                for slot in slots:
                    yield from self._waveforms([slot])
            return
        for waveform in waveforms:
            yield waveform if np.isfinite(waveform).all() else FloatingPointError("waveform is not finite")

    def _end_if_complete(self, request: SamplingRequest) -> None:
        """Put a dead or complete request into `ended` once no side task runs."""
        over = request.dead or len(request.results) == request.num_rows
        if over and not request.tasks and not request.ended:
            request.ended = True
            self.ended.put(request)
