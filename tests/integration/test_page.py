"""The playground in a real browser, against a whole service with the tiny bundle."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe

from tests.support.page import body_of, generate, image, set_slider
from tests.support.video_kinds import packet_hashes, write_scenes


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
    set_slider(page, "Duration", 60)  # as long as can be: it must not be over before it is canceled
    card = generate(page, "a long one")
    card.get_by_text("Step ").wait_for()
    state, cancel = card.locator(".state span"), card.get_by_role("button", name="Cancel")
    page.wait_for_function(  # one action: a slow browser must not come too late
        "([state, seen, cancel]) => state.textContent !== seen && (cancel.click(), true)",
        arg=[state.element_handle(), state.text_content(), cancel.element_handle()],
    )
    card.get_by_text("Canceled").wait_for()


def test_a_refusal_names_the_setting_as_the_page_does(page):
    set_slider(page, "Variations", 8)
    set_slider(page, "Duration", 60)
    page.get_by_label("What should it sound like?").fill("too long")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text("Variations: the sounds of a request have at most 120 s").wait_for()


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
    assert [item["text"] for item in sketch["prompts"]] == ["piano", "speech", "rain"]
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


def test_a_sound_is_varied_and_continued(page):
    card = generate(page, "origin")
    card.locator(".player").nth(1).wait_for()
    card.get_by_role("button", name="Vary origin, variation 2").click()
    varied = page.get_by_role("article", name="origin, varied")
    varied.locator(".player").first.wait_for()
    assert varied.get_by_role("button", name="Copy as curl").count() == 0
    length = "(view) => Number(view.getAttribute('aria-valuemax'))"
    before = varied.locator(".view").first.evaluate(length)
    varied.get_by_role("button", name="Continue").first.click()
    longer = page.get_by_role("article", name="origin, varied, continued")
    longer.locator(".player").first.wait_for()
    assert longer.locator(".view").first.evaluate(length) == before + 4
    assert Axe().run(page).response["violations"] == []
    page.reload()
    longer.locator(".player").first.wait_for()
    assert longer.get_by_role("button", name="Copy as curl").count() == 0


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


def test_a_video_gets_a_sound(page, tmp_path):
    source = write_scenes(tmp_path / "my clip.webm", codec="libvpx", audio=None, seconds=1.0)
    page.get_by_label("Video", exact=True).set_input_files(source)
    page.locator(".chip.video video").wait_for()
    page.get_by_text("my clip.webm").wait_for()
    assert Axe().run(page).response["violations"] == []
    card = generate(page, "rain")
    card.get_by_role("heading", name="my clip.webm + rain").wait_for()
    player = card.locator(".player").first
    player.get_by_role("button", name="Show the video").click()
    page.wait_for_function(
        "(video) => video.readyState > 0 && video.duration > 0.9",
        arg=player.locator(".video video").element_handle(),
    )
    assert Axe().run(page).response["violations"] == []
    with page.expect_download() as download:
        player.get_by_role("button", name="Download the video").click()
    result = tmp_path / "result.webm"
    download.value.save_as(result)
    assert download.value.suggested_filename.endswith(".webm")
    assert packet_hashes(result) == packet_hashes(source)
    page.get_by_role("button", name="Remove the video").click()
    assert page.locator(".chip.video").count() == 0


def test_nothing_is_mixed_into_a_video(page, tmp_path):
    source = write_scenes(tmp_path / "a.mp4", seconds=1.0)
    page.get_by_label("Video", exact=True).set_input_files(source)
    page.get_by_label("Images").set_input_files(image("red"))
    page.locator(".chip img").wait_for()
    page.keyboard.press("Control+Enter")
    page.get_by_text("With a video there can be words").wait_for()
