"""Jobs off the queue, many at a time; each is on RQ's list of taken ones until it has a lease, or is dropped."""

from __future__ import annotations

from typing import Any

from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job

from clipsynth.jobs.record import STATUS_FIELDS, JobStatusView, record_key

MAX_TAKEN = 32  # at a time

# KEYS[1] queue, KEYS[2] list of taken ones; ARGV[1] how many, ARGV[2] and ARGV[3] what the keys of a job's hash and of its generation's begin
# with, ARGV[4…] fields of that. Returns of each its id, its hash (name, value, …) and those fields; an error for what is no hash.
_TAKE = """
local taken = {}
while #taken < tonumber(ARGV[1]) do
  local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not id then break end
  table.insert(taken, {id, redis.pcall('HGETALL', ARGV[2] .. id), redis.pcall('HMGET', ARGV[3] .. id, unpack(ARGV, 4))})
end
return taken
"""


class JobClaimer:
    """Takes jobs off one queue."""

    def __init__(self, queue: Queue, job_class: type[Job]) -> None:
        self.queue, self.job_class = queue, job_class
        self._take = queue.connection.register_script(_TAKE)

    def take(self, jobs: int) -> list[tuple[Job, JobStatusView | None]]:
        """Return the next jobs, as many as there are, with their generations' standing; one whose record is gone or cannot be read is left out."""
        found: list[Any] = self._take(
            keys=[self.queue.key, self.queue.intermediate_queue_key],
            args=[min(jobs, MAX_TAKEN), self.job_class.key_for(""), record_key(""), *STATUS_FIELDS],
        )
        taken = []
        for raw_id, record, status_view in found:
            job = self.job_class(
                raw_id.decode(), connection=self.queue.connection, serializer=self.queue.serializer
            )
            try:
                job.restore(_pairs(record))
            except NoSuchJobError:
                self.drop(job)
            else:
                taken.append((job, JobStatusView.read(status_view)))
        return taken

    def drop(self, job: Job, execution: Execution | None = None) -> None:
        """Forget a job that was taken and is not to be run; `execution` is of a claim that Redis carried out in part."""
        with self.queue.connection.pipeline() as pipeline:
            if execution is not None:
                pipeline.delete(ExecutionRegistry(job.id, self.queue.connection).key)  # whatever it is
                execution.delete(job, pipeline)
            pipeline.lrem(self.queue.intermediate_queue_key, 1, job.id)
            pipeline.delete(job.key)
            pipeline.execute()


def _pairs(record: Any) -> Any:
    """Return a hash that a script returned as a dictionary; an error as it is, which restore cannot read."""
    return dict(zip(record[::2], record[1::2], strict=True)) if isinstance(record, list) else record
