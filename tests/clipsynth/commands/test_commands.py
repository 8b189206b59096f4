"""The commands that people type: generate, models, inspect, doctor."""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from clipsynth.cli import app
from clipsynth.client.client import Client, ServiceError
from tests.support.constants import BATCHED_TOLERANCE

TINY = ["--duration", "0.5", "--steps", "2"]


def run(*arguments, **environment):
    """Run a command; return what it printed. Its error, if any, is raised."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_prompt_becomes_the_file_that_is_named(tiny_bundle, tmp_path):
    run("generate", "a dog", "-o", tmp_path / "dog.flac", "--format", "flac", "--model", tiny_bundle, *TINY)
    assert (tmp_path / "dog.flac").read_bytes()[:4] == b"fLaC"


def test_a_file_of_prompts_becomes_a_folder(tiny_bundle, tmp_path):
    (tmp_path / "prompts.txt").write_text("# animals\na dog\n\nA cat, purring!\n")
    run(
        "generate", "--from", tmp_path / "prompts.txt", "-o", tmp_path / "out", "--num-outputs", 2,
        "--model", tiny_bundle, *TINY,
    )  # fmt: skip
    names = ["000-a-dog-1.wav", "000-a-dog.wav", "001-a-cat-purring-1.wav", "001-a-cat-purring.wav"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize("composition", ["set", "compose", "mix"])
def test_a_service_makes_the_same_sound_as_this_process(served, tiny_bundle, tmp_path, composition):
    service, _ = served
    service.wait_for_worker()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    query = ["a dog", "--image", tmp_path / "red.png", "--composition", composition, "--seed", "7", *TINY]
    run("generate", *query, "-o", tmp_path / "here.wav", "--model", tiny_bundle)
    run("generate", *query, "-o", tmp_path / "there.wav", "--server", service.url)
    # The service's file names its recipe, so only the sound itself is equal.
    here, there = ((tmp_path / name).read_bytes() for name in ("here.wav", "there.wav"))
    start = here.index(b"data")
    samples = here[start + 8 : start + 8 + int.from_bytes(here[start + 4 : start + 8], "little")]
    assert len(samples) == 16_000
    assert samples in there


def test_an_output_is_varied_and_extended(served, tmp_path):
    service, _ = served
    service.wait_for_worker()
    where = ["--server", service.url]
    with Client(service.url) as client:
        parent = client.generate("a dog", duration_s=0.5).generation
    run("vary", parent.id, "-o", tmp_path / "v.wav", "--strength", 0.3, "--num-outputs", 2, *where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v-1.wav", "v.wav"]
    run("extend", f"{parent.id}/0", 1, "-o", tmp_path / "longer.wav", *where)
    assert soundfile.info(tmp_path / "longer.wav").duration == 1.5
    with pytest.raises(ValueError, match="GENERATION/OUTPUT"):
        run("vary", f"{parent.id}/a", *where)
    with pytest.raises(ServiceError, match="counted from 0"):
        run("extend", f"{parent.id}/3", 1, *where)


def test_a_timeline_file_makes_one_loop_here_and_in_a_service(served, tiny_bundle, tmp_path):
    service, _ = served
    service.wait_for_worker()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    items = [
        {"text": "rain", "start_s": 0, "end_s": 1.2, "attributes": {"loudness": 0.3}},
        {"image": "red.png", "start_s": 0.5, "end_s": 1, "weight": 2, "fade_s": 0.1},
    ]
    (tmp_path / "scene.json").write_text(json.dumps(items))
    query = ["--timeline", tmp_path / "scene.json", "--loop", "--seed", "7", "--steps", "2"]
    run("generate", *query, "-o", tmp_path / "here.wav", "--model", tiny_bundle)
    run("generate", *query, "-o", tmp_path / "there.wav", "--server", service.url)
    here, there = (soundfile.read(tmp_path / name)[0] for name in ("here.wav", "there.wav"))
    assert len(here) == 30 * 640
    np.testing.assert_allclose(here, there, atol=BATCHED_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"text": "rain", "start_s": 2, "end_s": 1}], "at least 0.1 s"),
        ([{"image": "none.png", "start_s": 0, "end_s": 1}], "no such image"),
        ({}, "list"),
    ],
)
def test_a_bad_timeline_file_is_rejected(tmp_path, items, message):
    (tmp_path / "scene.json").write_text(json.dumps(items))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("generate", "--timeline", tmp_path / "scene.json")


def test_attributes_are_asked_for_by_option_or_in_words(served, tiny_bundle, tmp_path):
    service, _ = served
    service.wait_for_worker()
    there = ["--server", service.url]
    for name, query in {
        "asked": ["a dog", "--attribute", "loudness=0.15", "--attribute", "pitch=0.85"],
        "said": ["a quiet, high-pitched dog"],
        "sent": ["a quiet, high-pitched dog", *there],
        "literal": ["a quiet, high-pitched dog", "--attribute", "none"],
        "literal_sent": ["a quiet, high-pitched dog", "--attribute", "none", *there],
    }.items():
        where = [] if "sent" in name else ["--model", tiny_bundle]
        run("generate", *query, "-o", tmp_path / f"{name}.wav", *where, *TINY)
    heard = {path.stem: soundfile.read(path)[0] for path in tmp_path.glob("*.wav")}
    for one, other in (("said", "asked"), ("sent", "said"), ("literal_sent", "literal")):
        np.testing.assert_array_equal(heard[one], heard[other])
    assert np.abs(heard["said"] - heard["literal"]).max() > 1e-3


@pytest.mark.parametrize("option", ["pitch", "warmth=0.5", "pitch=high", "pitch=2"])
def test_what_is_no_attribute_is_said(option, tiny_bundle):
    with pytest.raises(ValueError, match=f"--attribute {option.partition('=')[0]}"):
        run("generate", "a dog", "--attribute", option, "--model", tiny_bundle)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a prompt"),
        (["--from", "nowhere.txt"], "nowhere.txt"),
        (["--image", "nowhere.png"], "nowhere.png: no such image"),
        (["a", "b", "-o", "x.wav"], "name a folder"),
        (["a", "--server", "http://127.0.0.1:9", "--patience", "0"], "does not answer"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, words):
    with pytest.raises((ValueError, FileNotFoundError, ServiceError), match=words):
        run("generate", *arguments)


def test_models_says_what_is_served(served):
    service, _ = served
    service.wait_for_worker()
    assert run("models", "--server", service.url).startswith("tiny  ready  ")


def test_inspect_names_every_part_with_its_size(tiny_bundle):
    printed = run("inspect", tiny_bundle)
    for part in ("encoder", "condition_encoder", "denoiser", "vocoder", "mel"):
        assert f"\n{part}" in printed
    assert "M parameters" in printed


def test_inspect_refuses_what_was_changed(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "changed")
    (tmp_path / "changed" / "mel" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="mel"):
        run("inspect", tmp_path / "changed")


def test_doctor_is_content_with_what_works(tiny_bundle, tmp_path, redis_url):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    printed = run(
        "doctor",
        CLIPSYNTH_MODEL=str(tiny_bundle),
        CLIPSYNTH_DATA_DIR=str(tmp_path),
        CLIPSYNTH_REDIS_URL=redis_url,
        CLIPSYNTH_PORT=port,
    )
    assert {line.split()[0] for line in printed.splitlines()} == {"ok"}


def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(
            app,
            ["doctor"],
            env={
                "CLIPSYNTH_MODEL": str(tmp_path),
                "CLIPSYNTH_DATA_DIR": str(tmp_path),
                "CLIPSYNTH_REDIS_URL": "redis://127.0.0.1:9",
                "CLIPSYNTH_PORT": str(taken.getsockname()[1]),
                "CLIPSYNTH_DEVICE": "cuda:9",
            },
        )
    assert result.exit_code == 1
    wrong = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert wrong == ["redis", "bundle", "device", "port"]
