"""The page of the listening test, from end to end."""

import threading

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from clipsynth.services.processes import wait_until
from evaluation.listening_test.ratings import SCALES, RatingStore, StoredRating
from evaluation.listening_test.scores import score
from evaluation.listening_test.server import create_app
from tests.support.browser import open_chromium


def test_raters_have_an_address_or_cookie_and_see_no_system(items, answers):
    client = TestClient(create_app(items, answers, seed=0))
    assert client.get("/next").status_code == 401
    assert client.get("/?rater=an%20na").status_code == 422
    page = client.get("/?rater=anna")
    assert client.cookies["rater"] == "anna"
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    asked = client.get("/next").json()
    assert set(asked["item"]) == {"id", "query", "ratings"}
    assert (asked["done"], asked["total"]) == (0, 4)
    path = f"/items/{asked['item']['id']}"
    assert client.get(f"{path}.wav").content[:4] == b"RIFF"
    for wrong, status in (
        (client.put(f"{path}/quality", json={"value": 6}), 422),
        (client.put(f"{path}/beauty", json={"value": 1}), 422),
        (client.put("/items/other/noise", json={"value": 1}), 404),
        (client.get("/items/other.wav"), 404),
    ):
        assert wrong.status_code == status
    assert client.put(f"{path}/noise", json={"value": 2}).status_code == 204
    assert [(a.rater, a.scale, a.value) for a in answers.every()] == [("anna", "noise", 2)]
    stranger = TestClient(create_app(items, answers, seed=0))
    stranger.get("/")
    assert stranger.cookies["rater"] not in ("", "anna")


@pytest.fixture
def served(items, answers):
    """The test's address, on a port of the system's choice."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(items, answers, seed=0), host="127.0.0.1", port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, timeout_s=20)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_a_whole_test_by_keyboard_in_chromium_with_a_reload(served, items, answers):
    planted = {"A": (4, 5, 1), "B": (2, 1, 5)}
    system = {item.id: item.system for item in items}
    with open_chromium() as browser:
        from playwright.sync_api import expect

        page = browser.new_page()
        complaints, held = [], []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(f"{served}/?rater=anna")

        def current():
            return page.locator("#sound").get_attribute("src").removeprefix("items/")[:-4]

        for n in range(4):
            page.get_by_text(f"Sound {n + 1} of 4").wait_for()
            item = current()
            assert page.locator("#next").is_disabled()
            assert page.get_by_role("radio", name="1, bad").is_disabled()  # not before it was heard
            page.keyboard.press("p")
            expect(page.get_by_role("radio", name="1, bad")).to_be_enabled()
            quality, *rest = planted[system[item]]
            if n == 2:  # thinks better of it while the first rating is still on its way
                page.route("**/quality", lambda route: route.continue_() if held else held.append(route))
                page.locator(f"[name=quality][value='{6 - quality}']").check()
                while not held:
                    page.wait_for_timeout(10)
                page.keyboard.press(str(quality))
                expect(page.locator("[name=quality]:checked")).to_have_value(str(quality))
                held[0].continue_()
            else:
                page.keyboard.press(str(quality))
            if n == 1:  # in the middle of an item, too
                expect(page.get_by_role("status")).to_have_text(f"quality {quality}, saved")
                page.reload()
                page.get_by_text("Sound 2 of 4").wait_for()
                assert current() == item
                assert page.locator("[name=quality]:checked").input_value() == str(quality)
                page.keyboard.press("p")
                expect(page.get_by_role("radio", name="1, bad")).to_be_enabled()
            for value in rest:
                page.keyboard.press(str(value))
            expect(page.locator("#next")).to_be_enabled()
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="Thank you").wait_for()
        assert page.get_by_role("progressbar", name="4 of 4 rated").get_attribute("value") == "4"
        assert complaints == []
    given = answers.every()
    assert len(given) == 4 * 3
    for scale, a, b in zip(SCALES, planted["A"], planted["B"], strict=True):
        scores = score(given, scale)
        assert (scores["A"].value, scores["B"].value) == ((a - 1) / 4, (b - 1) / 4)


def test_answers_are_still_there_when_the_server_comes_back(served, items, answers):
    with httpx.Client(base_url=served, follow_redirects=True) as client:
        client.get("/?rater=anna")
        first = client.get("/next").json()["item"]["id"]
        for scale in SCALES:
            client.put(f"/items/{first}/{scale}", json={"value": 3}).raise_for_status()
    again = TestClient(create_app(items, RatingStore(answers.path), seed=0))
    again.get("/?rater=anna")
    assert again.get("/next").json()["done"] == 1
    assert again.get("/next").json()["item"]["id"] != first


def planted(values):
    """Answers of raters to items; `values` {system: (raters, queries)}."""
    return [
        StoredRating(f"rater {r}", f"{system}-{q}", system, f"query {q}", scale, int(value))
        for system, table in values.items()
        for scale in SCALES
        for r, row in enumerate(table)
        for q, value in enumerate(row)
    ]
