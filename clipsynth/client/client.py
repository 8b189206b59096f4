"""A client of the HTTP API.

`Client("http://localhost:8000").generate("a dog barking").save("dog.wav")`

`AsyncClient` has the same methods with `await`. Temporary failures are retried: an address that does not
answer, a full queue (429), a service that restarts (5xx). Other failures raise `ServiceError`.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from httpx_sse import aconnect_sse

from clipsynth.client.retry import RetryPolicy, ServiceError, as_unreachable, check
from clipsynth.schemas.generation import TERMINAL, Estimate, Format, Generation, Output, Status
from clipsynth.schemas.model_info import ServedModel

__all__ = ["AsyncClient", "Client", "ServiceError", "Sound", "Sounds"]
DEFAULT_URL = "http://localhost:8000"
READ_TIMEOUT_S = 30.0  # twice the time between two pings of an event stream
T = TypeVar("T")
logger = logging.getLogger(__name__)
Image = bytes | str | Path  # its bytes, or the path of its file
Progress = Callable[[Generation], None]


@dataclass(frozen=True, repr=False)
class Sound:
    """One sound: the bytes of its file, and its record."""

    data: bytes
    output: Output

    def __repr__(self) -> str:
        o = self.output
        return f"<Sound {o.index}: {o.format}, {o.duration_s:g} s, seed {o.seed}, {len(self.data)} bytes>"

    def save(self, path: str | Path) -> Path:
        """Write the file unchanged; its format is `output.format`, whatever the name's suffix."""
        path = Path(path)
        path.write_bytes(self.data)
        return path


@dataclass(frozen=True, repr=False)
class Sounds(Sequence[Sound]):
    """The sounds of a generation, in the order of their seeds."""

    generation: Generation
    sounds: list[Sound]

    def __repr__(self) -> str:
        return f"<Sounds of {self.generation.id}: {self.sounds}>"

    def __getitem__(self, n: Any) -> Any:
        return self.sounds[n]

    def __len__(self) -> int:
        return len(self.sounds)

    def save(self, path: str | Path) -> list[Path]:
        """Write the first to `path`, further ones with -1, -2, … before the suffix."""
        path = Path(path)
        names = [path, *(path.with_stem(f"{path.stem}-{n}") for n in range(1, len(self.sounds)))]
        return [sound.save(name) for sound, name in zip(self.sounds, names, strict=True)]


