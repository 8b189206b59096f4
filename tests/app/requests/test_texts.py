"""Texts as a model can read them."""

from __future__ import annotations

import pytest

from app.requests.texts import readable
from clipsynth.errors import UnreadablePrompt
from clipsynth.settings import Settings
from tests.support.api_client import INFO
from tests.support.api_service import SHORT, check_problem, serving

LATIN = INFO.model_copy(update={"scripts": ["Latn"]})
MANY = INFO.model_copy(update={"scripts": ["Latn", "Cyrl", "Arab", "Hani", "Jpan", "Kore", "Thai"]})
UNKNOWN = INFO


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a dog", "a dog"),
        ("un chien à l'œuvre", "un chien à l'œuvre"),
        ("🐕", "dog"),
        ("🎸 and 🥁!", "guitar and drum !"),
        ("👩‍🚒 with a hose", "woman firefighter with a hose"),
        ("a\u200b d\u00ado\u200dg\ufeff", "a dog"),
        ("\u202ea dog\u202c", "a dog"),
        ("dog\x00\x07", "dog"),
        ("𝐝𝐨𝐠 𝐛𝐚𝐫𝐤", "dog bark"),
        ("ｄｏｇ", "dog"),
        ("a dog\nin the rain", "a dog\nin the rain"),
        ("狗 a dog", "狗 a dog"),
        ("808 drum", "808 drum"),
    ],
)
def test_a_text_is_read_as_people_mean_it(text, read):
    assert readable(text, LATIN, "/prompt") == read


@pytest.mark.parametrize(
    "text", ["собака лает", "كلب", "狗叫", "犬が吠える", "개 짖는 소리", "หมาเห่า", "Hund"]
)
def test_scripts_of_the_model_are_read(text):
    assert readable(text, MANY, "/prompt") == readable(text, UNKNOWN, "/prompt") == text


@pytest.mark.parametrize(
    "text",
    [
        "собака",
        "狗叫",
        "γάτα",
        "\u200b",
        "\u3164\u2800",
        "...",
        "440",
        "♪♫",
        "\ufe0f",
        "\U000e0061",
        "\u0301",
    ],
)
def test_a_text_without_a_known_letter_is_unreadable(text):
    with pytest.raises(UnreadablePrompt, match="/prompt: no letter that model tiny reads"):
        readable(text, LATIN, "/prompt")


@pytest.mark.parametrize("text", ["\u200b", "!?", "123", "\u3164"])
def test_without_known_scripts_any_letter_counts(text):
    with pytest.raises(UnreadablePrompt):
        readable(text, UNKNOWN, "/prompt")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"prompt": "собака"}, "/prompt"),
        ({"prompts": [{"text": "a dog"}, {"text": "\u200b"}]}, "/prompts/1/text"),
        ({"prompt": "a dog", "negative_prompt": "…"}, "/negative_prompt"),
    ],
)
def test_an_unreadable_prompt_is_a_problem(service, body, pointer):
    service.state.announce(service.info.model_copy(update={"scripts": ["Latn"]}))
    for path in ("/v1/generations", "/v1/estimate"):
        response = service.client.post(path, json=body)
        check_problem(response, 422, "unreadable_prompt")
        assert response.json()["errors"][0]["pointer"] == pointer
    shim = service.client.post("/v1/sound-generation", json={"text": "собака"})
    assert shim.json()["errors"][0]["pointer"] == "/text"


def test_the_resource_shows_emoji_by_name_and_replays_them(service):
    made = service.finish(service.post({"prompt": "🐕 barking", **SHORT}))
    assert made["input"]["prompt"] == "dog barking"
    replayed = service.client.post("/v1/replay", json={"recipe": made["outputs"][0]["recipe"]})
    again = service.finish(replayed)
    assert [o["recipe"] for o in again["outputs"]] == [o["recipe"] for o in made["outputs"]]
