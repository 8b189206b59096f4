"""Systems from elsewhere: an HTTP service with our API, and a folder of sounds."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from clipsynth.schemas.generation import Generation
from clipsynth.schemas.model_info import ServedModel
from clipsynth.schemas.request import GenerationRequest
from evaluation.audio import check_sound, fingerprint, resample
from evaluation.clips import read_csv
from evaluation.interfaces import SAMPLE_RATE, Query, QueryKind, Sources, split_options

if TYPE_CHECKING:
    import httpx

COLUMNS = ("file", "kind", "clip", "seed")
POLL_S = 0.2


def read_audio(file: Path | io.BytesIO, name: str) -> np.ndarray:
    """Return the mean of a sound file's channels (T,) at `SAMPLE_RATE`.

    Raises:
        ValueError: not a sound file, or not finite; the message starts with `name`.
    """
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name} cannot be read as sound: {error}") from error
    return resample(check_sound(samples.mean(1), name), rate, SAMPLE_RATE)


class Service:
    """A running CLIPSynth service; the queries of one call run at the same time.

    Option `learned_from` as for bundles.
    """

    kinds: frozenset[QueryKind] = frozenset({"text", "image"})
    deterministic, generative = False, True

    def __init__(self, name: str, http: httpx.Client, *, learned_from: str = "image") -> None:
        self.name, self.http = name, http
        self.training_query, self.unlabeled = learned_from, learned_from == "image"
        served = [ServedModel.model_validate(m) for m in self._json("GET", "/v1/models")]
        if not served:
            raise ValueError(f"{http.base_url} serves no model")
        self.model = served[0].name
        self.version = fingerprint("http", str(http.base_url), served[0].name, served[0].version)

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Service:
        """Build from "//host:port" or "https://host", with "?learned_from=text&api_key=cs_…"."""
        import httpx

        del sources
        place, options = split_options(argument, {"learned_from": str, "api_key": str})
        key = options.pop("api_key", None)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = place if "://" in place else f"http:{place}"
        return cls(name, httpx.Client(base_url=url, timeout=60, headers=headers), **options)

    def _json(self, method: str, path: str, body: object = None) -> Any:
        import httpx

        try:
            answer = self.http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ValueError(f"{self.http.base_url}: {error or type(error).__name__}") from error
        if answer.is_error:
            raise ValueError(f"{self.http.base_url}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        made = [self._post(query, seed) for query, seed in zip(queries, seeds, strict=True)]
        return [self._sound(generation) for generation in made]

    def _post(self, query: Query, seed: int) -> Generation:
        image_file = None
        if query.image is not None:
            file = io.BytesIO()
            query.image.save(file, "PNG")
            image_file = base64.b64encode(file.getvalue()).decode()
        wanted = GenerationRequest(
            prompt=query.prompt, image=image_file, seed=seed, duration_s=query.duration_s, model=self.model
        )
        body = wanted.model_dump(mode="json", exclude_none=True)
        return Generation.model_validate(self._json("POST", "/v1/generations", body))

    def _sound(self, made: Generation) -> np.ndarray:
        while made.finished_at is None:
            time.sleep(POLL_S)
            made = Generation.model_validate(self._json("GET", f"/v1/generations/{made.id}"))
        if not made.outputs:
            why = made.error.detail if made.error else "no sound"
            raise ValueError(f"{self.name}: generation {made.id} ended {made.status}: {why}")
        answer = self.http.get(f"/v1/generations/{made.id}/audio/0").raise_for_status()
        return read_audio(io.BytesIO(answer.content), f"{self.name}, generation {made.id}")


class Folder:
    """Sounds made elsewhere. FOLDER/manifest.csv lists them in the columns file, kind, clip and seed.

    `clipsynth evaluate` writes its queries to queries.csv, with the same columns but `file`.
    """

    deterministic, generative = False, True

    def __init__(self, name: str, folder: Path, *, learned_from: str = "image") -> None:
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            raise ValueError(f"{folder} holds no {manifest.name} with the columns {', '.join(COLUMNS)}")
        rows = read_csv(manifest, COLUMNS)
        missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
        if missing:
            count = f"{len(missing)} of {len(rows)} files"
            raise ValueError(f"{manifest} names {missing[0]}, which is not there ({count})")
        rates = sorted({soundfile.info(folder / row["file"]).samplerate for row in rows})
        if len(rates) > 1:
            raise ValueError(f"{folder} mixes sample rates ({', '.join(map(str, rates))} Hz); use one")
        self.name, self.folder, self.training_query = name, folder, learned_from
        self.unlabeled = learned_from == "image"
        self.files = {(row["kind"], row["clip"], row["seed"]): folder / row["file"] for row in rows}
        self.kinds: frozenset[QueryKind] = frozenset(
            kind for kind in ("text", "image") if any(k == kind for k, _, _ in self.files)
        )
        stats = {row["file"]: (folder / row["file"]).stat() for row in rows}
        sizes = {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}
        self.version = fingerprint("folder", name, sizes, manifest.read_text())

    @classmethod
    def load(cls, name: str, argument: str, sources: Sources) -> Folder:
        """Build from "FOLDER" or "FOLDER?learned_from=text"."""
        del sources
        place, options = split_options(argument, {"learned_from": str})
        return cls(name, Path(place), **options)

    def synthesize(self, queries: Sequence[Query], seeds: Sequence[int]) -> list[np.ndarray]:
        return [self._read(query, seed) for query, seed in zip(queries, seeds, strict=True)]

    def _read(self, query: Query, seed: int) -> np.ndarray:
        file = self.files.get((query.kind, query.clip, str(seed)))
        if file is None:
            raise ValueError(f"{self.folder}: no sound for the {query.kind} of {query.clip} with seed {seed}")
        return read_audio(file, str(file))
