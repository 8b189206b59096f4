"""Questions of the API to a model's workers, over Redis: how the model understands a prompt.

If no worker answers within `TIMEOUT_S`, the API continues without an answer.
"""

from __future__ import annotations

import secrets
import threading
from typing import cast

from redis import Redis

from clipsynth.redis_keys import ANSWER, ASK
from clipsynth.schemas.understanding import PromptAnswer, PromptQuestion

TIMEOUT_S = 1.0
# A question that is older than this is not kept; with more than so many waiting, none is asked.
KEPT_S, MOST_WAITING = 2, 32
# Questions at a time of a process; each occupies a thread.
_ASKING = threading.BoundedSemaphore(8)


def ask(
    redis: Redis, model: str, *, texts: list[str], images: list[str], split: str | None = None
) -> PromptAnswer | None:
    """Return the answer of a worker of the model; None if there is none within `TIMEOUT_S`."""
    if not _ASKING.acquire(blocking=False):
        return None
    try:
        question = PromptQuestion(id=secrets.token_hex(8), texts=texts, images=images, split=split)
        with redis.pipeline() as pipeline:
            pipeline.llen(ASK + model)
            pipeline.rpush(ASK + model, text := question.model_dump_json())
            pipeline.expire(ASK + model, KEPT_S)
            waiting = pipeline.execute()[0]
        found = None
        if waiting < MOST_WAITING:
            found = cast(tuple[bytes, bytes] | None, redis.blpop([ANSWER + question.id], timeout=TIMEOUT_S))
        if found is None:
            redis.lrem(ASK + model, 1, text)
            return None
        return PromptAnswer.model_validate_json(found[1])
    finally:
        _ASKING.release()


def next_question(redis: Redis, model: str, *, wait_s: float = 4.0) -> PromptQuestion | None:
    """Return the next question about a model, or None after `wait_s`."""
    found = cast(tuple[bytes, bytes] | None, redis.blpop([ASK + model], timeout=wait_s))
    if found is None:
        return None
    try:
        return PromptQuestion.model_validate_json(found[1])
    except ValueError:
        return None


def wake(redis: Redis, model: str) -> None:
    """Let one `next_question` about a model return at once."""
    with redis.pipeline() as pipeline:
        pipeline.rpush(ASK + model, "")
        pipeline.expire(ASK + model, KEPT_S)
        pipeline.execute()


def answer(redis: Redis, question: PromptQuestion, given: PromptAnswer) -> None:
    """Send the answer to the API, which may have stopped waiting."""
    with redis.pipeline() as pipeline:
        pipeline.rpush(ANSWER + question.id, given.model_dump_json())
        pipeline.expire(ANSWER + question.id, KEPT_S)
        pipeline.execute()
