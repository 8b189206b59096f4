"""An S3-compatible store (moto) on loopback."""

from __future__ import annotations

from contextlib import contextmanager

import httpx


@contextmanager
def s3_server(monkeypatch):
    """Serve an empty store, to which the environment points while the context lasts."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    httpx.post(f"http://127.0.0.1:{port}/moto-api/reset").raise_for_status()
    try:
        yield
    finally:
        moto.stop()
