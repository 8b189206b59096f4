"""Job payload, and the windows of its sounds: how many rows of the network they take.

A model makes at most `window_s` seconds at a time, as long as its training clips. A longer sound is a group
of windows that overlap, a loop is a circle of windows, and each window of a timeline has the items that sound
in it. Admission, estimate, worker and payload all count with `windows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from clipsynth.schemas.model_info import Method, ModelInfo
from clipsynth.schemas.prompts import Composition, StoredItem, StoredParent, StoredPrompt, StoredVideo

# wav has 16 bits, as flac.
Format = Literal["wav", "wav_24", "wav_float", "flac", "ogg", "mp3"]
# Overlap of two windows: at most 1 s and a fifth of a window. A loop's windows step by 4 of 5 parts.
OVERLAP_S, OVERLAP_SHARE, LOOP_SHARE = 1.0, 0.2, 0.25
# Shortest window of a timeline: a shorter item is made with more around it.
MIN_WINDOW_S = 1.0
# Shortest fade of a timeline, to both sides.
MIN_FADE_S = 0.01
# A continuation hears so much of its parent's end.
CONTEXT_S = 2.0
Ramp = tuple[float, float]


class Span(NamedTuple):
    """A stretch between two changes of a timeline, or a window of it; times in seconds.

    Its share of the sound rises from 0 to 1 over `rise` and falls over `fall`. `items` are the numbers of the
    items that sound in it: none in silence, None without a timeline. In a loop it may pass the loop's ends.
    """

    start_s: float
    end_s: float
    rise: Ramp
    fall: Ramp
    items: tuple[int, ...] | None = None

    @property
    def seconds(self) -> float:
        return round(self.end_s - self.start_s, 6)


def spans(duration_s: float, timeline: Sequence[StoredItem] | None, *, loop: bool = False) -> list[Span]:
    """Return the stretches in which the same items sound, in order; one for a sound without a timeline.

    Between two sets of items the fade lies around the change, next to silence within the sound, and there is
    none at the beginning and end of a sound that is no loop.
    """
    if not timeline:
        return [Span(0.0, duration_s, (0.0, 0.0), (duration_s, duration_s))]
    cuts = sorted({0.0, duration_s, *(at for item in timeline for at in (item.start_s, item.end_s))})
    parts = [
        (a, b, tuple(n for n, item in enumerate(timeline) if item.start_s <= a and b <= item.end_s))
        for a, b in pairwise(cuts)
    ]
    if loop and len(parts) > 1 and parts[0][2] == parts[-1][2]:
        parts = [*parts[1:-1], (parts[-1][0], duration_s + parts[0][1], parts[0][2])]
    if loop and len(parts) == 1:
        return [Span(0.0, duration_s, (0.0, 0.0), (duration_s, duration_s), parts[0][2])]

    def ramp(at: float, own: tuple[Any, ...], other: tuple[Any, ...] | None, sign: int) -> Ramp:
        """Return the fade at a change: sign 1 where `own` begins, -1 where it ends."""
        if other is None or not own[2]:
            return at, at
        same = {at, at - duration_s, at + duration_s} if loop else {at}
        fade = max([item.fade_s for item in timeline if {item.start_s, item.end_s} & same], default=0.0)
        half = min(max(fade / 2, MIN_FADE_S), (own[1] - own[0]) / 2)
        if not other[2]:
            return (at, at + 2 * half) if sign > 0 else (at - 2 * half, at)
        half = min(half, (other[1] - other[0]) / 2)
        return at - half, at + half

    found = []
    for n, part in enumerate(parts):
        before = parts[n - 1] if n or loop else None
        after = parts[(n + 1) % len(parts)] if n + 1 < len(parts) or loop else None
        found.append(
            Span(part[0], part[1], ramp(part[0], part, before, 1), ramp(part[1], part, after, -1), part[2])
        )
    return found


def windows(
    duration_s: float, window_s: float, timeline: Sequence[StoredItem] | None = None, *, loop: bool = False
) -> list[Span]:
    """Return the windows of a sound, each at most `window_s` long. Silence has none."""
    overlap = min(OVERLAP_S, OVERLAP_SHARE * window_s)
    parts = spans(duration_s, timeline, loop=loop)
    if loop and len(parts) == 1:
        count = max(1, math.ceil(duration_s / (window_s - overlap) - 1e-9))
        step = duration_s / count
        overlap = min(overlap, LOOP_SHARE * step)
        return _split(0.0, duration_s + overlap, count, overlap, parts[0].items, closed=True)
    found = []
    for part in parts:
        if part.items == ():
            continue
        start, end = part.start_s, part.end_s
        # A window that continues in another one also sees what lies behind the fade.
        if joined_before := part.rise[0] < start:
            start = min(start - overlap / 2, part.rise[0])
        if joined_after := part.fall[1] > end:
            end = max(end + overlap / 2, part.fall[1])
        missing = max(0.0, MIN_WINDOW_S - (end - start)) if timeline else 0.0
        start, end = start - missing / 2, end + missing / 2
        if not loop:
            start = max(0.0, min(start, duration_s - MIN_WINDOW_S))
            end = min(duration_s, max(end, MIN_WINDOW_S))
        count = max(1, math.ceil((end - start - overlap) / (window_s - overlap) - 1e-9))
        made = _split(start, end, count, overlap, part.items)
        if joined_before:
            made[0] = made[0]._replace(rise=part.rise)
        if joined_after:
            made[-1] = made[-1]._replace(fall=part.fall)
        found += made
    return found


def _split(
    start: float,
    end: float,
    count: int,
    overlap: float,
    items: tuple[int, ...] | None,
    *,
    closed: bool = False,
) -> list[Span]:
    """Return `count` equal windows from start to end that overlap; closed: the ends overlap as well."""
    step = (end - start - overlap) / count
    size = step + overlap
    found = []
    for n in range(count):
        first, last = start + n * step, start + n * step + size
        rise = (first, first + overlap) if n or closed else (first, first)
        fall = (last - overlap, last) if n + 1 < count or closed else (last, last)
        found.append(Span(first, last, rise, fall, items))
    return found


class JobPayload(BaseModel):
    """A request as the worker runs it: defaults and seed filled in, images in storage.

    `attributes` also has those in words of the prompt; the prompt no longer contains these words.
    """

    model_config = ConfigDict(extra="forbid")

    v: Literal[1] = 1
    model: str
    prompt: str | None
    prompts: list[StoredPrompt] | None = None
    composition: Composition = "set"
    image_key: str | None
    image_sha256: str | None = None
    negative_prompt: str | None
    attributes: dict[str, float] = {}
    method: Method = "diffusion"
    rank: int = Field(default=0, ge=0)
    loop: bool = Field(default=False, exclude_if=lambda value: not value)
    timeline: list[StoredItem] | None = Field(default=None, exclude_if=lambda value: value is None)
    video: StoredVideo | None = Field(default=None, exclude_if=lambda value: value is None)
    # Of the recipe that is replayed, if the model now has another one.
    precision: str | None = Field(default=None, exclude_if=lambda value: value is None)
    parent: StoredParent | None = Field(default=None, exclude_if=lambda value: value is None)
    seed: int = Field(ge=0, lt=2**32)
    num_inference_steps: int = Field(ge=1, le=200)
    guidance_scale: float
    duration_s: float
    num_outputs: int = Field(ge=1, le=8)
    deadline_s: float | None = None
    output_formats: list[Format] = Field(min_length=1)

    @classmethod
    def known(cls, stored: str | bytes) -> Self:
        """Read the fields of a record's payload that this version knows.

        Use it to show a job that a newer version has accepted, never to run one.
        """
        return cls.model_validate_json(stored, extra="ignore")

    @property
    def conditions(self) -> list[StoredPrompt]:
        """All prompts as one weighted set: prompt and image have weight 1, the negative prompt -1."""
        items: list[StoredPrompt] = [*(self.prompts or []), *(self.timeline or [])]
        if self.prompt is not None:
            items.append(StoredPrompt(text=self.prompt))
        if self.image_key is not None:
            items.append(StoredPrompt(image_key=self.image_key, image_sha256=self.image_sha256))
        if self.negative_prompt is not None:
            items.append(StoredPrompt(text=self.negative_prompt, weight=-1.0))
        return items

    @property
    def pointers(self) -> list[str]:
        """Return the field of the request that each of `conditions` comes from."""
        found = [f"/prompts/{n}" for n in range(len(self.prompts or ()))]
        for n, item in enumerate(self.timeline or ()):
            own = "/prompt" if item.text is not None else "/video"
            found.append(own if self.video else f"/timeline/{n}")
        plain = {"/prompt": self.prompt, "/image": self.image_key, "/negative_prompt": self.negative_prompt}
        return found + [pointer for pointer, value in plain.items() if value is not None]

    @property
    def sampled_s(self) -> float:
        """Seconds of an output that the network makes: of a continuation also the end of its parent."""
        extend_s = self.parent.extend_s if self.parent else None
        return self.duration_s if extend_s is None else extend_s + min(CONTEXT_S, self.duration_s - extend_s)

    @property
    def is_copy(self) -> bool:
        """Whether the outputs are the parent's sound."""
        return self.parent is not None and self.parent.strength == 0

    def windows(self, window_s: float) -> list[Span]:
        """Return the windows of an output of a model that makes `window_s` seconds at a time."""
        return windows(self.sampled_s, window_s, self.timeline, loop=self.loop)

    def spans(self) -> list[Span]:
        """Return the stretches in which the same items sound."""
        return spans(self.duration_s, self.timeline, loop=self.loop)

    def rows(
        self, window_s: float, distilled_guidance_range: Sequence[float] = ()
    ) -> list[tuple[float, int, int]]:
        """Return for each window of an output its seconds and its rows in a step of the network.

        Rows are counted twice: those with conditions, and those added by guidance.
        """
        return [
            (window.seconds, *self._branches(window.items, distilled_guidance_range))
            for window in self.windows(window_s)
        ]

    def _branches(self, items: tuple[int, ...] | None, distilled: Sequence[float]) -> tuple[int, int]:
        """Return the rows of one window with these items.

        Args:
            distilled: lowest and highest guidance scale that needs no added rows; empty if the model was not
                distilled. Never applies to negative prompts, to `mix`, or to `compose` of several or weighted
                prompts.
        """
        weights = [condition.weight for condition in self.conditions]
        if items is not None:
            weights = [weights[n] for n in items] + [weight for weight in weights if weight < 0]
        wanted = [weight for weight in weights if weight > 0]
        conditional = 1 if self.composition == "set" else len(wanted)
        alone = wanted == weights and (self.composition != "compose" or wanted == [1.0])
        learned = bool(distilled) and distilled[0] <= self.guidance_scale <= distilled[1]
        if self.guidance_scale <= 1 or (alone and learned):
            return conditional, 0
        return conditional, len(wanted) if self.composition == "mix" else 1

    def work(self, model: ModelInfo | None) -> float:
        """Return the work: network passes times seconds of sound, over all outputs; 0 without the network.

        Without a measured cost, guidance is counted in every step.
        """
        if self.method == "retrieval" or self.is_copy:
            return 0.0
        cost = model.cost if model else None
        share, learned = (cost.guided_share, cost.distilled_guidance_range) if cost else (1.0, [])
        window_s = (model.window_s or model.max_duration_s) if model else self.duration_s
        rows = self.rows(window_s, learned)
        passes = sum(seconds * (conditional + share * added) for seconds, conditional, added in rows)
        return self.num_outputs * self.num_inference_steps * passes
