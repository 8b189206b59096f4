"""Sounds of many windows: how they are sampled, joined and decoded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clipsynth.schemas.payload import spans, windows
from clipsynth.schemas.prompts import StoredItem
from models import Prompt
from models.audio import vocoder as vocoding
from models.audio.corrections import find_harmonics
from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import LOG_FLOOR, MelSpectrogram
from models.audio.vocoder import vocode
from models.conditioning.timeline import Plateau, Stretch, at_levels, tokens_of
from models.networks.condition_encoder import ConditionTokens
from models.sampler import RowWindow, SamplerRow, advance, continuing

EMPTY = ConditionTokens(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))
MEL = MelSpectrogram()
WINDOW_S = 5.0
RAIN = (Prompt("rain"),)


def condition(value):
    return ConditionTokens(torch.full((1, 1, 4), float(value)), torch.ones(1, 1, dtype=torch.bool))


def window(first, size, length, value, share=1.0):
    places = torch.arange(first, first + size) % length
    return RowWindow(places, torch.full((size, 1), share), [condition(value)], EMPTY)


def by_condition(x, _t, c, _m):
    return c.tokens[:, :1, :1].expand_as(x).clone()


def sampled(pipe, *, seed=0, prompts=RAIN, **fields):
    duration_s, timeline = fields.pop("duration_s"), fields.pop("timeline", None)
    loop = fields.get("loop", False)
    rows = pipe.prepare_rows(
        prompts,
        num_inference_steps=2,
        guidance_scale=2.0,
        duration_s=duration_s,
        generators=[torch.Generator().manual_seed(seed)],
        windows=[Stretch(*w) for w in windows(duration_s, WINDOW_S, timeline, loop=loop)],
        timeline=[Stretch(*s) for s in spans(duration_s, timeline, loop=loop)] if timeline else [],
        **fields,
    )
    with torch.inference_mode():
        while not rows[0].done:
            advance(rows, pipe.denoiser)
    return rows


def sound(pipe, **fields):
    with torch.inference_mode():
        return pipe.decode(sampled(pipe, **fields), fields["duration_s"])[0]


def test_velocities_are_averaged_where_windows_overlap():
    made = [window(0, 6, 10, 1.0), window(4, 6, 10, 4.0, share=0.5)]
    row = SamplerRow(torch.zeros(1, 10, 2), [condition(9)], EMPTY, 1, 1.0, windows=made)
    assert (row.passes, row.num_tokens, row.length) == (2, 6, 10)
    assert advance([row], by_condition) == 2
    assert row.latents[0, :, 0].tolist() == [1, 1, 1, 1, 2, 2, 4, 4, 4, 4]


def test_known_data_gives_way_by_its_shares():
    noise, data = torch.randn(1, 6, 4), torch.full((1, 4, 4), 3.0)
    shares = torch.tensor([1.0, 1.0, 0.5, 0.0])[:, None]
    row = SamplerRow(noise, [condition(1)], EMPTY, 2, 1.0)
    held = continuing(row, data, shares, np.zeros(1, np.float32))
    for one in (row, held):
        while not one.done:
            advance([one], by_condition)
    torch.testing.assert_close(held.latents[:, :2], data[:, :2])
    torch.testing.assert_close(held.latents[:, 2], (data[:, 2] + row.latents[:, 2]) / 2)
    torch.testing.assert_close(held.latents[:, 3:], row.latents[:, 3:])


def test_tokens_in_no_window_stay_noise():
    start = torch.randn(1, 8, 2)
    row = SamplerRow(start, [condition(9)], EMPTY, 2, 1.0, windows=[window(2, 3, 8, 1.0)])
    while not row.done:
        advance([row], by_condition)
    torch.testing.assert_close(row.latents - start, torch.zeros(1, 8, 2).index_fill(1, torch.arange(2, 5), 1))


def test_a_large_group_takes_several_calls(tiny_pipeline):
    sizes = []

    def velocity(x, *rest):
        sizes.append(len(x))
        return tiny_pipeline.denoiser(x, *rest)

    [row] = sampled(tiny_pipeline, duration_s=30.0)
    fields = {"guidance_interval": (0.0, 1.0), "step": 0, "previous_velocity": None}
    rows = [SamplerRow(**(vars(row) | fields)) for _ in range(2)]
    with torch.inference_mode():
        assert advance(rows[:1], velocity, group_rows=6) == 16
        advance(rows[1:], velocity, group_rows=16)
    assert sizes == [6, 6, 4, 16]
    torch.testing.assert_close(rows[0].latents, rows[1].latents, atol=1e-4, rtol=0)


def test_a_long_sound_has_its_length_and_seed(tiny_pipeline):
    first, again, other = (sound(tiny_pipeline, duration_s=7.3, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (round(7.3 * 16000),)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_each_component_of_a_mix_has_all_windows(tiny_pipeline):
    prompts = [Prompt("rain"), Prompt("a dog", 0.5)]
    [row] = sampled(tiny_pipeline, duration_s=7.3, prompts=prompts, composition="mix")
    assert (row.components, len(row.windows), row.passes) == (2, 2, 4)


def test_a_window_longer_than_the_training_clips_is_rejected(tiny_pipeline):
    with pytest.raises(ValueError, match="duration_s"):
        tiny_pipeline.prepare_rows(
            [Prompt("rain")],
            num_inference_steps=2,
            guidance_scale=2.0,
            duration_s=12.0,
            generators=[None],
            windows=[Stretch(0.0, 6.0, (0, 0), (6, 6)), Stretch(6.0, 12.0, (6, 6), (12, 12))],
        )


def test_a_loop_is_a_whole_number_of_tokens(tiny_pipeline):
    made = sound(tiny_pipeline, duration_s=1.01, loop=True)
    assert len(made) == 26 * 4 * 160


def test_the_windows_of_a_loop_pass_its_end():
    [stretch] = windows(1.0, WINDOW_S, loop=True)
    places, shares = tokens_of(Stretch(*stretch), 32, 25, 25.0, loop=True)
    assert places.tolist() == [n % 25 for n in range(32)]
    total = torch.zeros(25, 1).index_add_(0, places, shares)
    torch.testing.assert_close(total, torch.ones(25, 1), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["hifigan", "istft"])
def test_pieces_of_a_sound_equal_the_whole(tiny_pipeline, monkeypatch, kind):
    torch.manual_seed(0)
    network = tiny_pipeline.vocoder if kind == "hifigan" else IstftVocoder(dim=16, depth=2)
    log_mel = 2 * torch.randn(1, 500, 64) - 5
    with torch.inference_mode():
        whole = vocode(network, log_mel, MEL)
        monkeypatch.setattr(vocoding, "PIECE", 150)
        torch.testing.assert_close(vocode(network, log_mel, MEL), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["hifigan", "istft"])
def test_a_loop_is_decoded_as_a_circle(tiny_pipeline, monkeypatch, kind):
    torch.manual_seed(0)
    network = tiny_pipeline.vocoder if kind == "hifigan" else IstftVocoder(dim=16, depth=2)
    # Without noise and tones, a turned mel gives a turned sound.
    monkeypatch.setattr(vocoding, "add_noise_texture", lambda log_mel, *_: log_mel)
    monkeypatch.setattr(vocoding, "INPUT_NOISE", 0.0)
    monkeypatch.setattr(vocoding, "fixed_noise", lambda hop: torch.zeros(2048 * hop))
    log_mel = (torch.randn(1, 200, 1) - 5).expand(1, 200, 64)
    with torch.inference_mode():
        made, turned = (vocode(network, x, MEL, loop=True) for x in (log_mel, log_mel.roll(70, 1)))
    torch.testing.assert_close(made.roll(70 * 160, 1), turned, atol=1e-4, rtol=0)


def test_a_tone_passes_the_loop_point_in_phase():
    frames, first = 97, 20
    tone = torch.sin(2 * math.pi * 443.7 * torch.arange((frames + 2 * first) * 160) / 16000)[None]
    found = find_harmonics(MEL(tone), MEL, (first, frames)).sinusoids[0]
    start, period = first * 160, frames * 160
    assert found.abs().max() > 0.5
    after = slice(0, start // 2)
    torch.testing.assert_close(found[start + period :][after], found[start:][after], atol=2e-3, rtol=0)
    spectrum = torch.fft.rfft(found[start : start + period]).abs()
    assert float(spectrum.argmax()) * 16000 / period == pytest.approx(443.7, abs=1.1)


def test_a_timeline_is_silent_where_nothing_sounds(tiny_pipeline):
    timeline = [StoredItem(text="rain", start_s=1, end_s=2), StoredItem(text="a dog", start_s=3, end_s=4)]
    prompts = [Prompt("rain"), Prompt("a dog")]
    [row] = sampled(tiny_pipeline, duration_s=5.0, prompts=prompts, timeline=timeline)
    assert len(row.windows) == row.passes == 2
    assert not torch.equal(row.windows[0].conds[0].tokens, row.windows[1].conds[0].tokens)
    made = sound(tiny_pipeline, duration_s=5.0, prompts=prompts, timeline=timeline)
    levels = [np.abs(made[round(a * 16000) : round(b * 16000)]).max() for a, b in ((0, 1), (2, 3), (4, 5))]
    assert max(levels) == 0
    assert min(np.abs(made[round(a * 16000) :][:8000]).max() for a in (1.25, 3.25)) > 0


def test_negative_prompts_and_attributes_hold_in_their_windows(tiny_pipeline):
    timeline = [
        StoredItem(text="rain", start_s=0, end_s=2),
        StoredItem(text="a dog", start_s=2, end_s=4),
    ]
    prompts = [Prompt("rain", 2.0), Prompt("a dog", attributes={"pitch": 0.9}), Prompt("wind", -1.0)]
    [row] = sampled(tiny_pipeline, duration_s=4.0, prompts=prompts, timeline=timeline)
    rain, dog = row.windows
    assert torch.equal(rain.uncond.tokens, dog.uncond.tokens)
    assert rain.uncond.mask.any()
    assert [w.conds[0].tokens.shape[1] for w in (rain, dog)] == [1, 2]  # the second has scalars


def test_levels_of_stretches_are_joined_by_lines():
    made = at_levels(
        np.ones(1000, np.float32) * np.float32(0.1),
        [Plateau(0, 2, -40.0), Plateau(3, 4, silent=True), Plateau(5, 10)],
        100,
        loop=False,
    )
    assert made[:200] == pytest.approx(0.01, rel=1e-3)
    assert made[250] == pytest.approx(0.005, rel=0.05)
    assert made[300:399] == pytest.approx(0.0)
    assert made[450] == pytest.approx(0.05, rel=0.05)
    assert made[500:] == pytest.approx(0.1)


def test_silence_has_the_floor_of_the_mel(tiny_pipeline, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "models.pipeline.to_waveforms",
        lambda _v, log_mel, _m, *, size, **_: seen.append(log_mel) or [np.zeros(size, np.float32)],
    )
    timeline = [StoredItem(text="rain", start_s=0, end_s=1)]
    sound(tiny_pipeline, duration_s=2.0, timeline=timeline)
    assert (seen[0][0, 100:] == LOG_FLOOR).all()
    assert (seen[0][0, :90] != LOG_FLOOR).any()