class AsyncClient:
    """Client of one service. Use it as a context manager, or call `close()`.

    Args:
        api_key: as `clipsynth keys create` prints it, if the service needs one.
        patience_s: how long temporary failures are retried before they are raised.
        transport: of httpx, such as `httpx.ASGITransport` for a service in the same process.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        patience_s: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.patience_s = patience_s
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=READ_TIMEOUT_S, transport=transport
        )

    async def generate(
        self,
        prompt: str | None = None,
        *,
        image: Image | None = None,
        prompts: Sequence[Mapping[str, Any]] | None = None,
        timeline: Sequence[Mapping[str, Any]] | None = None,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> Sounds:
        """Request sounds, wait, and return them; log what the client may not expect (`warnings`).

        Args:
            prompts: a weighted set: `[{"text": "piano"}, {"image": Path("x.jpg"), "weight": 0.5}]`.
            timeline: such items with times: `[{"text": "rain", "start_s": 0, "end_s": 8}]`.
            on_progress: called with the generation at each change.
            options: further fields of the request, such as `seed` or `attributes={"pitch": 0.8}`.

        Raises:
            ServiceError: it was refused, or ended without a sound; `code` says why.
        """
        submitted = generation = await self.submit(
            prompt, image=image, prompts=prompts, timeline=timeline, **options
        )
        async for generation in self.follow(submitted.id):
            if on_progress:
                on_progress(generation)
        for warning in generation.warnings:
            logger.warning(warning.detail)
        return await self.sounds(generation)

    async def submit(
        self,
        prompt: str | None = None,
        *,
        image: Image | None = None,
        prompts: Sequence[Mapping[str, Any]] | None = None,
        timeline: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Generation:
        """Request sounds and return at once. An idempotency key makes retries safe."""
        body = {
            "prompt": prompt,
            "image": image and _base64(image),
            "prompts": prompts and [_as_json(item) for item in prompts],
            "timeline": timeline and [_as_json(item) for item in timeline],
            **options,
        }
        response = await self._send(
            "POST",
            "/v1/generations",
            json={name: value for name, value in body.items() if value is not None},
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )
        return Generation.model_validate(response.json())

    async def follow(self, generation_id: str) -> AsyncGenerator[Generation]:
        """Yield the generation at each change until its end. A lost stream is resumed."""
        last_id: str | None = None
        patience = RetryPolicy(self.patience_s)
        while True:
            try:
                headers = {"Last-Event-ID": last_id} if last_id else {}
                url = f"/v1/generations/{generation_id}/events"
                with as_unreachable():
                    async with aconnect_sse(self._http, "GET", url, headers=headers) as source:
                        await check(source.response)
                        async for event in source.aiter_sse():
                            patience = RetryPolicy(self.patience_s)
                            last_id = event.id or last_id
                            if not event.data:  # a ping
                                continue
                            if event.event == "gone":
                                raise ServiceError("the service has removed it", code="gone", status=410)
                            yield (generation := Generation.model_validate_json(event.data))
                            if generation.status in TERMINAL:
                                return
            except ServiceError as error:
                await patience.wait_after(error)

    async def sounds(self, generation: Generation, *, output_format: Format | None = None) -> Sounds:
        """Return the sounds of an ended generation, in one of its formats (by default the first).

        Raises:
            ServiceError: it has none.
        """
        if generation.status is not Status.SUCCEEDED:
            error = generation.error
            raise ServiceError(
                error.detail if error else f"the generation is {generation.status}",
                code=error.code if error else generation.status.value,
            )
        wanted = output_format or generation.input.output_formats[0]
        outputs = [output for output in generation.outputs if output.format == wanted]
        found = [
            Sound((await self._send("GET", output.url[output.url.index("/v1/") :])).content, output)
            for output in outputs
        ]
        return Sounds(generation, found)

    async def get(self, generation_id: str) -> Generation:
        response = await self._send("GET", f"/v1/generations/{generation_id}")
        return Generation.model_validate(response.json())

    async def cancel(self, generation_id: str) -> Generation:
        """Cancel a generation; raises ServiceError `already_ended` if it is too late."""
        response = await self._send("POST", f"/v1/generations/{generation_id}/cancel")
        return Generation.model_validate(response.json())

    async def forget(self, generation_id: str) -> None:
        """Remove a generation and its files."""
        await self._send("DELETE", f"/v1/generations/{generation_id}")

    async def replay(self, recipe: str) -> Generation:
        """Generate the sound of a recipe again."""
        response = await self._send("POST", "/v1/replay", json={"recipe": recipe})
        return Generation.model_validate(response.json())

    async def vary(
        self, generation_id: str, *, output: int = 0, strength: float = 0.5, **options: Any
    ) -> Generation:
        """Request variations of an output; strength 0 is its sound, 1 a new one of the same prompt.

        `options` are `seed` and `num_outputs`.
        """
        body = {"output": output, "strength": strength, **options}
        return await self._remake(f"/v1/generations/{generation_id}/variations", body)

    async def extend(
        self, generation_id: str, extend_s: float, *, output: int = 0, seed: int | None = None
    ) -> Generation:
        """Request a sound that begins with an output and is `extend_s` seconds longer."""
        body = {"output": output, "extend_s": extend_s, "seed": seed}
        return await self._remake(f"/v1/generations/{generation_id}/continuations", body)

    async def _remake(self, url: str, body: dict[str, Any]) -> Generation:
        response = await self._send("POST", url, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
        return Generation.model_validate(response.json())

    async def estimate(self, prompt: str, **options: Any) -> Estimate:
        """Return how long a request would take."""
        response = await self._send("POST", "/v1/estimate", json={"prompt": prompt, **options})
        return Estimate.model_validate(response.json())

    async def models(self) -> list[ServedModel]:
        response = await self._send("GET", "/v1/models")
        return [ServedModel.model_validate(model) for model in response.json()]

    async def _send(self, method: str, url: str, **request: Any) -> httpx.Response:
        patience = RetryPolicy(self.patience_s)
        while True:
            try:
                with as_unreachable():
                    response = await self._http.request(method, url, **request)
                await check(response)
                return response
            except ServiceError as error:
                await patience.wait_after(error)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Client:
    """`AsyncClient` for code without `await`: the same methods, run by an event loop in a thread."""

    def __init__(
        self, base_url: str = DEFAULT_URL, *, api_key: str | None = None, patience_s: float = 120.0
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal())
        self._client = AsyncClient(base_url, api_key=api_key, patience_s=patience_s)
        self._stack.callback(self._run, self._client.close)

    def _run(self, method: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        return self._portal.call(partial(method, *args, **options))

    def generate(self, prompt: str | None = None, **options: Any) -> Sounds:
        return self._run(self._client.generate, prompt, **options)

    def submit(self, prompt: str | None = None, **options: Any) -> Generation:
        return self._run(self._client.submit, prompt, **options)

    def follow(self, generation_id: str) -> Iterator[Generation]:
        changes = self._client.follow(generation_id)
        try:
            while True:
                yield self._run(changes.__anext__)
        except StopAsyncIteration:
            return
        finally:
            self._run(changes.aclose)

    def sounds(self, generation: Generation, *, output_format: Format | None = None) -> Sounds:
        return self._run(self._client.sounds, generation, output_format=output_format)

    def get(self, generation_id: str) -> Generation:
        return self._run(self._client.get, generation_id)

    def cancel(self, generation_id: str) -> Generation:
        return self._run(self._client.cancel, generation_id)

    def forget(self, generation_id: str) -> None:
        self._run(self._client.forget, generation_id)

    def replay(self, recipe: str) -> Generation:
        return self._run(self._client.replay, recipe)

    def vary(self, generation_id: str, **options: Any) -> Generation:
        return self._run(self._client.vary, generation_id, **options)

    def extend(self, generation_id: str, extend_s: float, **options: Any) -> Generation:
        return self._run(self._client.extend, generation_id, extend_s, **options)

    def estimate(self, prompt: str, **options: Any) -> Estimate:
        return self._run(self._client.estimate, prompt, **options)

    def models(self) -> list[ServedModel]:
        return self._run(self._client.models)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_json(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item of a set or a timeline with its image in base64."""
    return {**item, **({"image": _base64(item["image"])} if item.get("image") else {})}


def _base64(image: Image) -> str:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode()
