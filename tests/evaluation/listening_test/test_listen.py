"""The listening test: what is heard, the page from end to end, and the score."""

import csv
import json
import threading

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from clipsynth.cli import app
from clipsynth.services.processes import wait_until
from evaluation.interfaces import Query
from evaluation.listening_test.design import (
    TARGET_DBFS,
    choose,
    level_dbfs,
    make_items,
    match_levels,
    order,
    read_folder,
)
from evaluation.listening_test.ratings import SCALES, RatingStore, StoredRating
from evaluation.listening_test.scores import krippendorff_alpha, score, to_markdown
from evaluation.listening_test.server import create_app
from evaluation.plan import Sample, once
from models.audio.level import MAX_PEAK
from tests.support.browser import open_chromium

RATE = 16000


def write_sound(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "PCM_16" if path.suffix == ".flac" else "FLOAT"
    soundfile.write(path, np.asarray(samples, np.float32), RATE, subtype=subtype)


def tone(amplitude, seconds=0.5):
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


def write_manifest(folder, rows):
    with (folder / "manifest.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("system", "query", "file"), *rows])


@pytest.fixture
def folder(tmp_path):
    """Two systems and two queries, at levels of their own."""
    rows = []
    for s, system in enumerate(("A", "B")):
        for q, query in enumerate(("a dog barking", "rain")):
            file = f"{system}-{q}.wav"
            write_sound(tmp_path / file, tone(0.01 * 4 ** (s + q)))
            rows.append((system, query, file))
    write_manifest(tmp_path, rows)
    return tmp_path


@pytest.fixture
def items(folder):
    return make_items(read_folder(folder), seed=0)


@pytest.fixture
def answers(tmp_path):
    return RatingStore(tmp_path / "answers.sqlite")


# --- what is heard


def test_all_sounds_are_played_at_one_level(items):
    levels = [level_dbfs(*soundfile.read(_as_file(item))) for item in items]
    assert levels == pytest.approx([TARGET_DBFS] * 4, abs=0.1)


def _as_file(item):
    import io

    return io.BytesIO(item.wav())


def test_all_sounds_are_lowered_so_that_none_clips(folder):
    click = np.zeros(RATE // 2)
    click[100] = 1.0
    write_sound(folder / "A-0.wav", click)
    waves = [soundfile.read(_as_file(item))[0] for item in make_items(read_folder(folder), seed=0)]
    levels = [level_dbfs(wave, RATE) for wave in waves]
    assert max(abs(wave).max() for wave in waves) == pytest.approx(MAX_PEAK, abs=1e-3)
    assert max(levels) < TARGET_DBFS - 5
    assert levels == pytest.approx([levels[0]] * 4, abs=0.1)


def test_pauses_do_not_count_and_silence_stays_silence(folder):
    with_pause = np.concatenate([tone(0.1, 2.0), np.zeros(4 * RATE)])  # its plain RMS is 4.8 dB lower
    assert level_dbfs(with_pause, RATE) == pytest.approx(level_dbfs(tone(0.1), RATE), abs=0.5)
    write_sound(folder / "A-0.wav", np.zeros(RATE))
    gains = match_levels(read_folder(folder))
    assert gains[0] == 1.0
    assert min(gains[1:]) > 0


def test_item_names_are_blind_and_each_rater_has_an_own_order(items):
    assert not any(word in item.id for item in items for word in ("A", "B", "dog", "rain"))
    names = [item.id for item in items]
    assert [i.id for i in order(items, 0, "anna")] == [i.id for i in order(items[::-1], 0, "anna")]
    orders = {tuple(i.id for i in order(items, 0, f"rater {n}")) for n in range(20)}
    assert len(orders) > 5
    assert all(sorted(o) == sorted(names) for o in orders)


def test_the_same_queries_are_chosen_of_every_system(folder):
    chosen = choose(read_folder(folder), 1, seed=3)
    assert [s.system for s in chosen] == ["A", "B"]
    assert len({s.query for s in chosen}) == 1


def test_results_of_evaluate_are_a_test_of_the_text_queries(tmp_path):
    settings = {"systems": {"CLIPSynth": "v1", "CLIPRetriever": "v2", "vocoder": "v3"}}
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings}))
    with (tmp_path / "queries.csv").open("w", newline="") as f:
        csv.writer(f).writerows(
            [
                ("kind", "clip", "seed", "label", "prompt", "duration_s"),
                ("text", "dogs/1.mp4", "0", "dog", "a dog", "4.0"),
                ("text", "cats/1.mp4", "1", "cat", "a cat", "4.0"),
                ("text", "dogs/1.mp4", "2", "dog", "a hound", "4.0"),
                ("image", "dogs/1.mp4", "0", "dog", "", "4.0"),
            ]
        )
    asked = [
        Sample(Query("dog", "dogs/1.mp4", "a dog"), 0),
        Sample(Query("cat", "cats/1.mp4", "a cat"), 1),
        Sample(Query("dog", "dogs/1.mp4", "a hound"), 2),
    ]
    for version, made in (("v1", asked), ("v2", [once(sample) for sample in asked])):
        for sample in made:
            write_sound(tmp_path / f"sounds/{version}/{sample.stem}.flac", tone(0.1))
    write_sound(tmp_path / "sounds/v3/clip-dogs-1-0-def.flac", tone(0.1))
    assert [(s.system, s.query, s.file.stem) for s in read_folder(tmp_path)] == [
        ("CLIPSynth", "a dog", asked[0].stem),
        ("CLIPSynth", "a cat", asked[1].stem),
        ("CLIPRetriever", "a dog", once(asked[0]).stem),
        ("CLIPRetriever", "a cat", once(asked[1]).stem),
    ]


