"""HTTP requests as bytes, on connections that an attacker may leave open."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ANSWER_S = 60.0


class Target:
    """The service under attack, with the key of one client."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token
        self.sent = 0  # requests

    def head(self, method: str, path: str, *, length: int = 0, **headers: str) -> bytes:
        self.sent += 1
        fields = {"Host": "localhost", "Authorization": f"Bearer {self.token}"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        if length:
            fields |= {"Content-Length": str(length)}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    async def connect(self, limit: int = 65_536) -> Connection:
        """Open a connection that buffers `limit` bytes of what comes."""
        return await asyncio.open_connection("127.0.0.1", self.port, limit=limit)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Send a request and return status and body; (0, b"") if the service closes or does not answer."""
        headers.setdefault("Content_Type", "application/json")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await self.connect(2**27)
                try:
                    head = self.head(method, path, length=len(body), Connection="close", **headers)
                    with contextlib.suppress(ConnectionError):  # refused before it was read
                        writer.write(head + body)
                        await writer.drain()
                    answer = await reader.read()
                    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]
                finally:
                    writer.close()
        return 0, b""

    async def post(self, **fields: object) -> tuple[int, bytes]:
        return await self.ask("POST", "/v1/generations", json.dumps(fields).encode())


async def hold(connections: Iterable[Connection], seconds: float) -> None:
    """Keep connections open, and then close them."""
    await asyncio.sleep(seconds)
    for _, writer in connections:
        writer.close()
