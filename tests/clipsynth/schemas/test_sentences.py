"""When the sounds of a sentence are heard."""

from __future__ import annotations

import pytest

from clipsynth.schemas.sentences import Part, fields_of_parts, in_order, pieces

RAIN, DOG = ("rain", "together"), "a dog"


def parts(text):
    return in_order([Part(piece.text, piece.order) for piece in pieces(text)])


def fields(text, **lengths):
    return fields_of_parts(
        parts(text),
        None,
        [],
        **{"composition": None, "duration_s": None, "default_s": 4.0, "longest_s": 60.0} | lengths,
    )


def spans(text, **lengths):
    return [(item.text, item.start_s, item.end_s) for item in fields(text, **lengths)["timeline"]]


@pytest.mark.parametrize(
    "text",
    [
        "rain, then a dog", "rain and then a dog", "Rain. Then a dog", "first rain, then a dog",
        "rain, a dog after that", "rain followed by a dog", "rain; afterwards a dog",
    ],
)  # fmt: skip
def test_english_sounds_follow_each_other(text):
    first, second = parts(text)
    assert (first.text.lower(), first.order) == RAIN
    assert second == (DOG, "then")


@pytest.mark.parametrize("text", ["rain, and later a dog", "rain, later a dog", "rain and a dog later"])
def test_a_sound_goes_on_when_another_comes_later(text):
    assert parts(text) == [RAIN, (DOG, "later")]


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("erst Regen, dann ein Hund", "Regen", "ein Hund"),
        ("la pluie, puis un chien", "la pluie", "un chien"),
        ("lluvia y luego un perro", "lluvia", "un perro"),
        ("pioggia e poi un cane", "pioggia", "un cane"),
        ("chuva, depois um cão", "chuva", "um cão"),
        ("regen en daarna een hond", "regen", "een hond"),
        ("deszcz, a potem pies", "deszcz", "pies"),
        ("дождь, а затем собака", "дождь", "собака"),
        ("yağmur, sonra köpek", "yağmur", "köpek"),
        ("مطر ثم كلب", "مطر", "كلب"),
        ("雨，然后狗叫", "雨", "狗叫"),
        ("雨が降る、それから犬", "雨が降る", "犬"),
        ("비 그리고 나서 개", "비", "개"),
        ("ฝนตก จากนั้นหมาเห่า", "ฝนตก", "หมาเห่า"),
    ],
)
def test_sounds_follow_each_other_in_all_languages(text, first, second):
    assert parts(text) == [(first, "together"), (second, "then")]


@pytest.mark.parametrize("text", ["a dog and rain", "a dog, rain", "Regen mit Hund", "after the rain"])
def test_other_words_say_nothing_of_the_time(text):
    assert {part.order for part in parts(f"{text} and wind")} == {"together"}


def test_stages_are_equally_long():
    assert spans("rain, then a dog") == [("rain", 0, 4), ("a dog", 4, 8)]
    assert spans("rain, later a dog") == [("rain", 0, 8), ("a dog", 4, 8)]
    assert spans("rain and wind, then a dog, later birds", duration_s=9.0) == [
        ("rain", 0, 3), ("wind", 0, 3), ("a dog", 3, 9), ("birds", 6, 9),
    ]  # fmt: skip
    assert fields("rain, then a dog, then birds", longest_s=6.0)["duration_s"] == 6.0


@pytest.mark.parametrize("lengths", [{"duration_s": 0.9}, {"longest_s": 0.0}])
def test_stages_that_are_too_short_are_mixed(lengths):
    found = fields("rain, then a dog", **lengths)
    assert [prompt.text for prompt in found["prompts"]] == ["rain", "a dog"]
    assert found["composition"] == "mix"
