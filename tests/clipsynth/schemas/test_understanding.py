"""Pieces of sentences, and warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipsynth.schemas.prompts import StoredPrompt, UnderstoodSound
from clipsynth.schemas.understanding import Understanding, Understood, may_be_several, pieces

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


def test_warnings_name_the_field():
    alone = Understanding.of([StoredPrompt(text="church bells")], [known(0.1, is_truncated=True)])
    assert [(w.code, w.pointer) for w in alone.warnings] == [
        ("truncated", "/prompt"),
        ("unfamiliar", "/prompt"),
    ]
    assert alone.warnings[1].detail == "this model has not heard 'church bells'; nearest: tabby"
    image = Understanding.of([StoredPrompt(image_key="k")], [known(0.1)])
    assert [(w.code, w.pointer) for w in image.warnings] == [("unfamiliar", "/image")]
    both = [StoredPrompt(text="a dog"), StoredPrompt(text="a lion"), StoredPrompt(text="x", weight=-1)]
    several = Understanding.of(both, [known(0.9), known(0.1), known(0.0)], "a dog and a lion")
    assert [(w.code, w.pointer) for w in several.warnings] == [
        ("interpreted", "/prompt"),
        ("unfamiliar", "/prompts/1"),
    ]
    assert several.mark(both).familiarity == 0.1
