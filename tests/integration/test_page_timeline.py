"""The timeline of the page: bars by pointer and keys, the request, the card, and what is refused."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support.page import body_of, image
from tests.support.video_kinds import write_scenes


@pytest.fixture
def editor(page):
    """The timeline, unfolded, with rain for 2 s and a dog for 2 s after it, in 4 s."""
    page.locator("#timeline summary").click()
    for text in ("rain", "a dog"):
        page.get_by_role("button", name="Add a sound").click()
        page.keyboard.type(text)
    set_length(page, 4)
    return page.locator("#timeline")


def set_length(page, seconds):
    page.get_by_label("Length").evaluate(
        "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", seconds
    )


def drag(page, grip, seconds, total=4):
    box = grip.bounding_box()
    track = page.locator(".track").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + track["width"] * seconds / total, y, steps=4)
    page.mouse.up()


def press_generate(page):
    return body_of(page, lambda: page.get_by_role("button", name="Generate").click())


def times(items):
    return [(item.get("text"), item["start_s"], item["end_s"]) for item in items]


def test_dragged_bars_are_asked_for_and_shown(page, editor):
    drag(page, editor.get_by_role("slider", name="Position of a dog"), -1)
    drag(page, editor.get_by_role("slider", name="End of rain"), 0.5)
    drag(page, editor.get_by_role("slider", name="Start of a dog"), 0.3)
    asked = press_generate(page)
    assert asked["duration_s"] == 4
    assert "prompt" not in asked
    [rain, dog] = asked["timeline"]
    assert (rain["text"], rain["start_s"], rain["end_s"]) == ("rain", 0, pytest.approx(2.5, abs=0.11))
    assert dog == {
        "text": "a dog",
        "start_s": pytest.approx(1.3, abs=0.11),
        "end_s": pytest.approx(3, abs=0.11),
    }
    card = page.get_by_role("article", name="rain + a dog")
    player = card.locator(".player").first
    player.wait_for()
    page.wait_for_function("(image) => image.naturalWidth > 0", arg=player.locator("img").element_handle())
    place = "(e) => { const { left, right } = e.getBoundingClientRect(); return [left, right]; }"
    left, right = player.locator("img").evaluate(place)
    for bar, item in zip(player.locator(".lane span").all(), (rain, dog), strict=True):
        expected = [left + (right - left) * item[name] / 4 for name in ("start_s", "end_s")]
        assert bar.evaluate(place) == pytest.approx(expected, abs=1)
    described = player.get_by_role("slider").get_attribute("aria-description")
    assert described.startswith("rain from 0 to ")


def test_keys_move_and_resize_a_bar(page, editor):
    bar = editor.get_by_role("slider", name="Position of a dog")
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowLeft", "Control+ArrowLeft"):
        bar.press(key)
    assert bar.get_attribute("aria-valuetext") == "from 0.8 to 2.8 s"
    bar.press("End")
    assert bar.get_attribute("aria-valuetext") == "from 2 to 4 s"
    editor.get_by_role("slider", name="Start of a dog").press("ArrowRight")
    end = editor.get_by_role("slider", name="End of a dog")
    end.press("ArrowRight")  # no further than the length
    end.press("PageDown")
    end.press("Home")  # no shorter than an item may be
    assert end.get_attribute("aria-valuetext") == "2.2 s"
    editor.get_by_label("Start of a dog in seconds").fill("1.25")
    assert times(press_generate(page)["timeline"]) == [("rain", 0, 2), ("a dog", 1.25, 2.2)]


def test_an_items_weight_and_fades_are_set(page, editor):
    weight = editor.get_by_role("slider", name="Weight of rain")
    fades = editor.get_by_role("slider", name="Fades of a dog")
    assert [slider.get_attribute("aria-valuetext") for slider in (weight, fades)] == ["×1", "0.25 s"]
    for key in ("ArrowRight", "ArrowRight"):
        weight.press(key)
    fades.press("Home")
    assert weight.get_attribute("aria-valuetext") == "×1.2"
    [rain, dog] = press_generate(page)["timeline"]
    assert (rain["weight"], "fade_s" in rain) == (1.2, False)
    assert (dog["fade_s"], "weight" in dog) == (0, False)
    page.get_by_role("article").first.get_by_role("button", name="Use these settings").click()
    assert weight.input_value() == "1.2"
    fades.fill("1.5")
    assert press_generate(page)["timeline"][1]["fade_s"] == 1.5


def test_a_removed_row_is_not_asked_for(page, editor):
    page.locator("#picture-file").set_input_files(image("red"))
    page.get_by_role("img", name="An image").wait_for()
    editor.get_by_role("button", name="Remove rain").click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove a dog"
    asked = press_generate(page)["timeline"]
    assert [("image" in item, item.get("text")) for item in asked] == [(False, "a dog"), (True, None)]
    page.get_by_role("article", name="a dog + an image").locator(".player").first.wait_for()
    editor.get_by_role("button", name="Remove a dog").click()
    editor.get_by_role("button", name="Remove an image").click()
    assert page.evaluate("document.activeElement.id") == "add-sound"
    page.get_by_label("What should it sound like?").fill("wind")
    asked = press_generate(page)
    assert (asked["prompt"], asked["duration_s"], "timeline" in asked) == ("wind", 0.5, False)


def test_a_refusal_stands_at_its_row(page, editor):
    editor.get_by_label("Sound", exact=True).last.fill("")
    editor.get_by_label("End of rain in seconds").fill("0")
    page.get_by_role("button", name="Generate").click()
    rows = editor.get_by_role("listitem")
    rows.nth(0).get_by_role("alert").get_by_text("end_s").wait_for()
    rows.nth(1).get_by_role("alert").get_by_text("text: ").get_by_text("must not be blank").wait_for()
    assert page.locator("#problem").is_hidden()
    editor.get_by_label("Sound", exact=True).last.fill("a cat")
    assert rows.nth(1).get_by_role("alert").count() == 0
    editor.get_by_label("End of rain in seconds").fill("61")
    page.get_by_role("button", name="Generate").click()
    page.locator("#problem").get_by_text("60").wait_for()
    assert rows.get_by_role("alert").count() == 0


def test_a_card_fills_the_timeline_again(page, editor):
    page.get_by_label("Loop", exact=True).check()
    press_generate(page)
    card = page.get_by_role("article").first
    card.locator(".player").first.wait_for()
    card.get_by_text("4 s, a loop").wait_for()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    card.get_by_role("button", name="Copy as curl").click()
    page.wait_for_function('window.copied?.includes(\'"timeline":[{"start_s":0\')')
    page.reload()
    card.get_by_role("button", name="Use these settings").click()
    editor.get_by_role("slider", name="End of a dog").wait_for()
    assert page.get_by_label("What should it sound like?").is_hidden()
    asked = press_generate(page)
    assert times(asked["timeline"]) == [("rain", 0, 2), ("a dog", 2, 4)]
    assert (asked["duration_s"], asked["loop"]) == (4, True)
    editor.locator("summary").click()  # folded, it is put aside
    page.get_by_label("What should it sound like?").fill("wind")
    assert "timeline" not in press_generate(page)


def test_a_video_has_no_second_timeline(page, editor, tmp_path):
    source = write_scenes(tmp_path / "a.mp4", seconds=1.0)
    page.get_by_label("Video", exact=True).set_input_files(source)
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("alert").get_by_text("A video has a timeline of its own").wait_for()
    editor.locator("summary").click()
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("article", name="a.mp4").locator(".player").first.wait_for()


def test_a_recipe_of_a_timeline_shows_it(page, editor):
    press_generate(page)
    card = page.get_by_role("article").first
    card.locator(".player").first.wait_for()
    card.get_by_role("button", name="Vary").first.click()
    editor.locator("summary").click()
    varied = page.get_by_role("article", name="rain + a dog, varied")
    varied.locator(".player").first.wait_for()
    assert varied.locator(".player").first.locator(".lane span").all_text_contents() == ["rain", "a dog"]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_the_timeline_is_accessible_and_fits(page, editor, theme, width):
    page.set_viewport_size({"width": width, "height": 900})
    if page.evaluate("document.documentElement.dataset.theme") != theme:
        page.get_by_role("button", name="Light or dark").click()
    press_generate(page)
    page.get_by_role("article").first.locator(".player").first.wait_for()
    editor.get_by_label("End of rain in seconds").fill("0")
    page.get_by_role("button", name="Generate").click()
    editor.get_by_role("alert").first.wait_for()
    assert Axe().run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
