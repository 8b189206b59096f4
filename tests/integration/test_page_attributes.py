"""Sliders of attributes, warnings and snippets of code on the page."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.support.constants import BATCHED_TOLERANCE
from tests.support.page import body_of, generate, image, set_slider


def test_the_page_says_what_the_model_does_not_know(page):
    page.get_by_label("What should it sound like?").fill("church bells")
    says = "this model has not heard 'church bells'; nearest:"
    page.locator("#understood").get_by_text(says).wait_for()
    page.keyboard.press("Control+Enter")
    card = page.get_by_role("article").first
    card.locator(".player").first.wait_for()
    card.get_by_text(says).wait_for()
    page.get_by_label("What should it sound like?").fill("")
    page.locator("#understood p").wait_for(state="detached")


def test_a_text_can_stay_one_sound(page):
    text = "a violin and a piano"
    assert "interpret" not in body_of(page, lambda: generate(page, text))
    with page.expect_request(lambda r: r.url.endswith("/v1/estimate") and '"interpret":false' in r.post_data):
        page.get_by_label("One sound").check()
    assert body_of(page, lambda: generate(page, text))["interpret"] is False


def test_snippets_say_how_things_come_together(page):
    page.get_by_label("What should it sound like?").fill("piano")
    page.get_by_role("button", name="Mix in words").click()
    page.get_by_label("Words").fill("rain")
    page.get_by_label("How they sound").select_option("guided by each")
    page.get_by_role("button", name="Generate").click()
    card = page.get_by_role("article").first
    card.locator(".player").first.wait_for()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    for language in ("curl", "Python"):
        card.get_by_role("button", name=f"Copy as {language}").click()
        page.wait_for_function("window.copied.includes('v1/generations')")
        assert '"composition":"compose"' in page.evaluate("window.copied")


def test_snippets_ask_for_the_same_sound(page, tmp_path, monkeypatch):
    card = generate(page, 'it\'s a "dog"')
    card.locator(".player").first.wait_for()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    card.get_by_role("button", name="Copy as Python").click()
    monkeypatch.chdir(tmp_path)
    exec(compile(page.evaluate("window.copied"), "snippet", "exec"), {})
    with page.expect_download() as download:
        card.get_by_role("button", name="WAV", exact=True).first.click()
    download.value.save_as(tmp_path / "page.wav")
    made, shown = (soundfile.read(tmp_path / name)[0] for name in ("sound.wav", "page.wav"))
    np.testing.assert_allclose(
        made, shown, atol=BATCHED_TOLERANCE
    )  # the page's second variation was its company


def test_sliders_ask_for_attributes_and_are_open_until_moved(page):
    assert page.get_by_role("slider", name="Brightness").count() == 0  # folded away
    page.get_by_text("Character", exact=True).click()
    brightness, pitch = (page.get_by_role("slider", name=name) for name in ("Brightness", "Pitch"))
    assert brightness.get_attribute("aria-valuetext") == "left open"
    page.get_by_text("dull", exact=False).first.wait_for()
    page.get_by_label("What should it sound like?").fill("a dog")
    assert "attributes" not in body_of(page, lambda: page.keyboard.press("Control+Enter"))

    brightness.press("ArrowRight")
    assert brightness.get_attribute("aria-valuetext") == "55 %, bright"
    pitch.press("Home")
    assert pitch.get_attribute("aria-valuetext") == "0 %, low"
    asked = body_of(page, lambda: page.keyboard.press("Control+Enter"))
    assert asked["attributes"] == {"brightness": 0.55, "pitch": 0}
    card = page.get_by_role("article").first
    card.get_by_text("brightness 55 % · pitch 0 %").wait_for()
    card.locator(".player").first.wait_for()

    page.get_by_role("button", name="Leave pitch open").click()
    assert pitch.get_attribute("aria-valuetext") == "left open"
    assert page.evaluate("document.activeElement.id") == "pitch"
    asked = body_of(page, lambda: page.keyboard.press("Control+Enter"))
    assert asked["attributes"] == {"brightness": 0.55}


def test_an_earlier_sounds_attributes_return_and_enter_snippets(page, tmp_path, monkeypatch):
    page.get_by_text("Character", exact=True).click()
    page.get_by_role("slider", name="Loudness").press("Home")
    set_slider(page, "Variations", 1)
    generate(page, "a dog").locator(".player").first.wait_for()
    page.reload()
    card = page.get_by_role("article", name="a dog")
    card.locator(".player").first.wait_for()
    loudness = page.locator("#loudness")
    loudness.wait_for(state="attached")
    assert loudness.get_attribute("aria-valuetext") == "left open"
    card.get_by_role("button", name="Use these settings").click()
    page.get_by_role("slider", name="Loudness").wait_for()
    assert loudness.get_attribute("aria-valuetext") == "0 %, quiet"

    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    card.get_by_role("button", name="Copy as Python").click()
    monkeypatch.chdir(tmp_path)
    exec(compile(page.evaluate("window.copied"), "snippet", "exec"), {})
    made, _ = soundfile.read("sound.wav")
    # The ends are faded.
    assert 20 * np.log10(np.sqrt(np.mean(made**2))) == pytest.approx(-40, abs=0.5)
    card.get_by_role("button", name="Copied").wait_for()
    card.get_by_role("button", name="Copy as curl").click()
    page.wait_for_function("window.copied.startsWith('curl')")
    assert '"attributes":{"loudness":0}' in page.evaluate("window.copied")


def test_an_image_snippet_sends_attributes_as_json_in_a_form(page):
    page.get_by_text("Character", exact=True).click()
    page.get_by_role("slider", name="Pitch").press("End")
    page.locator("#file").set_input_files(image("red"))
    page.get_by_role("img", name="Image: red.png").wait_for()
    page.get_by_role("button", name="Generate").click()
    card = page.get_by_role("article").first
    card.locator(".player").first.wait_for()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    card.get_by_role("button", name="Copy as curl").click()
    page.wait_for_function("window.copied")
    assert """-F 'attributes={"pitch":1}'""" in page.evaluate("window.copied")


@pytest.mark.parametrize(("taken", "shown"), [([], []), (["pitch", "timbre"], ["pitch"])])
def test_only_what_the_model_takes_has_a_slider(page, taken, shown):
    models = page.evaluate("fetch('v1/models').then((r) => r.json())")
    page.route("**/v1/models", lambda route: route.fulfill(json=[{**models[0], "attributes": taken}]))
    page.reload()
    page.get_by_text("tiny · ready").wait_for()
    page.wait_for_function("document.getElementById('duration').value === '4'")
    found = page.locator("#character-rows input").evaluate_all("(sliders) => sliders.map((s) => s.id)")
    assert found == shown
    assert page.locator("#character").is_visible() == bool(shown)
