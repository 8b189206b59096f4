"""Security headers for browsers: pages load nothing from other origins."""

from __future__ import annotations

from contextvars import ContextVar

FRAMES = "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
HEADERS = {
    "Content-Security-Policy": f"default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; {FRAMES}",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# More headers of the answer to the present request: any code may add some.
ANSWER_HEADERS: ContextVar[dict[str, str]] = ContextVar("answer_headers")
