"""Images in forms and in JSON: empty fields, sizes, and every way to write base64."""

from __future__ import annotations

import base64
import hashlib
import io

import pytest
from PIL import Image

from app.requests.images import decode_base64
from clipsynth.errors import InvalidRequest
from clipsynth.settings import Settings
from clipsynth.storage import image_key
from tests.support.api_service import SHORT, check_problem, image, serving

DATA = bytes(range(256)) + b"\xff\xef\xbe"
PLAIN = base64.b64encode(DATA).decode()
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    settings = Settings(
        redis_url=redis_url, data_dir=tmp_path, max_image_bytes=100_000, max_form_image_bytes=250_000
    )
    yield from serving(settings, tiny_pipeline)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        base64.encodebytes(DATA).decode(),
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
        f" {PLAIN}\t\f",
        PLAIN.rstrip("="),
        f"{PLAIN[:30]} {PLAIN[30:]}",
        URL_SAFE,
        URL_SAFE.rstrip("="),
        f"data:image/png;base64,{PLAIN}",
        f"DATA:image/PNG;BASE64,{PLAIN}",
        f"data:image/png;charset=utf-8; base64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        "data:image/png;base64," + PLAIN.replace("=", "%3D").replace("+", "%2B").replace("/", "%2F"),
    ],
)
def test_base64_is_read_as_it_comes(text):
    assert decode_base64(text) == DATA


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("photo.jpg", "not base64"),
        ("A", "not base64"),
        (PLAIN + "!", "not base64"),
        ("https://example.com/a.png", "image_url"),
        ("HTTP://example.com/a.png", "image_url"),
        ("data:image/svg+xml,<svg/>", "base64"),
    ],
)
def test_other_text_gets_a_hint(text, hint):
    with pytest.raises(InvalidRequest, match=hint):
        decode_base64(text)


@pytest.mark.parametrize("length", [100, 3000, 300_000])
@pytest.mark.parametrize("in_set", [False, True])
def test_a_data_url_in_image_url_gets_a_hint(service, length, in_set):
    item = {"image_url": "data:image/png;base64," + "A" * length}
    response = service.post({"prompts": [item]} if in_set else item)
    check_problem(response, 422, "invalid_request")
    assert "`image`" in response.text


def test_an_empty_field_of_a_form_is_absent(service):
    empty = ["image_url", "negative_prompt", "seed", "guidance_scale", "attributes", "metadata", "prompts"]
    fields = [(name, (None, "")) for name in (*empty, "output_formats", "webhook_url", "model", "method")]
    files = [("image", ("", b"", "application/octet-stream")), ("prompt", (None, "a dog"))]
    files += [(name, (None, str(value))) for name, value in SHORT.items()]
    done = service.finish(service.post(files=fields + files))
    assert done["status"] == "succeeded"
    assert done["input"]["prompt"] == "a dog"
    assert done["input"]["output_formats"] == ["wav"]
    text = [("prompt", (None, "")), ("image", ("a.png", image("PNG"))), *files[2:]]
    assert service.finish(service.post(files=text))["status"] == "succeeded"


def test_a_form_of_empty_fields_has_no_prompt(service):
    fields = [("image", ("", b"")), ("prompt", (None, ""))]
    check_problem(service.post(files=fields), 422, "invalid_request")


def test_an_empty_file_with_a_name_is_refused(service):
    fields = [("image", ("photo.png", b"")), ("prompt", (None, "a dog"))]
    check_problem(service.post(files=fields), 415, "unsupported_media")


def test_a_form_may_have_larger_images_than_json(service):
    large, larger = image("PNG", (220, 220)), image("PNG", (300, 300))
    assert 100_000 < len(large) < 250_000 < len(larger)
    assert service.post(files={"image": ("a.png", large)}, data=SHORT).status_code == 202
    check_problem(service.post(files={"image": ("a.png", larger)}), 413, "image_too_large")
    response = service.post({"image": base64.b64encode(large).decode()})
    check_problem(response, 413, "image_too_large")
    assert "form" in response.text


@pytest.mark.parametrize("kind", ["another PNG", "another format"])
def test_a_changed_stored_image_is_not_decoded(service, kind):
    response = service.post(files={"image": ("a.png", image("PNG"))}, data=SHORT)
    key = image_key(response.json()["id"])
    other = image("PNG" if kind == "another PNG" else "TIFF")
    service.storage.put(key, other)
    done = service.finish(response)
    assert (done["status"], done["error"]["code"]) == ("failed", "image_gone")


def test_the_worker_opens_stored_images_as_png_only(service):
    response = service.post(files={"image": ("a.png", image("PNG"))}, data=SHORT)
    payload = service.queue.jobs[0].args[1]
    stored = service.storage.get(image_key(response.json()["id"]))
    assert hashlib.sha256(stored).hexdigest() == payload["image_sha256"]
    tiff = image("TIFF")
    service.storage.put(image_key(response.json()["id"]), tiff)
    job = service.queue.jobs[0]
    payload["image_sha256"] = hashlib.sha256(tiff).hexdigest()
    job.args = (job.args[0], payload)
    job.save()
    assert service.finish(response)["status"] == "failed"
    assert Image.open(io.BytesIO(stored)).format == "PNG"
