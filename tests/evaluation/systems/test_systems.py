import base64
import csv
import io
import json

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from clipsynth.client.client import AsyncClient, Client
from clipsynth.schemas.request import GenerationRequest
from evaluation.audio import check_sound, fit
from evaluation.clips import read_sound
from evaluation.interfaces import Query, Sources, split_options
from evaluation.plan import Sample
from evaluation.run.sound_cache import SoundStore
from evaluation.systems.bundle import Bundle, Reconstruction
from evaluation.systems.external import Folder
from evaluation.systems.recordings import Recordings, floor_samples
from evaluation.systems.retriever import Retriever, training_audio
from evaluation.systems.service import Service
from models.networks.packaged import PackagedEncoder
from models.retrieval.clip_index import Index
from tests.support.constants import BATCHED_TOLERANCE

pytestmark = pytest.mark.slow


RED = Query("low", "0.mp4", image=Image.new("RGB", (64, 64), "red"), duration_s=1.0)
DOG = Query("low", "0.mp4", prompt="a dog", duration_s=1.0)


def test_a_bundles_sound_does_not_depend_on_the_batch(tiny_pipeline):
    system = Bundle("ours", tiny_pipeline, steps=2)
    together = system.synthesize([DOG, RED, DOG], [1, 2, 3])
    [alone] = system.synthesize([RED], [2])
    assert alone.shape == (16000,)
    assert together[1] == pytest.approx(alone, abs=BATCHED_TOLERANCE)
    assert np.abs(together[0] - together[2]).max() > 0.05  # another seed
    assert Bundle("ours", tiny_pipeline, steps=3).version != system.version


def test_a_reconstruction_is_finite_and_as_long_as_the_clip(tiny_bundle, videos):
    system = Reconstruction.load("vocoder", str(tiny_bundle), Sources(videos))
    [sound] = system.synthesize([Query("low", "0.mp4", duration_s=1.0)], [0])
    assert sound.shape == (16000,)
    assert np.isfinite(sound).all()


@pytest.fixture(scope="module")
def index():
    encoder = PackagedEncoder()
    colours = encoder.encode_image([Image.new("RGB", (64, 64), c) for c in ("red", "green", "blue", "white")])
    clips = [{"video": f"{n}.mp4", "start_s": 0.5, "duration_s": 1.0} for n in range(4)]
    return encoder, Index(colours, clips)


def test_the_retriever_plays_the_clip_of_the_nearest_image(index, videos):
    retriever = Retriever("retriever", "v", *index, training_audio(videos, None))
    [sound] = retriever.synthesize([RED], [0])
    assert (sound == read_sound(videos / "0.mp4")[8000:24000]).all()
    green = Query("low", "0.mp4", image=Image.new("RGB", (64, 64), "green"))
    assert retriever.nearest(green) == 1


def test_the_retriever_restores_the_level_of_prepared_sounds(index, tmp_path):
    encoder, whole = index
    shards = tmp_path / "shards"
    shards.mkdir()
    np.save(shards / "sound.npy", np.full(16000, 16384, np.int16))
    line = whole.clips[0] | {
        "shard": "sound.npy",
        "arrays": {"waveform": [0, (shards / "sound.npy").stat().st_size]},
        "gain": 2.0,
    }
    (tmp_path / "index.jsonl").write_text(json.dumps(line) + "\n")
    audio = training_audio(None, tmp_path)
    first = Index(whole.embeds[:1], whole.clips[:1])
    [sound] = Retriever("retriever", "v", encoder, first, audio).synthesize([RED], [0])
    assert sound == pytest.approx(np.full(16000, 0.25), abs=1e-4)
    with pytest.raises(ValueError, match=r"no clip of 1\.mp4"):
        audio.sound(whole.clips[1])
    assert (audio.missing(first), audio.missing(whole)) == (None, "1.mp4")


def test_a_retriever_without_sounds_or_index_is_rejected(index, tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="training sounds"):
        training_audio(None, None)
    tiny_pipeline.save_pretrained(tmp_path / "bundle")
    with pytest.raises(ValueError, match="no retrieval index"):
        Retriever.load("retriever", str(tmp_path / "bundle"), Sources(tmp_path))
    with pytest.raises(ValueError, match="3 embeddings of 4"):
        Index(index[1].embeds[:3], index[1].clips)


