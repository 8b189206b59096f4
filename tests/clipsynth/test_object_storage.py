"""Files in an S3-compatible store: s3fs against a real server (moto) on loopback.

Needs the extras `s3` and `s3-test`.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

from clipsynth.errors import NotFound, StorageUnavailable
from clipsynth.services.janitor import sweep
from clipsynth.settings import Settings
from clipsynth.storage import Storage, audio_key
from tests.support.api_service import SHORT, check_problem, image, serving
from tests.support.s3 import s3_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def bucket(monkeypatch):
    """Serve an empty store; return the URL of a folder in it."""
    with s3_server(monkeypatch):
        Storage("s3://sounds")._fs.mkdir("sounds")
        yield "s3://sounds/results"
        Storage("s3://sounds")._fs.clear_instance_cache()


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path, bucket):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, storage_url=bucket, result_ttl_s=60)
    yield from serving(settings, tiny_pipeline)


def objects(service):
    fs = service.storage._fs
    fs.invalidate_cache()
    return fs.find("sounds")


def test_an_object_store_holds_the_files_of_a_generation(service):
    assert service.client.get("/readyz").status_code == 200
    done = service.finish(service.post(files={"image": ("x", image("PNG"))}, data=SHORT))
    assert done["status"] == "succeeded"
    names = [f"{done['id']}/{name}" for name in ("*/0.views", "*/0.wav", "in/0.png")]  # * is the attempt
    found = objects(service)
    assert len(found) == len(names)  # and nothing temporary
    assert all(fnmatch(key, f"*{name}") for key, name in zip(found, names, strict=True)), found
    url = done["outputs"][0]["url"]
    whole = service.client.get(url)
    assert whole.headers["etag"] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    part = service.client.get(url, headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole.content[4:8])
    assert service.client.head(url).headers["content-length"] == str(len(whole.content))
    assert service.client.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304

    service.redis.zadd("clipsynth:expiry", {done["id"]: 1})  # its time is over
    assert sweep(service.state, service.storage) == 1
    assert objects(service) == []
    check_problem(service.client.get(url), 410, "gone")


def test_delete_removes_files_from_an_object_store(service):
    done = service.finish(service.post({"prompt": "a", **SHORT}))
    assert service.client.delete(done["links"]["self"]).status_code == 204
    assert objects(service) == []


def test_a_missing_object_store_is_a_typed_error(bucket):
    storage = Storage(bucket)
    key = audio_key("gen_" + "0" * 26, 0, "wav")
    with pytest.raises(NotFound):
        storage.get(key)
    storage.put(key, b"sound")
    assert storage.get(key) == b"sound"
    storage.delete("gen_" + "1" * 26)  # which never was
    storage._fs.rm("sounds", recursive=True)
    with pytest.raises(StorageUnavailable):
        storage.put(key, b"sound")
    with pytest.raises(StorageUnavailable):
        storage.check()