def test_what_is_no_test_is_refused(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="neither a manifest"):
        read_folder(tmp_path_factory.mktemp("empty"))
    write_manifest(folder, [("A", "rain", "A-0.wav"), ("B", "a dog", "B-0.wav")])
    with pytest.raises(ValueError, match="A has no sound for 'a dog'"):
        read_folder(folder)
    write_manifest(folder, [("A", "rain", "lost.wav")])
    with pytest.raises(ValueError, match=r"lost\.wav is not there"):
        read_folder(folder)
    (folder / "manifest.csv").write_text("system,file\nA,A-0.wav\n")
    with pytest.raises(ValueError, match="column 'query'"):
        read_folder(folder)
    for content, message in ((b"no sound", "cannot be read"), (None, "not finite")):
        write_manifest(folder, [("A", "rain", "bad.wav")])
        if content is None:
            write_sound(folder / "bad.wav", [np.nan, 0.0])
        else:
            (folder / "bad.wav").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            make_items(read_folder(folder), seed=0)


# --- server


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


# --- score


def planted(values):
    """Answers of raters to items; `values` {system: (raters, queries)}."""
    return [
        StoredRating(f"rater {r}", f"{system}-{q}", system, f"query {q}", scale, int(value))
        for system, table in values.items()
        for scale in SCALES
        for r, row in enumerate(table)
        for q, value in enumerate(row)
    ]


def test_planted_answers_give_their_means_and_intervals():
    rng = np.random.default_rng(0)
    table = rng.integers(1, 6, (6, 20))
    scores = score(planted({"A": table, "B": np.full((6, 20), 5)}), "quality")
    assert scores["A"].value == pytest.approx((table.mean() - 1) / 4)
    assert scores["A"].low < scores["A"].value < scores["A"].high
    assert scores["A"].high - scores["A"].low == pytest.approx(2 * 1.96 * 0.35 / 120**0.5, rel=0.6)
    assert (scores["B"].value, scores["B"].low, scores["B"].high, scores["B"].n) == (1, 1, 1, 120)


def test_raters_who_differ_widen_the_interval():
    between = np.repeat([[1], [5], [1], [5]], 20, axis=1)
    within = np.tile([1, 5], (4, 10))
    wide, narrow = (score(planted({"A": t}), "noise")["A"] for t in (between, within))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_alpha_has_the_published_values():
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: 4 observers, 12 units;
    # ordinal alpha .815.
    _ = np.nan
    reliability = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
            [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
        ]
    )
    assert krippendorff_alpha(reliability) == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(np.array([[1.0, 2, 5], [1, 2, 5]])) == 1.0
    assert np.isnan(krippendorff_alpha(np.array([[1.0, 2, 5]])))
    assert np.isnan(krippendorff_alpha(np.full((2, 3), 4.0)))


def test_the_command_prints_the_score(folder, items, answers):
    nobody = ["listen", str(folder), "--score", "--answers", str(folder / "none.sqlite")]
    with pytest.raises(FileNotFoundError, match="there are no ratings yet"):
        CliRunner().invoke(app, nobody, catch_exceptions=False)
    for item in items:
        answers.save("anna", item, "quality", 4)
    file = str(answers.path)
    result = CliRunner().invoke(
        app, ["listen", str(folder), "--score", "--answers", file], catch_exceptions=False
    )
    assert to_markdown(answers.every()).strip() in result.output


def test_the_table_is_the_papers():
    table = to_markdown(planted({"CLIPSynth": [[3, 3], [3, 3]], "CLIPRetriever": [[5, 5], [5, 5]]}))
    assert "| system | Quality ↑ | Relevance ↑ | Noise ↓ | ratings |" in table
    assert "| CLIPSynth | 0.500 (0.500–0.500) | 0.500 (0.500–0.500) | 0.500 (0.500–0.500) | 12 |" in table
    assert "| *Krippendorff's α* | 1.00 | 1.00 | 1.00 | |" in table
    assert "2 raters, 2 queries" in table
    first = to_markdown(
        [StoredRating("anna", "i", "A", "a dog", "quality", 4)]
    )  # ratings come one scale after the other
    assert "| A | 0.750 (0.750–0.750) | – | – | 1 |" in first
    with pytest.raises(ValueError, match="no ratings"):
        to_markdown([])
