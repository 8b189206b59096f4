"""Pieces of sentences, and warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.load.workload import payload
from clipsynth.schemas.prompts import UnderstoodSound
from clipsynth.schemas.sentences import may_be_several, pieces
from clipsynth.schemas.understanding import Understanding, Understood

SENTENCES = json.loads(
    (Path(__file__).parents[3] / "benchmarks" / "model" / "sentences.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    "pair", SENTENCES["pairs"]["dev"] + SENTENCES["three"], ids=lambda pair: pair["text"]
)
def test_a_sentence_is_split_between_its_sounds(pair):
    assert [piece.text for piece in pieces(pair["text"])] == pair["parts"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("バイオリンとピアノ", ["バイオリン", "ピアノ"]),
        ("小提琴和钢琴", ["小提琴", "钢琴"]),
        ("바이올린과 피아노", ["바이올린", "피아노"]),
        ("كمان وبيانو", ["كمان", "بيانو"]),
        ("เปียโนและกลอง", ["เปียโน", "กลอง"]),
        ("pies i kot", ["pies", "kot"]),
        ("een hond en een kat", ["een hond", "een kat"]),
        ("köpek ve kedi", ["köpek", "kedi"]),
        ("a dog, and then a cat", ["a dog", "a cat"]),
        ("a violin; a harp", ["a violin", "a harp"]),
    ],
)
def test_separators_of_the_languages_are_known(text, parts):
    assert [piece.text for piece in pieces(text)] == parts


@pytest.mark.parametrize(
    "text", ["a dog", "1,000 birds", "R&B", "a band", "sandals", "a withered tree", " , ", ""]
)
def test_a_text_without_a_separator_is_one(text):
    assert not may_be_several(text)


@pytest.mark.parametrize("text", ["a" + " " * 998 + "b", "\t\n" * 500, "," * 1000, "and " * 250, "a," * 500])
def test_a_long_text_is_one_sound(text):
    assert len(pieces(text)) <= 1 or len(text.split()) == 2


def test_a_property_is_behind_a_weak_separator():
    assert [piece.is_weak for piece in pieces("a dog with a bone")] == [False, True]
    assert [piece.is_weak for piece in pieces("a dog with rain in the background")] == [False, False]


def known(familiarity, **fields):
    nearest = [UnderstoodSound(name="tabby", similarity=0.4)]
    return Understood(familiarity=familiarity, understood_as=nearest, **fields)


def pointers(understood, interpreted=None, **fields):
    made = payload(**{"prompt": None, **fields})
    return [(w.code, w.pointer) for w in Understanding.of(made, understood, interpreted).warnings]


STRANGE = {"text": "church bells"}
ITEM = {**STRANGE, "start_s": 0, "end_s": 1}
VIDEO = {"extension": "mp4", "sha256": "", "seconds": 2.0}


def test_warnings_say_what_the_model_knows():
    alone = Understanding.of(payload(prompt="church bells"), [known(0.1, is_truncated=True)])
    assert [w.code for w in alone.warnings] == ["truncated", "unfamiliar"]
    assert alone.warnings[1].detail == "this model has not heard 'church bells'; nearest: tabby"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "church bells"}, ["/prompt"]),
        ({"prompt": "church bells", "image_key": "k"}, ["/prompt", "/image"]),
        ({"prompt": "church bells", "negative_prompt": "wind"}, ["/prompt"]),
        ({"image_key": "k", "negative_prompt": "wind"}, ["/image"]),
        ({"prompts": [STRANGE]}, ["/prompts/0"]),
        ({"prompts": [STRANGE, STRANGE], "negative_prompt": "wind"}, ["/prompts/0", "/prompts/1"]),
        ({"timeline": [ITEM]}, ["/timeline/0"]),
        ({"timeline": [ITEM, ITEM], "negative_prompt": "wind"}, ["/timeline/0", "/timeline/1"]),
        (
            {"timeline": [ITEM, {**ITEM, "text": None, "image_key": "k"}], "video": VIDEO},
            ["/prompt", "/video"],
        ),
    ],
)
def test_warnings_name_the_field(fields, expected):
    understood = [known(0.1)] * len(payload(**{"prompt": None, **fields}).conditions)
    assert pointers(understood, **fields) == [("unfamiliar", pointer) for pointer in expected]


def test_a_cut_negative_prompt_is_named():
    fields = {"prompt": "a dog", "negative_prompt": "wind " * 100}
    found = pointers([known(0.9), known(0.0, is_truncated=True)], **fields)
    assert found == [("truncated", "/negative_prompt")]


def test_parts_of_a_sentence_are_the_prompt():
    sentence = payload(
        prompt=None, prompts=[{"text": "a dog"}, {"text": "a lion"}, {"text": "x", "weight": -1}]
    )
    several = Understanding.of(sentence, [known(0.9), known(0.1), known(0.0)], "a dog and a lion")
    assert [(w.code, w.pointer) for w in several.warnings] == [
        ("interpreted", "/prompt"),
        ("unfamiliar", "/prompt"),
    ]
    assert several.mark(sentence.conditions).familiarity == 0.1


def test_the_scenes_of_a_video_stand_behind_its_fields():
    scene = {**ITEM, "text": None, "image_key": "k"}
    video = {"video": VIDEO, "negative_prompt": "wind", "prompt": None}
    found = Understanding.of(
        payload(timeline=[ITEM, scene, scene], **video), [known(0.8), known(0.7), known(0.3), known(0.0)]
    )
    stored = payload(**{**video, "prompt": ITEM["text"]}).conditions
    assert [condition.weight for condition in stored] == [1, -1]
    assert found.mark(stored).familiarity == 0.3
    assert [condition.familiarity for condition in stored] == [0.8, 0.0]
