"""The playground in a real browser, against a whole service with the tiny bundle."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from tests.support.browser import open_chromium
from tests.support.constants import BATCHED_TOLERANCE

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, served):
    """A fresh page that is ready. It fails the test on a script's error, and on a request to elsewhere."""
    service, _ = served
    service.wait_for_worker()
    context = browser.new_context(base_url=service.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
    page.on("request", lambda r: None if r.url.startswith((service.url, "blob:")) else wrong.append(r.url))
    page.goto("/")
    page.get_by_text("tiny · ready").wait_for()
    set_slider(page, "Duration", 0.5)
    set_slider(page, "Steps", 4)
    yield page
    context.close()
    assert wrong == []


def set_slider(page, label, value):
    page.locator("#settings").evaluate("(settings) => { settings.open = true; }")
    page.get_by_label(label, exact=True).evaluate(
        "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", value
    )


def generate(page, prompt):
    """Type, press Ctrl+Enter and return the card of the sound."""
    page.get_by_label("What should it sound like?").fill(prompt)
    page.keyboard.press("Control+Enter")
    return page.get_by_role("article").first


def image(colour):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return {"name": f"{colour}.png", "mimeType": "image/png", "buffer": file.getvalue()}


def body_of(page, action):
    """Return what the page asks the service for when `action` is done."""
    with page.expect_request(lambda r: r.url.endswith("/v1/generations") and r.method == "POST") as asked:
        action()
    return json.loads(asked.value.post_data)


def test_a_prompt_is_played_and_downloaded(page, tmp_path):
    card = generate(page, "a dog barking")
    players = card.locator(".player")
    players.nth(1).wait_for()  # two variations by default
    assert players.count() == 2
    player = players.first
    page.wait_for_function("(image) => image.naturalWidth > 0", arg=player.locator("img").element_handle())
    player.get_by_role("button", name="Play").click()
    player.get_by_role("button", name="Pause").or_(player.get_by_text("0.5 / 0.5 s")).wait_for()
    player.get_by_role("slider").press("End")
    player.get_by_text("0.5 / 0.5 s").wait_for()
    player.get_by_role("slider").press("Home")
    player.get_by_text("0.0 / 0.5 s").wait_for()
    for kind, magic in (("WAV", b"RIFF"), ("FLAC", b"fLaC"), ("OGG", b"OggS")):
        with page.expect_download() as download:
            player.get_by_role("button", name=kind, exact=True).click()
        download.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes()[:4] == magic
    samples, rate = soundfile.read(tmp_path / "WAV")
    assert (len(samples), rate) == (8000, 16000)
    assert np.abs(samples).max() > 0


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_card_names_the_nearest_clip_and_marks_a_copy(page, is_copy):
    def as_told(route):
        told = route.fetch()
        body = re.sub(r'"is_copy": ?(false|true)', f'"is_copy":{str(is_copy).lower()}', told.text())
        route.fulfill(response=told, body=body)

    page.route("**/v1/generations/*/events", as_told)
    player = generate(page, "a dog").locator(".player").first
    nearest = player.locator(".nearest:not(.copied)")
    nearest.wait_for()
    assert re.fullmatch(
        r"Nearest training clip: (\d)\.mp4 at 0\.5 s \(source \1, CC0 1\.0\), distance [01]\.\d\d",
        nearest.text_content(),
    )
    assert player.get_by_text("So near that it counts as a copy").count() == is_copy
    if is_copy:
        assert Axe().run(page).response["violations"] == []


def test_a_card_marks_a_retrieved_training_clip(page):
    clip = {"video": "7.mp4", "start_s": 5.0, "source": "the <b>archive</b>", "licence": "CC0"}

    def retrieved(route):
        told = route.fetch()
        body = re.sub(r'"clip": ?null', f'"clip":{json.dumps(clip)}', told.text())
        route.fulfill(response=told, body=body)

    page.route("**/v1/generations/*/events", retrieved)
    player = generate(page, "a dog").locator(".player").first
    player.get_by_text(
        "A training clip, not generated: 7.mp4 at 5 s (the <b>archive</b>, CC0)", exact=True
    ).wait_for()
    assert player.locator(".nearest").count() == 1


def test_progress_is_shown_until_a_cancel(page):
    set_slider(page, "Steps", 100)
    set_slider(page, "Variations", 8)
    set_slider(page, "Duration", 5)  # all as long as can be: it must not be over before it is canceled
    card = generate(page, "a long one")
    card.get_by_text("Step ").wait_for()
    seen = card.locator(".state span").text_content()
    page.wait_for_function(
        "([span, seen]) => span.textContent !== seen",
        arg=[card.locator(".state span").element_handle(), seen],
    )
    card.get_by_role("button", name="Cancel").click()
    card.get_by_text("Canceled").wait_for()


def test_words_and_images_are_mixed_and_a_chip_can_be_removed(page):
    page.get_by_label("What should it sound like?").fill("piano")
    page.get_by_role("button", name="Mix in words").click()
    page.get_by_label("Words").fill("rain")
    page.get_by_label("Weight").evaluate("(e) => { e.value = 0.6; e.dispatchEvent(new Event('input')); }")
    page.get_by_role("button", name="Leave out").click()
    page.get_by_label("Words").last.fill("speech")
    page.locator("#file").set_input_files([image("red"), image("blue")])
    page.get_by_role("img", name="Image: blue.png").wait_for()
    page.get_by_role("button", name="Remove", exact=True).last.click()
    asked = body_of(page, lambda: page.get_by_role("button", name="Generate").click())
    shown = [(item.get("text", "image"), item["weight"]) for item in asked["prompts"]]
    assert shown == [("piano", 1), ("rain", 0.6), ("speech", -1), ("image", 1)]
    page.get_by_role("article", name="piano + rain ×0.6 + speech ×-1 + an image").locator(
        ".player"
    ).first.wait_for()


def test_two_things_can_be_heard_in_three_ways(page):
    how = page.get_by_label("How they sound")
    page.get_by_label("What should it sound like?").fill("piano")
    page.get_by_role("button", name="Leave out").click()
    page.get_by_label("Words").fill("speech")
    assert not how.is_visible()  # one thing alone is to be heard
    page.get_by_role("button", name="Mix in words").click()
    page.get_by_label("Words").last.fill("rain")
    how.wait_for()
    assert how.locator("option").all_text_contents() == [
        "together",
        "guided by each",
        "separately, then mixed",
    ]
    asked = body_of(page, lambda: page.get_by_role("button", name="Generate").click())
    assert "composition" not in asked
    with page.expect_request(lambda r: r.url.endswith("/v1/estimate") and '"mix"' in r.post_data) as sketched:
        how.select_option("separately, then mixed")
    sketch = json.loads(sketched.value.post_data)
    assert sketch["prompts"] == [{"text": "any"}] * 2
    asked = body_of(page, lambda: page.get_by_role("button", name="Generate").click())
    assert (asked["composition"], len(asked["prompts"])) == ("mix", 3)
    card = page.get_by_role("article").first
    card.locator(".player").first.wait_for()
    card.get_by_text("separately, then mixed · seed").wait_for()
    page.locator("#mixture").get_by_role("button", name="Remove").last.click()
    how.wait_for(state="hidden")
    page.get_by_role("article").first.get_by_role("button", name="Use these settings").click()
    how.wait_for()
    assert how.input_value() == "mix"


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


def test_a_dropped_image_becomes_a_sound_by_itself(page):
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "drop.png", { type: "image/png" }));
            return transfer;
        }""",
        list(image("green")["buffer"]),
    )
    page.dispatch_event("#composer", "drop", {"dataTransfer": transfer})
    page.get_by_role("img", name="Image: drop.png").wait_for()
    asked = body_of(page, lambda: page.get_by_role("button", name="Generate").click())
    assert "image" in asked
    assert "prompts" not in asked
    page.get_by_role("article", name="an image").locator(".player").first.wait_for()


def test_what_the_service_refuses_is_said_in_words(page):
    page.route(
        "**/v1/generations",
        lambda route: route.fulfill(
            status=429,
            headers={"Retry-After": "7", "Content-Type": "application/problem+json"},
            body=json.dumps({"code": "queue_full", "detail": "the queue is full"}),
        ),
    )
    page.get_by_label("What should it sound like?").fill("a dog")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text("The queue is full. Try again in 7 s").wait_for()
    page.unroute("**/v1/generations")
    page.get_by_role("button", name="Generate").click()
    page.locator(".player").first.wait_for()
    assert page.get_by_role("alert").count() == 0


def test_a_held_shortcut_submits_once(page):
    page.get_by_label("What should it sound like?").fill("once")
    page.keyboard.down("Control")
    for _ in range(5):
        page.keyboard.down("Enter")  # from the second on a repeat, as the event says
    page.keyboard.up("Enter")
    page.keyboard.up("Control")
    page.get_by_role("article", name="once").locator(".player").first.wait_for()
    assert page.get_by_role("article", name="once").count() == 1


def test_settings_stay_while_no_model_is_ready(page):
    models = page.evaluate("fetch('v1/models').then((r) => r.json())")
    page.route("**/v1/models", lambda route: route.fulfill(json=[{**models[0], "status": "starting"}]))
    page.reload()
    page.get_by_text("No model is ready yet").wait_for()
    set_slider(page, "Steps", 7)
    for _ in range(2):  # looked for again
        with page.expect_response("**/v1/models"):
            pass
    assert page.evaluate("document.getElementById('steps').value") == "7"


def test_an_empty_prompt_and_a_lost_service_are_explained(page):
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text("Say what it should sound like").wait_for()
    page.route("**/v1/generations", lambda route: route.abort())
    generate(page, "a dog")
    page.get_by_role("alert").get_by_text("does not answer").wait_for()


def test_history_survives_a_reload_until_removed(page):
    card = generate(page, "kept")
    card.locator(".player").first.wait_for()
    page.reload()
    card = page.get_by_role("article", name="kept")
    card.locator(".player").first.wait_for()
    card.get_by_role("button", name="Remove").click()
    page.get_by_text("Your sounds appear here").wait_for()
    page.reload()
    page.get_by_text("Your sounds appear here").wait_for()


def test_a_recipe_link_replays_the_sound(page, served):
    service, _ = served
    card = generate(page, "shared")
    card.locator(".player").first.wait_for()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    card.get_by_role("button", name="Copy recipe link").click()
    link = page.evaluate("window.copied")
    assert link.startswith(f"{service.url}/#replay=")
    page.goto("about:blank")
    page.goto(link)
    page.get_by_role("button", name="Make it again").click()
    page.get_by_role("article").nth(1).locator(".player").first.wait_for()


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


def test_two_sounds_are_compared_in_turn(page):
    card = generate(page, "pair")
    card.locator(".player").nth(1).wait_for()
    card.get_by_role("button", name="Compare as A").first.click()
    card.get_by_role("button", name="Compare as B").last.click()
    bar = page.get_by_role("complementary", name="Compare two sounds")
    bar.get_by_text("pair, variation 2").wait_for()
    bar.get_by_role("button", name="Hear B").click()
    bar.get_by_role("button", name="Hear A").wait_for()
    bar.get_by_role("button", name="Stop comparing").click()
    bar.wait_for(state="hidden")


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
    assert 20 * np.log10(np.sqrt(np.mean(made**2))) == pytest.approx(-40, abs=0.1)
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


def test_markup_in_a_prompt_is_shown_as_text(page):
    card = generate(page, "<img src=x onerror=alert(1)><b>bold</b>")
    card.get_by_role("heading", name="<img src=x onerror=alert(1)><b>bold</b>").wait_for()
    assert card.locator("b").count() == 0


@pytest.mark.parametrize("width", [360, 390, 768])
def test_the_page_fits_narrow_screens(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("button", name="Mix in words").click()
    page.get_by_text("Character", exact=True).click()
    generate(page, "a" * 80).locator(".player").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((e) =>
            e.getBoundingClientRect().right > innerWidth + 1 &&
            getComputedStyle(e).position !== "absolute").length"""
        )
        == 0
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violations(page, theme):
    if page.evaluate("document.documentElement.dataset.theme") != theme:
        page.get_by_role("button", name="Light or dark").click()
    card = generate(page, "a dog")
    card.locator(".player").nth(1).wait_for()
    page.get_by_role("button", name="Mix in words").click()
    page.get_by_text("Character", exact=True).click()
    page.get_by_role("slider", name="Pitch").press("End")
    page.locator("#file").set_input_files(image("red"))
    page.get_by_role("img", name="Image: red.png").wait_for()
    card.get_by_role("button", name="Compare as A").first.click()
    card.get_by_role("button", name="Compare as B").last.click()
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["impact"], [n["target"] for n in v["nodes"]]) for v in found] == []


def test_the_page_asks_for_an_api_key(page):
    told = json.dumps({"code": "unauthorized", "detail": "an API key is needed"})
    problem = {"status": 401, "headers": {"Content-Type": "application/problem+json"}, "body": told}
    sent = []

    def answer(route):
        sent.append(route.request.headers.get("authorization"))
        route.continue_() if sent[-1] else route.fulfill(**problem)

    page.route("**/v1/models", answer)
    page.reload()
    page.get_by_role("textbox", name="API key").fill("cs_x_y")
    page.unroute("**/v1/models")
    page.route(
        "**/v1/models",
        lambda route: (sent.append(route.request.headers.get("authorization")), route.fulfill(json=[])),
    )
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("No model is ready yet").wait_for()
    assert sent[0] is None
    assert sent[-1] == "Bearer cs_x_y"


def test_the_page_is_small(page):
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').filter((r) => !r.name.includes('/v1/'))"
        ".map((r) => r.decodedBodySize)"
    )
    assert len(sizes) > 5
    assert sum(sizes) < 300_000
