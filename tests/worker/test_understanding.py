"""What the worker says about prompts: several sounds, familiarity, while it denoises."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clipsynth.admission import questions
from clipsynth.redis_keys import ANSWER, ASK
from clipsynth.schemas.sentences import pieces
from clipsynth.schemas.understanding import PromptAnswer, PromptQuestion
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from models import parts
from models.bundle import Manifest
from models.conditioning.embeddings import Embeddings
from models.conditioning.familiarity import Frames
from models.networks.encoder import JointEncoder
from models.retrieval.clip_index import Index
from models.retrieval.sounds import name_clips
from tests.support.api_service import SHORT, serving
from tests.support.prose import ROOT
from worker.understanding.sentences import joined, parts_of, sounds_in

DEMO = ROOT / "checkpoints" / "demo"
SENTENCES = json.loads((ROOT / "benchmarks" / "model" / "sentences.json").read_text(encoding="utf-8"))


@pytest.fixture
def service(redis_url, indexed_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), indexed_pipeline)


def test_clips_are_named_by_clusters():
    directions = torch.eye(4)
    frames = torch.cat([directions[0:1].repeat(3, 1), directions[1:2].repeat(2, 1), directions[[3]]])
    frames[1] += 0.1 * directions[2]
    frames = torch.nn.functional.normalize(frames, dim=-1)
    assert name_clips(frames, directions, ["a", "b", "c", "d"]) == ["a", "a", "a", "b", "b", "d"]


def test_a_question_is_answered_during_a_denoising_step(service, monkeypatch):
    began, go_on = threading.Event(), threading.Event()
    forward = service.predictor.pipeline.denoiser.forward

    def slow(*args, **kwargs):
        began.set()
        assert go_on.wait(60)
        return forward(*args, **kwargs)

    monkeypatch.setattr(service.predictor.pipeline.denoiser, "forward", slow)
    monkeypatch.setattr(questions, "TIMEOUT_S", 30)

    def ask():
        assert began.wait(60)
        try:
            return questions.ask(service.redis, "tiny", texts=["a dog"], images=[], split="a cat and rain")
        finally:
            go_on.set()

    posted = service.post({"prompt": "a dog", **SHORT})
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(ask)
        assert service.finish(posted)["status"] == "succeeded"
        answer = asked.result()
    assert len(answer.texts) == 1 + len(answer.parts)
    assert 0 <= answer.texts[0].familiarity <= 1
    assert answer.texts[0].understood_as


def test_a_job_is_noted_when_it_starts(service):
    made = service.finish(service.post({"prompt": "a word " * 140, **SHORT}))

    def resource():
        return service.client.get(made["links"]["self"]).json()

    assert wait_until(lambda: resource()["familiarity"] is not None, timeout_s=30)
    assert resource()["understood_as"][0].keys() == {"name", "similarity"}
    assert "truncated" in [warning["code"] for warning in resource()["warnings"]]


def test_without_a_worker_there_is_no_answer(service, monkeypatch):
    monkeypatch.setattr(questions, "TIMEOUT_S", 0.01)
    assert questions.ask(service.redis, "other", texts=["a"], images=[]) is None
    assert service.redis.llen("clipsynth:ask:other") == 0


def test_many_questions_are_not_asked(service, monkeypatch):
    monkeypatch.setattr(questions, "MOST_WAITING", 0)
    assert questions.ask(service.redis, "other", texts=["a"], images=[]) is None


def test_a_process_asks_few_questions_at_once(service, monkeypatch):
    monkeypatch.setattr(questions, "_ASKING", threading.BoundedSemaphore(1))
    with questions._ASKING:
        assert questions.ask(service.redis, "tiny", texts=["a"], images=[]) is None
    assert questions.ask(service.redis, "tiny", texts=["a"], images=[]) is not None


def test_questions_and_answers_expire(place):
    asked = PromptQuestion(id="q")
    questions.answer(place.redis, asked, PromptAnswer())
    assert 0 < place.redis.ttl(ANSWER + "q") <= questions.KEPT_S
    questions.wake(place.redis, "tiny")
    assert 0 < place.redis.ttl(ASK + "tiny") <= questions.KEPT_S
    assert questions.next_question(place.redis, "tiny", wait_s=1) is None


@pytest.fixture(scope="module")
def demo():
    """Return a function that finds a text among the demo's training frames."""
    name = json.loads((DEMO / "encoder" / "config.json").read_text())["_class_name"]
    encoder: JointEncoder = getattr(parts, name).from_pretrained(DEMO / "encoder")
    conditions = parts.ConditionEncoder.from_pretrained(DEMO / "condition_encoder")
    return Frames(Embeddings(encoder), conditions, Index.read(DEMO), Manifest.read(DEMO))


def split(demo, text):
    groups = sounds_in(pieces(text), demo.place)
    return [joined(group) for group in groups]


def both_halves(kind):
    return SENTENCES[kind]["dev"] + SENTENCES[kind]["held_out"]


def test_most_pairs_of_sounds_are_split(demo):
    wrong = [pair["text"] for pair in both_halves("pairs") if len(split(demo, pair["text"])) != 2]
    assert len(wrong) <= 4, wrong


def test_most_sentences_of_one_sound_stay_whole(demo):
    wrong = [text for text in both_halves("whole") if len(split(demo, text)) > 1]
    assert len(wrong) <= 3, wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rain, and later a dog", [("rain", "together"), ("a dog", "later")]),
        ("erst ein Klavier, dann eine Geige", [("ein Klavier", "together"), ("eine Geige", "then")]),
        (
            "a helicopter, then rain and a cat",
            [("a helicopter", "together"), ("rain", "then"), ("a cat", "together")],
        ),
    ],
)
def test_words_of_time_order_known_sounds(demo, text, expected):
    assert parts_of(text, demo.place) == expected


@pytest.mark.parametrize("text", ["a later model of a car", "a man, then his dog", "rain now and then"])
def test_words_of_time_split_no_single_sound(demo, text):
    assert parts_of(text, demo.place) == [(text, "together")]


def test_familiarity_tells_known_prompts_from_unknown_ones(demo):
    known, unknown = (
        torch.tensor([demo.place(text).familiarity for text in both_halves(kind)])
        for kind in ("known", "unknown")
    )
    wins = (known[:, None] > unknown).float() + 0.5 * (known[:, None] == unknown).float()
    assert wins.mean() >= 0.9


def test_the_demos_sounds_have_names_and_shares(demo):
    sounds = demo.sounds()
    assert sum(share for _, share in sounds) == pytest.approx(1)
    assert {"violin", "drum", "banjo", "trombone"} <= {name for name, _ in sounds[:20]}
