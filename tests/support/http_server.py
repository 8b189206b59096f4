"""Servers for tests: one that keeps its requests, and the API on a socket."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from app.server import config
from clipsynth.services.processes import wait_until


class Heard:
    """A server on loopback that records requests and sends the response that the test sets."""

    def __init__(self, tls=None):
        self.requests, self.status, self.headers, self.body, self.pause_s = [], 200, {}, b"ok", 0.0
        self.gate = threading.Event()  # while it is closed, requests wait
        self.gate.set()
        heard = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                heard.requests.append((self.path, dict(self.headers), body))
                heard.gate.wait()
                time.sleep(heard.pause_s)
                self.send_response(heard.status)
                for name, value in {"content-length": str(len(heard.body)), **heard.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(heard.body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # clients that hang up
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?x=1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def listening(tls=None):
    heard = Heard(tls)
    try:
        yield heard
    finally:
        heard.close()


@contextmanager
def api_on_a_socket(settings):
    """Serve the API in a thread, as `clipsynth api` does; yield its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config(settings))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert wait_until(lambda: server.started, timeout_s=30, interval_s=0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
