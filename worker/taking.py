"""Jobs off the queue, many at a time; each is on RQ's list of taken ones until it has a lease, or is dropped."""

from __future__ import annotations

from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job

from clipsynth.record import results

MAX_TAKEN = 32  # at a time

# KEYS[1] queue, KEYS[2] list of taken ones; ARGV[1] how many. Returns their ids.
_TAKE = """
local taken = {}
while #taken < tonumber(ARGV[1]) do
  local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not id then break end
  table.insert(taken, id)
end
return taken
"""


class Taking:
    """Takes jobs off one queue."""

    def __init__(self, queue: Queue, job_class: type[Job]) -> None:
        self.queue, self.job_class = queue, job_class
        self._take = queue.connection.register_script(_TAKE)

    def take(self, jobs: int) -> list[Job]:
        """Return the next jobs, as many as there are; one whose record is gone or cannot be read is left out."""
        keys = [self.queue.key, self.queue.intermediate_queue_key]
        ids = [job_id.decode() for job_id in self._take(keys=keys, args=[min(jobs, MAX_TAKEN)])]
        if not ids:
            return []
        redis = self.queue.connection
        with redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hgetall(self.job_class.key_for(job_id))
            records = results(pipeline)  # of a wrong type: restore cannot read that either
        taken = []
        for job_id, record in zip(ids, records, strict=True):
            job = self.job_class(job_id, connection=redis, serializer=self.queue.serializer)
            try:
                job.restore(record)
            except NoSuchJobError:
                self.drop(job)
            else:
                taken.append(job)
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
