"""The windows of a sound, and what they cost."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from clipsynth.schemas.payload import JobPayload, spans, windows
from clipsynth.schemas.prompts import StoredItem
from tests.support.api_client import INFO

WINDOW_S = 5.0


def item(text, start_s, end_s, **fields):
    return StoredItem(text=text, start_s=start_s, end_s=end_s, **fields)


def payload(**fields):
    defaults = {"model": "tiny", "prompt": "rain", "image_key": None, "negative_prompt": None, "seed": 0}
    steps = {"num_inference_steps": 8, "guidance_scale": 2.0, "duration_s": 4.0, "num_outputs": 1}
    return JobPayload(**(defaults | steps | {"output_formats": ["wav"]} | fields))


def share(window, at):
    """The share of a window in its sound at a time."""
    (a, b), (c, d) = window.rise, window.fall
    rise = 1.0 if at >= b else 0.0 if at <= a else (at - a) / (b - a)
    return min(rise, 1.0 if at <= c else 0.0 if at >= d else (d - at) / (d - c))


@pytest.mark.parametrize("duration_s", [0.5, 4.0, 5.0, 5.01, 9.0, 9.1, 30.0, 60.0])
def test_windows_cover_a_sound_with_short_overlaps(duration_s):
    found = windows(duration_s, WINDOW_S)
    assert (found[0].start_s, found[-1].end_s) == (0.0, pytest.approx(duration_s))
    assert all(window.seconds <= WINDOW_S for window in found)
    assert [a.end_s - b.start_s for a, b in pairwise(found)] == pytest.approx([1.0] * (len(found) - 1))
    assert sum(window.seconds for window in found) <= 1.25 * duration_s + 1e-6
    for n in range(200):
        at = duration_s * n / 200
        assert sum(share(window, at) for window in found) == pytest.approx(1.0)
    assert len(found) == (1 if duration_s <= WINDOW_S else len(found)) >= duration_s / WINDOW_S


@pytest.mark.parametrize("duration_s", [0.5, 4.0, 5.0, 30.0])
def test_windows_of_a_loop_make_a_circle(duration_s):
    found = windows(duration_s, WINDOW_S, loop=True)
    assert all(window.seconds <= WINDOW_S for window in found)
    assert found[-1].end_s > duration_s
    assert sum(window.seconds for window in found) <= 1.25 * duration_s + 1e-6
    for n in range(200):
        at = duration_s * n / 200
        assert sum(share(w, at + k) for w in found for k in (0, duration_s)) == pytest.approx(1.0)


def test_a_window_of_a_timeline_has_what_sounds_in_it():
    timeline = [item("rain", 0, 10), item("a dog", 4, 6, fade_s=0.5), item("wind", 12, 14)]
    found = windows(15.0, WINDOW_S, timeline)
    assert [window.items for window in found] == [(0,), (0, 1), (0,), (2,)]
    assert [(window.start_s, window.end_s) for window in found] == [(0, 4.5), (3.5, 6.5), (5.5, 10), (12, 14)]
    assert [window.rise for window in found[:2]] == [(0, 0), (3.75, 4.25)]
    silent = [(span.start_s, span.end_s) for span in spans(15.0, timeline) if not span.items]
    assert silent == [(10, 12), (14, 15)]
    wind = spans(15.0, timeline)[-2]
    assert (wind.rise, wind.fall) == ((12, 12.25), (13.75, 14))


def test_a_short_item_is_made_with_its_surroundings():
    timeline = [item("rain", 0, 3), item("a click", 3, 3.1), item("a bell", 6, 6.1)]
    _, click, bell = windows(6.1, WINDOW_S, timeline)
    assert (click.items, bell.items) == ((1,), (2,))
    assert click.seconds >= 1.0
    assert (bell.start_s, bell.end_s) == pytest.approx((5.1, 6.1))


def test_a_timeline_joins_at_the_loop_point():
    timeline = [item("rain", 0, 10), item("a dog", 4, 6)]
    found = windows(10.0, WINDOW_S, timeline, loop=True)
    assert [window.items for window in found] == [(0, 1), (0,), (0,)]
    assert (found[0].start_s, found[-1].end_s) == (3.5, 14.5)
    changed = windows(8.0, WINDOW_S, [item("rain", 0, 4), item("wind", 4, 8)], loop=True)
    assert [(w.start_s, w.end_s) for w in changed] == [(-0.5, 4.5), (3.5, 8.5)]
    whole = windows(8.0, WINDOW_S, [item("rain", 0, 8)], loop=True)
    assert whole == [w._replace(items=(0,)) for w in windows(8.0, WINDOW_S, loop=True)]


@pytest.mark.parametrize("seed", range(150))
def test_windows_of_any_timeline_have_what_sounds_in_them(seed):
    draw = random.Random(seed)
    duration_s, loop = round(draw.uniform(0.5, 30), 3), draw.random() < 0.5
    timeline = []
    for _ in range(draw.randint(1, 12)):
        start_s = round(draw.uniform(0, duration_s - 0.1), 3) if draw.random() < 0.7 else 0.0
        end_s = round(draw.uniform(start_s + 0.1, duration_s), 3) if draw.random() < 0.7 else duration_s
        timeline.append(
            item(
                "rain", start_s, min(duration_s, max(end_s, start_s + 0.1)), fade_s=draw.choice([0, 0.25, 5])
            )
        )
    found = windows(duration_s, WINDOW_S, timeline, loop=loop)
    assert all(0 < window.seconds <= WINDOW_S + 1e-6 for window in found)
    assert sum(window.seconds for window in found) <= 1.25 * duration_s + 6 * (2 * len(timeline) + 1)
    if not loop:
        assert all(0 <= w.start_s < w.end_s <= max(1.0, duration_s) + 1e-6 for w in found)
    for n in range(100):
        at = duration_s * (n + 0.5) / 100
        sounding = tuple(k for k, i in enumerate(timeline) if i.start_s <= at < i.end_s)
        turns = (-duration_s, 0, duration_s) if loop else (0,)
        here = {
            w.items for w in found for k in turns if share(w, at + k) > 0 and w.start_s <= at + k <= w.end_s
        }
        if sounding:
            assert sounding in here


def test_a_request_costs_its_windows_times_its_branches():
    assert payload().rows(WINDOW_S) == [(4.0, 1, 1)]
    assert payload().work(INFO) == 4 * 8 * 2
    long = payload(duration_s=9.0, num_outputs=2)
    assert long.rows(WINDOW_S) == [(5.0, 1, 1), (5.0, 1, 1)]
    assert long.work(INFO) == 2 * 8 * 2 * 10
    assert payload(duration_s=4.0, loop=True).work(INFO) == pytest.approx(5 * 8 * 2)
    timeline = [item("rain", 0, 4), item("a dog", 2, 4)]
    fields = {"prompt": None, "timeline": timeline}
    assert [rows for _, *rows in payload(**fields).rows(WINDOW_S)] == [[1, 1], [1, 1]]
    compose = payload(**fields, composition="compose", negative_prompt="wind")
    assert [rows for _, *rows in compose.rows(WINDOW_S)] == [[1, 1], [2, 1]]


def test_new_fields_are_left_out_of_old_payloads():
    assert not {"loop", "timeline"} & payload().model_dump().keys()
    assert payload(loop=True).model_dump()["loop"]
