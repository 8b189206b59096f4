"""RQ's job without anything to run: what its record in Redis names is never looked at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from redis.exceptions import ResponseError
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job

from clipsynth.jobs.record import is_wrong_type

logger = logging.getLogger(__name__)


class GenerationJob(Job):
    """A job that is data only: no function, callback or webhook that its record in Redis may name is ever run."""

    abandoned: ClassVar[Callable[[str], None]]
    unreadable: ClassVar[Callable[[str], None]]

    @property
    def func(self) -> NoReturn:
        raise InvalidJobOperation("jobs have no function")

    @property
    def failure_callback(self) -> Callable[..., None]:
        """What RQ calls for a job that it finds without a living worker."""
        return lambda job, *_: type(self).abandoned(job.id)

    @property
    def success_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    def send_webhooks(self, *_: Any, **__: Any) -> None:
        return None

    def restore(self, raw_data: Any) -> None:
        """Read a record.

        Raises:
            NoSuchJobError: it cannot be read; it is removed.
        """
        try:
            super().restore(raw_data)
        except Exception as error:
            self._unreadable(error)

    def refresh(self) -> None:
        """Fetch and read the record; raises as `restore`, and where there is none."""
        try:
            super().refresh()
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            self._unreadable(error)

    def _unreadable(self, error: Exception) -> NoReturn:
        logger.warning("job %s cannot be read: %s", self.id, error)
        type(self).unreadable(self.id)
        self.connection.delete(self.key)
        raise NoSuchJobError(f"job {self.id} cannot be read") from error
