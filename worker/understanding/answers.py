"""Answers to the API's questions, and notes on jobs, in threads of their own.

A denoising step does not delay an answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from redis.exceptions import RedisError

from clipsynth.admission.questions import answer, next_question, wake
from clipsynth.errors import NotFound, StorageUnavailable
from clipsynth.schemas.payload import JobPayload
from clipsynth.schemas.understanding import PromptAnswer, PromptQuestion, Understanding, Understood
from models.conditioning.familiarity import Neighbourhood
from worker.job_runner import JobRunner
from worker.model_protocol import ServingModel
from worker.understanding.sentences import parts_of

logger = logging.getLogger(__name__)
RETRY_S = 1.0


class Understander:
    """Answers the API's questions about one model, and notes on jobs how it understands them."""

    def __init__(self, runner: JobRunner) -> None:
        self._runner, self.state = runner, runner.state
        self._notes = ThreadPoolExecutor(1, thread_name_prefix="note")
        self._stopped = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    @property
    def model(self) -> ServingModel:
        return self._runner.model

    def start(self) -> None:
        """Begin to answer, and to note jobs."""
        self._runner.note = self.note
        self._listener.start()

    def stop(self) -> None:
        """End after the present answer."""
        self._stopped.set()
        if self._listener.is_alive():
            with contextlib.suppress(RedisError):
                wake(self.state.redis, self.model.manifest.name)
            self._listener.join(2 * RETRY_S)
        self._notes.shutdown(cancel_futures=True)

    def note(self, generation_id: str, payload: JobPayload, images: Mapping[str, Image.Image]) -> None:
        """Record in the background how the model understands a job, whose images are `images` by key."""
        if self.model.frames is not None and not self._stopped.is_set():
            self._notes.submit(self._note, generation_id, payload, images)

    def answer(self, question: PromptQuestion) -> PromptAnswer:
        """Return the answer to a question; empty if the model has no training frames."""
        if self.model.frames is None:
            return PromptAnswer()
        parts = [] if question.split is None else parts_of(question.split, self._place)
        return PromptAnswer(
            texts=[self._understand(text) for text in (*question.texts, *(part.text for part in parts))],
            images=[self._understand(self._runner.image(key)) for key in question.images],
            parts=[part.text for part in parts],
            orders=[part.order for part in parts],
        )

    def _listen(self) -> None:
        name = self.model.manifest.name
        while not self._stopped.is_set():
            try:
                question = next_question(self.state.redis, name)
            except RedisError as error:
                logger.warning("no questions: %s", error)
                time.sleep(RETRY_S)
                continue
            if question is not None and not self._stopped.is_set():
                self._reply(question)

    def _reply(self, question: PromptQuestion) -> None:
        try:
            answer(self.state.redis, question, self.answer(question))
        except (RedisError, NotFound, StorageUnavailable) as error:
            logger.warning("question %s not answered: %s", question.id, error)
        except Exception:
            logger.exception("question %s not answered", question.id)

    def _note(self, generation_id: str, payload: JobPayload, images: Mapping[str, Image.Image]) -> None:
        try:
            found = [
                self._understand(
                    images.get(c.image_key) or self._runner.image(c.image_key)
                    if c.image_key
                    else c.text or ""
                )
                for c in payload.conditions
            ]
            self.state.note_understood(generation_id, Understanding.of(payload, found))
        except Exception as error:
            logger.warning("nothing noted on %s: %s", generation_id, error)

    def _place(self, content: str | Image.Image) -> Neighbourhood:
        assert self.model.frames is not None
        with self.model.encoding, torch.inference_mode():
            return self.model.frames.place(content)

    def _understand(self, content: str | Image.Image) -> Understood:
        place = self._place(content)
        names = [{"name": name, "similarity": similarity} for name, similarity in place.names]
        # A tokenizer serves one thread at a time.
        with self.model.encoding:
            cut = isinstance(content, str) and self.model.cuts_off(content)
        return Understood.model_validate(
            {"familiarity": place.familiarity, "understood_as": names, "is_truncated": cut}
        )
