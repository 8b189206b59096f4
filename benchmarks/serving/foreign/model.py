"""The model function of the other servers: a batch of requests in, their sounds out. `options` are those of benchmarks/serving/contenders.py."""

from __future__ import annotations

import json
import os
import site
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.serving.accelerator import Request, group_s, groups, silence

OPTIONS: dict[str, Any] = json.loads(os.environ.get("COMPARE_OPTIONS", "{}"))
Generate = Callable[[Sequence[dict[str, Any]]], list[bytes]]


def load() -> Generate:
    """Return the model that the options name."""
    return simulated if OPTIONS["bundle"] is None else demo(OPTIONS["bundle"])


def simulated(batch: Sequence[dict[str, Any]]) -> list[bytes]:
    """Sleep for as long as a simulated accelerator takes: the shim cuts the batch into groups, one after the other."""
    requests = [Request(**fields) for fields in batch]
    time.sleep(sum(group_s(group) for group in groups(requests, sort=OPTIONS["sort"])))
    return [silence(request.duration_s) for request in requests]


def demo(bundle: str) -> Generate:
    """Return the pipeline of a bundle on the CPU; all requests of a batch have one prompt and duration. Torch and all are this repository's environment's."""
    site.addsitedir(OPTIONS["packages"])
    from clipsynth.settings import Settings
    from worker.main import load as load_predictor

    predictor = load_predictor(Settings(model=bundle, device="cpu"))

    def generate(batch: Sequence[dict[str, Any]]) -> list[bytes]:
        first = batch[0]
        sounds = predictor.pipeline(
            first["prompt"],
            num_waveforms_per_prompt=len(batch),
            num_inference_steps=first["num_inference_steps"],
            guidance_scale=first["guidance_scale"],
            duration_s=first["duration_s"],
        ).audios
        return [predictor.encode_response(sound) for sound in sounds]

    return generate
