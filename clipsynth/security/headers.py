"""Security headers for browsers: pages load nothing from other origins."""

from __future__ import annotations

from contextvars import ContextVar

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# More headers of the answer to the present request: any code may add some.
ANSWER_HEADERS: ContextVar[dict[str, str]] = ContextVar("answer_headers")