def folder_of_sounds(path, files):
    with (path / "manifest.csv").open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["file", "kind", "clip", "seed"])
        for n, (rate, samples) in enumerate(files):
            soundfile.write(path / f"{n}.wav", samples, rate, subtype="FLOAT")
            rows.writerow([f"{n}.wav", "text", "0.mp4", n])
    return path


def test_a_folder_of_sounds_is_a_system(tmp_path):
    t = np.arange(48000) / 48000
    stereo = np.stack([np.sin(2 * np.pi * 440 * t), 0 * t], 1)
    folder = Folder("theirs", folder_of_sounds(tmp_path, [(48000, stereo)]))
    assert folder.kinds == {"text"}
    [sound] = folder.synthesize([DOG], [0])
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert sound[100:-100] == pytest.approx(wanted[100:-100], abs=1e-2)
    with pytest.raises(ValueError, match=r"no sound for the text of 0\.mp4 with seed 5"):
        folder.synthesize([DOG], [5])


def test_unusable_folders_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.csv"):
        Folder("theirs", tmp_path)
    folder_of_sounds(tmp_path, [(16000, np.zeros(9)), (44100, np.zeros(9))])
    with pytest.raises(ValueError, match="16000, 44100 Hz"):
        Folder("theirs", tmp_path)
    folder_of_sounds(tmp_path, [(16000, np.full(9, np.nan))])
    with pytest.raises(ValueError, match=r"0\.wav: 9 samples are NaN"):
        Folder("theirs", tmp_path).synthesize([DOG], [0])
    (tmp_path / "0.wav").unlink()
    with pytest.raises(ValueError, match=r"names 0\.wav, which is not there"):
        Folder("theirs", tmp_path)
    (tmp_path / "manifest.csv").write_text("file,kind,clip\n")
    with pytest.raises(ValueError, match="'file'"):
        Folder("theirs", tmp_path)


def test_an_unreachable_service_is_named(monkeypatch):
    monkeypatch.setattr("evaluation.systems.service.PATIENCE_S", 0)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9"):
        Service.load("service", "//127.0.0.1:9", Sources(None))


def served(monkeypatch, status="succeeded"):
    """A client of a service that notes what it was asked."""
    asked = []
    model = {
        "name": "demo",
        "version": "v",
        "sample_rate": 16000,
        "min_duration_s": 0.5,
        "max_duration_s": 5,
        "duration_s": 4,
        "num_inference_steps": 12,
        "guidance_scale": 8,
        "status": "ready",
    }
    sound = io.BytesIO()
    soundfile.write(sound, np.full(16000, 0.25), 16000, format="WAV")

    def answer(request):
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json=[model])
        if path == "/v1/generations/x/audio/0":
            return httpx.Response(200, content=sound.getvalue())
        if request.method == "POST":
            asked.append(GenerationRequest.model_validate_json(request.content))
        wanted = asked[-1]
        job = {
            "model": "demo",
            "prompt": wanted.prompt,
            "image_key": None,
            "negative_prompt": None,
            "seed": wanted.seed,
            "num_inference_steps": 12,
            "guidance_scale": 8,
            "duration_s": 1,
            "num_outputs": 1,
            "output_formats": ["wav"],
        }
        made = {
            "id": f"gen_{len(asked)}",
            "status": "queued",
            "created_at": 0,
            "model": "demo",
            "input": job,
            "seed": wanted.seed,
            "links": {},
        }
        if request.method == "GET":
            made |= {"status": status, "finished_at": 1}
            if status == "succeeded":
                output = {
                    "index": 0,
                    "url": "/v1/generations/x/audio/0",
                    "media_type": "audio/wav",
                    "format": "wav",
                    "duration_s": 1,
                    "sample_rate": 16000,
                    "seed": wanted.seed,
                }
                made["outputs"] = [output]
            else:
                made["error"] = {"code": "worker_lost", "detail": "three workers died of it"}
            event = f"event: completed\ndata: {json.dumps(made)}\n\n"
            return httpx.Response(200, text=event, headers={"content-type": "text/event-stream"})
        return httpx.Response(202, json=made)

    client = Client(patience_s=0)
    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(client, "_client", AsyncClient("http://service", patience_s=0, transport=transport))
    return client, asked


