"""Training clips over HTTP: played where the worker may, and named beside what was generated."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from clipsynth.schemas.generation import ReplayToken
from clipsynth.schemas.model_info import ModelCost
from clipsynth.settings import Settings
from models.media.video import read_video
from tests.support.api_service import SHORT, check_problem, samples, serving
from worker.main import methods
from worker.predictor import Predictor


@pytest.fixture
def service(redis_url, indexed_pipeline, videos, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, retrieval_audio=videos)
    yield from serving(settings, indexed_pipeline)


@pytest.fixture
def without(redis_url, indexed_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), indexed_pipeline)


def colour(name):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), name).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def clip_of(videos, n):
    return read_video(videos / f"{n}.mp4", sample_rate=16000).waveform[8000:24000]


def test_retrieval_returns_the_nearest_clips_in_order(service, videos):
    steps = service.engine.stepped_at
    done = service.finish(
        service.post({"image": colour("green"), "method": "retrieval", "num_outputs": 4, "duration_s": 1.5})
    )
    assert done["status"] == "succeeded", done
    assert done["seed"] == 0
    heard = [output["clip"]["video"] for output in done["outputs"]]
    assert heard[0] == "1.mp4"
    assert sorted(heard) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert done["outputs"][0]["clip"] == {
        "video": "1.mp4", "start_s": 0.5, "source": "source 1", "licence": "CC0 1.0"
    }  # fmt: skip
    for output in done["outputs"]:
        wave = samples(service.client.get(output["url"]).content)
        clip = clip_of(videos, int(output["clip"]["video"][0]))
        # The ends are faded.
        assert wave[80:15920] == pytest.approx(clip[80:15920], abs=1e-4)
        assert abs(wave[15990:]).max() < 0.01
        assert len(wave) == 24000
        assert (wave[16000:] == 0).all()
        assert output["copy_distance"] is None
    assert service.engine.stepped_at == steps  # the network was not asked


def test_retrieval_subtracts_negative_weights(service):
    def nearest(*prompts):
        body = {"prompts": list(prompts), "method": "retrieval", "guidance_scale": 1, **SHORT}
        return service.finish(service.post(body))["outputs"][0]["clip"]["video"]

    green, white = {"image": colour("green")}, {"image": colour("white")}
    assert nearest(green | {"weight": 1}, white | {"weight": 0.1}) == "1.mp4"
    assert nearest(green | {"weight": 0.1}, white | {"weight": 1}) == "3.mp4"
    assert nearest(white, green | {"weight": 0.5}) == nearest(green | {"weight": 0.5}, white)
    assert nearest(white | {"weight": 0.1}, white | {"weight": -1}) != "3.mp4"


def test_a_replay_returns_the_same_clip(service):
    done = service.finish(
        service.post({"prompt": "a dog", "method": "retrieval", "num_outputs": 3, "seed": 9, **SHORT})
    )
    last = done["outputs"][2]
    replayed = service.client.post("/v1/replay", json={"recipe": last["recipe"]})
    again = service.finish(replayed)["outputs"][0]
    assert again["clip"] == last["clip"]
    one, other = (service.client.get(output["url"]).content for output in (last, again))
    assert one == other
    assert ReplayToken.read(last["recipe"]).rank == 2
    with soundfile.SoundFile(io.BytesIO(one)) as sound:
        assert sound.comment.startswith(
            f"retrieved by CLIPSynth from {last['clip']['source']} (CC0 1.0); recipe "
        )


def test_an_impossible_retrieval_is_rejected(service):
    check_problem(service.post({"prompt": "a", "rank": 1}), 422, "invalid_request")
    failed = service.finish(service.post({"prompt": "a", "method": "retrieval", "rank": 4, **SHORT}))
    assert failed["error"] == {
        "code": "invalid_request", "detail": "there are 4 training clips, asked for the 5 nearest"
    }  # fmt: skip


def test_a_missing_clip_fails_without_file_names(service, monkeypatch):
    def gone(_clip):
        raise ValueError("/somewhere/0.mp4: no such video")

    monkeypatch.setattr(service.predictor._retrieval.audio, "sound", gone)
    failed = service.finish(service.post({"prompt": "a", "method": "retrieval", **SHORT}))
    assert failed["error"] == {"code": "generation_failed", "detail": "the model could not make this sound"}


def test_without_training_sounds_retrieval_is_unavailable(without):
    body = {"prompt": "a dog", "method": "retrieval", **SHORT}
    check_problem(without.post(body), 422, "method_unavailable")
    check_problem(without.client.post("/v1/estimate", json=body), 422, "method_unavailable")
    [model] = without.client.get("/v1/models").json()
    assert model["methods"] == ["diffusion"]


def test_a_worker_without_training_sounds_fails_the_job(without):
    without.state.announce(without.info.model_copy(update={"methods": ["diffusion", "retrieval"]}))
    failed = without.finish(without.post({"prompt": "a dog", "method": "retrieval", **SHORT}))
    assert failed["error"]["code"] == "method_unavailable"


def test_an_estimate_counts_no_steps_for_retrieval(service):
    cost = ModelCost(audio_step_s=0.1, step_s=0.5, guided_share=0.65)
    service.state.announce(service.info.model_copy(update={"cost": cost}))
    body = {"prompt": "a dog", "num_inference_steps": 10}
    slow, quick = (
        service.client.post("/v1/estimate", json=body | {"method": method}).json()["p50_s"]
        for method in ("diffusion", "retrieval")
    )
    assert slow >= 5
    assert quick == 0


def test_retrieval_does_not_change_the_estimate(service):
    cost = ModelCost(audio_step_s=1e-6, step_s=1e-6, guided_share=0.65)
    service.state.announce(service.info.model_copy(update={"cost": cost}))
    for method, known in (("retrieval", 0), ("diffusion", 1)):
        service.finish(service.post({"prompt": "a dog", "method": method, **SHORT}))
        assert service.redis.llen("clipsynth:eta_ratios:tiny") == known


def test_bundle_and_setting_decide_whether_retrieval_works(tiny_pipeline, tiny_bundle, videos, tmp_path):
    settings = Settings(model=tiny_bundle, device="cpu", retrieval_audio=videos, data_dir=tmp_path)
    predictor = Predictor.setup(settings)
    assert predictor.retrieves
    assert methods(settings, predictor.manifest) == ["diffusion", "retrieval"]
    assert methods(settings, tiny_pipeline.manifest) == ["diffusion"]
    with pytest.raises(
        ValueError, match=r"the sound of 0\.mp4, which the retrieval index names, is not there"
    ):
        Predictor.setup(settings.model_copy(update={"retrieval_audio": tmp_path}))
    with pytest.raises(ValueError, match="no such folder"):
        Predictor.setup(settings.model_copy(update={"retrieval_audio": tmp_path / "none"}))


# ---------------------------------------------------------------------------------------- nearness to them


def test_an_output_names_the_nearest_training_clips(service):
    done = service.finish(service.post({"prompt": "a dog", "output_formats": ["wav", "flac"], **SHORT}))
    wav, flac = done["outputs"]
    assert [near["distance"] for near in wav["nearest"]] == sorted(n["distance"] for n in wav["nearest"])
    assert len(wav["nearest"]) == 3
    assert set(wav["nearest"][0]) == {"video", "start_s", "source", "licence", "distance"}
    assert wav["copy_distance"] == wav["nearest"][0]["distance"]
    assert wav["clip"] is None
    assert flac["nearest"] == wav["nearest"]


def test_a_copy_is_marked_as_one(service, videos):
    found = service.predictor.nearness(0.1 * clip_of(videos, 2)[3000:15000])
    assert (found.nearest[0].video, found.is_copy) == ("2.mp4", True)
    assert found.copy_distance < 0.05
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    assert service.predictor.nearness(noise).is_copy is False


def test_a_bundle_without_images_says_nothing_of_copies(tiny_pipeline):
    found = Predictor(tiny_pipeline).nearness(np.ones(8000, np.float32))
    assert (found.copy_distance, found.is_copy, found.nearest) == (None, None, [])
