"""The page on narrow screens, for assistive technology, with keys, and its size."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.support.page import generate, image


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
