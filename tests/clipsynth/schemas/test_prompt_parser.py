import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsynth.schemas.prompt_parser import ADJECTIVES, ADVERBS, read
from clipsynth.schemas.prompts import NAMES

LOUD, QUIET, HIGH, LOW = {"loudness": 0.85}, {"loudness": 0.15}, {"pitch": 0.85}, {"pitch": 0.15}


@pytest.mark.parametrize(
    ("text", "rest", "asked"),
    [
        ("a loud, high-pitched dog barking", "a dog barking", LOUD | HIGH),
        ("a high pitched dog", "a dog", HIGH),
        ("A Low Pitched hum", "A hum", LOW),
        ("a low piano", "a piano", LOW),
        ("a loud and high-pitched and angry dog", "an angry dog", LOUD | HIGH),
        ("loud rain", "rain", LOUD),
        ("a very loud dog", "a dog", {"loudness": 0.95}),
        ("a really, very quiet bird", "a bird", {"loudness": 0.05}),
        ("a very, very loud dog", "a dog", {"loudness": 0.95}),
        ("a very very, very very loud dog", "a dog", {"loudness": 0.95}),
        ("very, very quiet rain", "rain", {"loudness": 0.05}),
        ("a low humming machine", "a humming machine", LOW),
        ("a deep rumbling engine", "a rumbling engine", LOW),
        ("a deep spring", "a spring", LOW),
        ("a bright distorted guitar", "a distorted guitar", {"brightness": 0.85}),
        ("a loud flying helicopter", "a flying helicopter", LOUD),
        ("a loud red truck", "a red truck", LOUD),
        ("a loud, low flying helicopter", "a low flying helicopter", LOUD),
        ("an extremely deep voice", "a voice", {"pitch": 0.05}),
        ("a loud owl", "an owl", LOUD),
        ("a faint alarm and a bright bell", "an alarm and a bell", QUIET | {"brightness": 0.85}),
        (
            "a noisy, dull, sparse engine",
            "an engine",
            {"noisiness": 0.85, "brightness": 0.15, "density": 0.15},
        ),
        ("a pure, slow flute", "a flute", {"noisiness": 0.15, "density": 0.15}),
        ("fast paced drums", "drums", {"density": 0.85}),
        ("piano, low, very slow", "piano", LOW | {"density": 0.05}),
        ("loud, piano in a hall", "piano in a hall", LOUD),
        ("a dog barking loudly in a yard", "a dog barking in a yard", LOUD),
        ("a loud soft drink can", "a soft drink can", LOUD),
        ("a loud bass drum", "a bass drum", LOUD),
    ],
)
def test_adjectives_before_the_noun_become_attributes(text, rest, asked):
    assert read(text, NAMES) == (rest, asked)


@pytest.mark.parametrize(
    "text",
    [
        "a yellow bird",
        "a low-rise building",
        "a cloud over a quietened pond",
        "a bass drum",
        "a soft drink being poured",
        "a fast-forward button",
        "deep sea",
        "not loud",
        "a dog that is not very loud today",
        "not a loud dog",
        "a slightly loud dog",
        "a dog, not loudly barking",
        "the rain is loud, wind blowing",
        "a boat low in the water",
        "loud and clear",
        "a loud guitar and a quiet piano",
        "the blow of a slower hammer",
        "low flying helicopter",
        "a bright red fire truck",
        "high heels on a marble floor",
        "the deep sea",
        "a slow cooker",
        "a deep fat fryer",
        "a fast moving train",
        "a slow moving river",
        "a dull grey morning",
        "deep blue sea",
        "a fast motorbike",
        "a low frequency hum",
        "bright neon lights",
        "a low hanging branch",
        "a low ceiling",
        "soft fur",
        "a brightly lit street",
        "a slow dance",
        "a single file of ducks",
        "dense undergrowth",
        "a deep cut",
        "a soft boiled egg",
        "a faint lit sign",
        "",
    ],
)
def test_ambiguous_words_are_left_alone(text):
    assert read(text, NAMES) == (text, {})


@pytest.mark.parametrize("text", ["a loud noise", "loud", "very loud sounds", "a loud, loud recording"])
def test_a_prompt_of_attributes_only_keeps_its_text(text):
    rest, asked = read(text, NAMES)
    assert (rest, list(asked)) == (text, ["loudness"])


def test_only_the_models_attributes_are_read():
    assert read("a loud, high-pitched dog", ["pitch"]) == ("a loud dog", HIGH)
    assert read("a loud, high-pitched, fast dog", ["pitch"]) == ("a loud, fast dog", HIGH)
    assert read("a loud, high-pitched dog", ["loudness"]) == ("a high-pitched dog", LOUD)
    assert read("a loud, high-pitched dog", []) == ("a loud, high-pitched dog", {})


WORDS = [w for sides in (*ADJECTIVES.values(), *ADVERBS.values()) for side in sides for w in side.split()]
TEXTS = st.lists(
    st.sampled_from(
        [*WORDS, "very", "a", "an", "and", ",", "dog", "drink", "is", "not", "high", "pitched", "noise", "in"]
    ),
    max_size=9,
).map(" ".join)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(TEXTS, st.sets(st.sampled_from(NAMES)))
def test_parsing_the_rest_again_finds_nothing_new(text, taken):
    rest, asked = read(text, taken)
    again, more = read(rest, taken)
    assert again == rest
    assert more.keys() <= asked.keys()
    assert asked.keys() <= taken
    assert set(asked.values()) <= {0.05, 0.15, 0.85, 0.95}
    assert bool(rest.strip()) == bool(text.strip())
