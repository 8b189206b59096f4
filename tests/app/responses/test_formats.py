"""Outputs in several formats, over the service of test_generations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from clipsynth.schemas.generation import ReplayToken
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, image, serving

KINDS = {
    "wav": ("audio/wav", "WAV", "PCM_16", 4e-5),
    "wav_24": ("audio/wav", "WAV", "PCM_24", 1e-6),
    "wav_float": ("audio/wav", "WAV", "FLOAT", 0),
    "flac": ("audio/flac", "FLAC", "PCM_16", 4e-5),
    "ogg": ("audio/ogg", "OGG", "VORBIS", None),
    "mp3": ("audio/mpeg", "MP3", "MPEG_LAYER_III", None),
}


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def made(service, *formats, **body):
    request = {"prompt": "rain", "seed": 1, "output_formats": list(formats), **SHORT, **body}
    done = service.finish(service.post(request))
    assert done["status"] == "succeeded", done
    return done


def opened(data):
    return soundfile.SoundFile(io.BytesIO(data))


def test_each_format_is_valid_and_marked_as_generated(service):
    exact = None
    for formats in (["wav_float", "wav", "wav_24"], ["flac", "ogg", "mp3"]):
        done = made(service, *formats)
        for output in done["outputs"]:
            media_type, container, subtype, tolerance = KINDS[output["format"]]
            response = service.client.get(output["url"])
            assert response.headers["content-type"] == output["media_type"] == media_type
            assert f'filename="{output["filename"]}"' in response.headers["content-disposition"]
            sound = opened(response.content)
            assert (sound.format, sound.subtype, sound.samplerate) == (container, subtype, 16000)
            assert f"recipe {ReplayToken.read(output['recipe']).id}" in sound.comment
            assert "generated" in sound.comment
            samples = sound.read()
            if exact is None:
                exact = samples
            if tolerance is not None:
                np.testing.assert_allclose(samples, np.clip(exact, -1, 1), atol=tolerance, rtol=0)
            assert len(samples) == pytest.approx(8000, abs=1200)
        names = [o["filename"] for o in done["outputs"]]
        assert len(set(names)) == len(names)


def test_the_same_request_gives_the_same_bytes(service):
    formats = ["wav", "wav_float", "flac", "mp3"]
    one, two = made(service, *formats), made(service, *formats)
    for a, b in zip(one["outputs"], two["outputs"], strict=True):
        assert service.client.get(a["url"]).content == service.client.get(b["url"]).content


def test_the_mark_does_not_depend_on_where_an_image_is_stored(service):
    data = image("PNG")
    one, two = (
        service.wav(service.post(files={"image": ("x", data)}, data={"seed": "1", **SHORT})) for _ in "12"
    )
    assert one == two


@pytest.mark.parametrize(
    ("query", "accept", "got"),
    [
        ("", "*/*", "audio/flac"),
        ("", "audio/wav", "audio/wav"),
        ("", "audio/flac;q=0.5, audio/mpeg", "audio/mpeg"),
        ("", "audio/mpeg;q=0, audio/wav;q=0.1", "audio/wav"),
        ("", "audio/*", "audio/flac"),
        ("?format=mp3", "audio/wav", "audio/mpeg"),
    ],
)
def test_format_and_accept_choose_the_file(service, query, accept, got):
    done = made(service, "flac", "wav", "mp3")
    response = service.client.get(f"{done['links']['self']}/audio/0{query}", headers={"accept": accept})
    assert (response.headers["content-type"], response.headers["vary"]) == (got, "Accept")


def test_a_missing_or_unknown_format_is_a_problem(service):
    url = made(service, "flac")["links"]["self"] + "/audio/0"
    check_problem(service.client.get(f"{url}?format=wav"), 404, "not_found")
    check_problem(service.client.get(f"{url}?format=aiff"), 422, "invalid_request")
    check_problem(service.client.get(url, headers={"accept": "audio/wav"}), 406, "not_acceptable")


def test_a_form_names_several_formats(service):
    form = [(k, (None, str(v))) for k, v in {"prompt": "a", **SHORT}.items()]
    form += [("output_formats", (None, f)) for f in ("ogg", "wav")]
    assert [o["format"] for o in service.finish(service.post(files=form))["outputs"]] == ["ogg", "wav"]
