"""Logs: lines of text, or JSON with the ids of request and job. Prompts are never logged."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
JOB_ID: ContextVar[str | None] = ContextVar("job_id", default=None)
ACCESS = "clipsynth.access"  # the logger of responses
OWN = ("app", "worker", "clipsynth", "models", "training", "evaluation")  # loggers of our packages
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, ids, the fields of `extra`, and a trace."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in (("request_id", REQUEST_ID.get()), ("job_id", JOB_ID.get())):
            if value is not None:
                line[name] = value
        # Names with an underscore are a library's own, as Ray's.
        line |= {name: value for name, value in vars(record).items() if name not in _USUAL and name[0] != "_"}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up(log_format: Literal["text", "json"]) -> None:
    """Send logs to stderr: our own from INFO on, those of libraries from WARNING on.

    Responses are logged only in JSON.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if log_format == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(ACCESS).setLevel(logging.INFO if log_format == "json" else logging.WARNING)


@contextmanager
def about(job_id: str, meta: object) -> Iterator[None]:
    """Add the ids of a job and its request to log lines inside the context."""
    request_id = meta.get("request_id") if isinstance(meta, dict) else None
    job_token, request_token = JOB_ID.set(job_id), REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        JOB_ID.reset(job_token)
        REQUEST_ID.reset(request_token)
