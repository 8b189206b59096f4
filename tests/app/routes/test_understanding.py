"""Prompts as a worker understands them: several sounds, familiarity, warnings."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from app.requests import images
from clipsynth.admission import questions
from clipsynth.cli import app
from clipsynth.schemas import understanding
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, image, samples, serving
from tests.support.video_kinds import write_scenes
from worker.understanding import sentences

BOTH = {"prompt": "a dog and a cat", **SHORT}
PARTS = ["a dog", "a cat"]


@pytest.fixture
def service(redis_url, indexed_pipeline, tmp_path, monkeypatch):
    """The tiny model knows no words: every part is another sound to it."""
    for name, value in {"KNOWN": 0, "WELL_KNOWN": 0, "SAME": 2}.items():
        monkeypatch.setattr(sentences, name, value)
    monkeypatch.setattr(questions, "TIMEOUT_S", 30)
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, image_urls="loopback")
    yield from serving(settings, indexed_pipeline)


@pytest.fixture
def silent(redis_url, indexed_pipeline, tmp_path, monkeypatch):
    """A service whose worker answers no questions in time."""
    monkeypatch.setattr(questions, "TIMEOUT_S", 0.01)
    for service in serving(Settings(redis_url=redis_url, data_dir=tmp_path), indexed_pipeline):
        service.understander.stop()
        service.understander._stopped.clear()
        yield service


def estimate(service, body):
    return service.client.post("/v1/estimate", json=body).json()


def texts(resource):
    return [prompt["text"] for prompt in resource["input"]["prompts"] or ()]


def codes(resource):
    return [warning["code"] for warning in resource["warnings"]]


def test_a_sentence_of_two_sounds_is_split(service):
    made = service.post(BOTH).json()
    assert texts(made) == PARTS
    assert (made["input"]["prompt"], made["input"]["composition"]) == (None, "mix")
    assert "interpreted" in codes(made)
    for prompt in made["input"]["prompts"]:
        assert 0 <= prompt["familiarity"] <= 1
        assert prompt["understood_as"]
    assert made["familiarity"] == min(prompt["familiarity"] for prompt in made["input"]["prompts"])
    read = service.client.get(made["links"]["self"]).json()
    assert {name: read[name] for name in ("input", "familiarity", "understood_as", "warnings")} == {
        name: made[name] for name in ("input", "familiarity", "understood_as", "warnings")
    }


def test_sounds_that_follow_each_other_become_a_timeline(service):
    body = {"prompt": "a dog, and then a loud cat", "num_inference_steps": 1}
    said, made = estimate(service, body), service.finish(service.post(body))
    items = [(item["text"], item["start_s"], item["end_s"]) for item in made["input"]["timeline"]]
    half = made["input"]["duration_s"] / 2
    assert items == [("a dog", 0, half), ("a cat", half, 2 * half)]
    assert made["input"]["timeline"][1]["attributes"]["loudness"] > 0.5
    assert (made["input"]["prompt"], made["input"]["prompts"]) == (None, None)
    assert said["timeline"] == made["input"]["timeline"]
    detail = f"taken as several sounds: 'a dog' (0 to {half:g} s), 'a cat' ({half:g} to {2 * half:g} s)"
    [warning] = [w for w in made["warnings"] if w["code"] == "interpreted"]
    assert (warning["detail"], warning["pointer"]) == (detail, "/prompt")
    mixed = service.post({**body, "composition": "set"}).json()
    assert (texts(mixed), mixed["input"].get("timeline")) == (PARTS, None)


def test_an_estimate_understands_as_a_request_does(service):
    said = estimate(service, BOTH)
    made = service.post(BOTH).json()
    assert said["prompts"] == made["input"]["prompts"]
    assert (said["familiarity"], said["warnings"]) == (made["familiarity"], made["warnings"])
    assert len(service.client.get("/v1/generations").json()["data"]) == 1


def test_variations_keep_the_parts(service):
    done = service.finish(service.post({**BOTH, "prompt": "a quiet dog and a loud cat"}))
    path = f"/v1/generations/{done['id']}/variations"
    varied = service.finish(service.client.post(path, json={}))
    own, parents = ({p["text"]: p["attributes"] for p in one["input"]["prompts"]} for one in (varied, done))
    assert own == parents


def test_a_client_may_be_taken_literally(service):
    for body in ({**BOTH, "interpret": False}, {"prompts": [{"text": BOTH["prompt"]}], **SHORT}):
        made = service.post(body).json()
        assert texts(made) in ([], [BOTH["prompt"]])
        assert made["familiarity"] is None
    assert service.redis.keys("clipsynth:ask:*") == []


def test_attribute_words_bind_to_their_part(service):
    made = service.post({"prompt": "a loud dog and a quiet bird", **SHORT}).json()
    loud, quiet = (prompt["attributes"]["loudness"] for prompt in made["input"]["prompts"])
    assert loud > 0.5 > quiet
    assert texts(made) == ["a dog", "a bird"]
    made = service.post({**BOTH, "composition": "compose"}).json()
    assert (texts(made), made["input"]["composition"]) == (PARTS, "compose")


@pytest.mark.parametrize("prompt", [BOTH["prompt"], "a quiet dog and a loud cat"])
def test_a_recipe_holds_the_parts_as_understood(service, prompt):
    done = service.finish(service.post({**BOTH, "prompt": prompt}))
    recipe = done["outputs"][0]["recipe"]
    replayed = service.finish(service.client.post("/v1/replay", json={"recipe": recipe}))
    assert replayed["outputs"][0]["recipe"] == recipe
    assert texts(replayed) == PARTS[::-1]
    first, second = (service.client.get(one["outputs"][0]["url"]).content for one in (done, replayed))
    assert first == second


def test_an_idempotent_request_is_understood_once(service, monkeypatch):
    headers = {"Idempotency-Key": "k"}
    first = service.post(BOTH, headers=headers).json()
    service.understander.stop()
    monkeypatch.setattr(questions, "TIMEOUT_S", 0.01)
    again = service.post(BOTH, headers=headers).json()
    assert (again["id"], again["input"]) == (first["id"], first["input"])


def test_an_image_has_a_familiarity_before_it_is_made(service):
    said = service.client.post("/v1/estimate", files={"image": image("PNG")}).json()
    assert 0 <= said["familiarity"] <= 1
    assert service.client.post("/v1/estimate", files={"image": b"none"}).json()["familiarity"] is None


def test_without_an_answer_the_prompt_is_whole(silent):
    posted = silent.post(BOTH)
    made = posted.json()
    assert (made["input"]["prompt"], made["familiarity"], made["warnings"]) == (BOTH["prompt"], None, [])
    assert estimate(silent, BOTH)["familiarity"] is None
    assert silent.redis.keys("clipsynth:ask:*") == []


def test_the_worker_says_it_when_the_job_starts(service):
    posted = service.post({"prompt": "a dog", **SHORT})
    assert posted.json()["familiarity"] is None
    made = service.finish(posted)
    assert wait_until(
        lambda: service.client.get(made["links"]["self"]).json()["familiarity"] is not None, timeout_s=30
    )


@pytest.fixture
def strange(service, monkeypatch):
    """Each sound is unfamiliar."""
    monkeypatch.setattr(understanding, "UNFAMILIAR", 2)
    return service


def noted(service, made):
    """Wait until a worker has noted how it understands a job; return the resource."""
    assert made["status"] == "succeeded", made

    def resource():
        return service.client.get(made["links"]["self"]).json()

    assert wait_until(lambda: resource()["familiarity"] is not None, timeout_s=30)
    return resource()


def pointers(resource):
    return [warning["pointer"] for warning in resource["warnings"]]


def test_a_worker_names_the_items_of_a_timeline(strange):
    items = [{"text": text, "start_s": n, "end_s": n + 1} for n, text in enumerate(("a dog", "a cat"))]
    made = strange.finish(strange.post({"timeline": items, "num_inference_steps": 1}))
    assert pointers(noted(strange, made)) == ["/timeline/0", "/timeline/1"]


def test_a_negative_prompt_does_not_make_a_set(strange):
    body = {"prompt": "a dog", "negative_prompt": "a word " * 140, "guidance_scale": 2, **SHORT}
    made = noted(strange, strange.finish(strange.post(body)))
    assert [(w["code"], w["pointer"]) for w in made["warnings"]] == [
        ("unfamiliar", "/prompt"),
        ("truncated", "/negative_prompt"),
    ]


def test_a_sentence_with_a_negative_prompt_is_understood_whole(strange):
    body = {**BOTH, "negative_prompt": "a word " * 140, "guidance_scale": 2}
    made = strange.post(body).json()
    assert pointers(made) == ["/prompt", "/prompt", "/prompt", "/negative_prompt"]
    assert estimate(strange, body)["warnings"] == made["warnings"]


def test_a_remake_names_its_own_fields(strange):
    body = {"prompt": "a dog", **SHORT}
    made = noted(strange, strange.finish(strange.post(body)))
    assert pointers(made) == ["/prompt"]
    recipe = {"recipe": made["outputs"][0]["recipe"]}
    assert pointers(noted(strange, strange.finish(strange.client.post("/v1/replay", json=recipe)))) == [
        "/recipe"
    ]
    for kind, fields in {"variations": {}, "continuations": {"extend_s": 0.5}}.items():
        answer = strange.client.post(f"/v1/generations/{made['id']}/{kind}", json=fields)
        assert pointers(noted(strange, strange.finish(answer))) == [""]
    too_long = strange.client.post(f"/v1/generations/{made['id']}/continuations", json={"extend_s": 90})
    assert too_long.json()["errors"][0]["pointer"] == "/extend_s"


def test_an_image_of_another_host_is_named(strange, monkeypatch):
    monkeypatch.setattr(images, "_fetch", lambda *_: image("PNG"))
    body = {"image_url": "http://127.0.0.1/a.png", **SHORT}
    assert pointers(estimate(strange, body)) == ["/image_url"]
    made = strange.finish(strange.post(body))
    assert pointers(noted(strange, made)) == ["/image_url"]


def test_a_video_is_understood_by_its_scenes(strange, tmp_path):
    path = write_scenes(tmp_path / "a.mp4")
    with path.open("rb") as file:
        data = {"prompt": "rain", "num_inference_steps": 1}
        made = strange.finish(strange.post(files={"video": (path.name, file)}, data=data))
    found = noted(strange, made)
    assert pointers(found) == ["/prompt", "/video"]
    assert "the scene at 0 s" in found["warnings"][1]["detail"]
    assert found["understood_as"]


@pytest.mark.parametrize("query", ["text", "image", "video"])
def test_a_worker_encodes_each_query_once(service, query, tmp_path, monkeypatch):
    encoder, encoded = service.predictor.pipeline.encoder, []
    for name in ("encode_text", "encode_image"):
        own = getattr(encoder, name)
        monkeypatch.setattr(encoder, name, lambda many, own=own: (encoded.append(len(many)), own(many))[1])
    if query == "text":
        posted = service.post({"prompt": f"a dog of {tmp_path}", **SHORT})
    elif query == "image":
        posted = service.post(files={"image": image("PNG")}, data=SHORT)
    else:
        path = write_scenes(tmp_path / "a.mp4")
        posted = service.post(
            files={"video": (path.name, path.read_bytes())}, data={"num_inference_steps": 1}
        )
    noted(service, service.finish(posted))
    assert len(encoded) <= {"text": 1, "image": 1, "video": 6}[query]


@pytest.mark.parametrize(
    ("joint", "options"),
    [
        ("and", []),
        ("and", ["--literal"]),
        ("and", ["--composition", "compose"]),
        ("and", ["--attribute", "none"]),
        ("then", []),
    ],
)
def test_the_command_understands_as_the_service(service, tmp_path, joint, options):
    names = {"--composition": "composition", "--attribute": "attributes"}
    fields = {names[options[0]]: {"none": {}}.get(options[1], options[1])} if options[1:] else {}
    body = {
        "prompt": f"a loud \u200bdog {joint} a 🐈",
        "seed": 7,
        "interpret": options != ["--literal"],
        **fields,
        **SHORT,
        **({"duration_s": 1.0} if joint == "then" else {}),
    }
    there = samples(service.wav(service.post(body)))
    service.predictor.pipeline.save_pretrained(tmp_path / "bundle")
    command = ["generate", body["prompt"], "--model", tmp_path / "bundle", "--seed", "7", *options]
    command += ["--duration", str(body["duration_s"]), "--steps", "2", "-o", tmp_path / "here.wav"]
    # The service of this test computes in float32 on all hardware.
    precision = {"CLIPSYNTH_PRECISION": "float32"}
    result = CliRunner().invoke(app, [str(part) for part in command], env=precision, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(samples((tmp_path / "here.wav").read_bytes()), there)


def test_models_list_their_sounds(service):
    sounds = service.client.get("/v1/models").json()[0]["sounds"]
    assert sum(sound["share"] for sound in sounds) == pytest.approx(1, abs=1e-3)
