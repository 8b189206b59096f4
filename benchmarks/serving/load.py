"""What is asked of the simulated model; loads no torch."""

from __future__ import annotations

from clipsynth.errors import NotFound
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import Generation, JobPayload
from models.bundle import Manifest

MANIFEST = Manifest(name="simulated", min_duration_s=0.5, max_duration_s=10.0, num_inference_steps=8)
POISON = "poison"  # a prompt that kills the process at its first step


def payload(**fields: object) -> JobPayload:
    """Return a request of one second, 8 steps, no guidance, unless `fields` say otherwise."""
    defaults: dict[str, object] = {
        "model": MANIFEST.name,
        "prompt": "rain",
        "image_key": None,
        "negative_prompt": None,
        "seed": 0,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "duration_s": 1.0,
        "num_outputs": 1,
        "output_formats": ["wav"],
    }
    return JobPayload(**defaults | fields)


def look(state: JobStore, generation_id: str) -> Generation | None:
    """Return a generation; None where its record is lost."""
    try:
        return state.get(generation_id)
    except NotFound:
        return None