def test_a_service_gets_texts_and_images_with_each_seed(monkeypatch):
    client, asked = served(monkeypatch)
    service = Service("service", client, "http://service")
    sounds = service.synthesize([DOG, RED], [3, 4])
    assert [sound.shape for sound in sounds] == [(16000,)] * 2
    assert sounds[0] == pytest.approx(np.full(16000, 0.25), abs=1e-4)
    assert [(w.prompt, w.seed, w.duration_s, w.model) for w in asked] == [
        ("a dog", 3, 1.0, "demo"),
        (None, 4, 1.0, "demo"),
    ]
    image = Image.open(io.BytesIO(base64.b64decode(asked[1].image)))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_a_failed_generation_is_an_error_with_its_reason(monkeypatch):
    client, _ = served(monkeypatch, "failed")
    with pytest.raises(ValueError, match="service: three workers died of it"):
        Service("service", client, "http://service").synthesize([DOG], [0])


class Broken:
    name, version, deterministic = "broken", "v", False

    def synthesize(self, queries, seeds):
        return [np.array([0.0, np.nan], np.float32) for _ in queries]


def test_what_is_no_sound_is_refused_and_not_kept(tmp_path):
    store = SoundStore(tmp_path, Broken())
    with pytest.raises(ValueError, match=r"broken, text-0-7-\w+: 1 samples are NaN"):
        store.make([Sample(DOG, 7)], batch_size=1, on_progress=lambda done: None)
    assert list(store.folder.iterdir()) == []
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        check_sound(np.zeros((2, 3)), "this")


class Tone:
    """A system whose code changes and whose version does not."""

    name, version, deterministic = "tone", "v", False
    frequency = 440
    changed = range(100)  # seeds

    def synthesize(self, queries, seeds):
        t = np.arange(8000) / 16000
        frequencies = [self.frequency if seed in self.changed else 440 for seed in seeds]
        return [0.5 * np.sin(2 * np.pi * f * t + seed) for f, seed in zip(frequencies, seeds, strict=True)]


def test_outdated_cached_sounds_are_not_reused(tmp_path):
    system = Tone()
    store = SoundStore(tmp_path, system)
    samples = [Sample(DOG, seed) for seed in range(3)]
    store.make(samples[:2], batch_size=2, on_progress=lambda done: None)
    store.make(samples, batch_size=2, on_progress=lambda done: None)
    system.frequency = 441
    with pytest.raises(ValueError, match=r"tone makes another sound for text-0-0-\w+ .*remove that folder"):
        store.make(samples, batch_size=2, on_progress=lambda done: None)


def test_a_change_that_only_some_sounds_hear_is_seen(tmp_path):
    system = Tone()
    store = SoundStore(tmp_path, system)
    samples = [Sample(DOG, seed) for seed in range(25)]
    store.make(samples, batch_size=5, on_progress=lambda done: None)
    system.frequency, system.changed = 441, range(12, 25)
    with pytest.raises(ValueError, match="remove that folder"):
        store.make(samples, batch_size=5, on_progress=lambda done: None)


def test_recordings_return_their_own_sound(videos):
    [sound] = Recordings("real", videos).synthesize([Query("low", "1.mp4", duration_s=0.5)], [0])
    assert (sound == read_sound(videos / "1.mp4")[:8000]).all()
    assert len(fit(sound, 1.0)) == 16000


def test_the_floor_has_the_queried_classes_and_distinct_clips():
    train = {f"{label}{n}": label for label in "ab" for n in range(4)}
    samples = floor_samples(["a", "b", "a"], train, 2, 1.0)
    assert [s.query.label for s in samples] == ["a", "b", "a"] * 2
    assert len({s.query.clip for s in samples}) == 6
    with pytest.raises(ValueError, match="'c'"):
        floor_samples(["c"], train, 1, 1.0)


def test_options_of_a_system_are_typed():
    assert split_options("x/y?steps=3", {"steps": int}) == ("x/y", {"steps": 3})
    with pytest.raises(ValueError, match="no option 'stpes'"):
        split_options("x?stpes=3", {"steps": int})
    with pytest.raises(ValueError, match="steps"):
        split_options("x?steps=many", {"steps": int})
