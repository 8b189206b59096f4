"""What a user does on the page."""

from __future__ import annotations

import io
import json

from PIL import Image

WAIT_MS = 60_000


def set_slider(page, label, value):
    page.locator("#settings").evaluate("(settings) => { settings.open = true; }")
    page.get_by_label(label, exact=True).evaluate(
        "(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", value
    )


def generate(page, prompt):
    """Type, press Ctrl+Enter and return the card of the sound."""
    page.get_by_label("What should it sound like?").fill(prompt)
    page.keyboard.press("Control+Enter")
    return page.get_by_role("article").first


def image(colour):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return {"name": f"{colour}.png", "mimeType": "image/png", "buffer": file.getvalue()}


def body_of(page, action):
    """Return what the page asks the service for when `action` is done."""
    with page.expect_request(lambda r: r.url.endswith("/v1/generations") and r.method == "POST") as asked:
        action()
    return json.loads(asked.value.post_data)
