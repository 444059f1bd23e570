"""Real servers, each in a thread with an event loop of its own."""

import asyncio
import gc
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest

METADATA = {
    "name": "m",
    "versions": ["1"],
    "platform": "test",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}


class Asked(NamedTuple):
    """One request as it came."""

    line: str
    fields: dict[str, str]
    body: bytes
    connection: int


class SmallServer:
    """A server over HTTP/1.1 that keeps what it was asked and answers as it is told to."""

    def __init__(self, infer: Callable[..., Awaitable[None]], metadata: bytes) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self.port = 0
        self._infer, self._metadata = infer, metadata
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self, tls: ssl.SSLContext | None) -> None:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(tls), self._loop).result()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def inferences(self) -> list[Asked]:
        return [one for one in self.asked if one.line.startswith("POST")]

    async def _listen(self, tls: ssl.SSLContext | None) -> int:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    def leave(self) -> None:
        """Take no more connections; called from the server's own thread."""
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = dict(line.split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(fields.get("Content-Length", "0")))
                asked = Asked(head[0], fields, body, number)
                self.asked.append(asked)
                if head[0].startswith("GET"):
                    writer.write(self._metadata)
                else:
                    await self._infer(asked, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        async def end() -> None:
            self.leave()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Http:
    """Answers, as bytes."""

    metadata = METADATA

    @staticmethod
    def answer(status: int, body: bytes, **fields: object) -> bytes:
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        lines = [
            f"{name}: {value}" for name, value in ({"Content-Length": len(body)} | names).items()
        ]
        return "\r\n".join([f"HTTP/1.1 {status} Told", *lines, "", ""]).encode() + body

    @classmethod
    def error(cls, status: int, message: str) -> bytes:
        return cls.answer(status, json.dumps({"error": message}).encode())

    @classmethod
    def right(cls, rows: int = 1) -> bytes:
        header = cls.outputs(rows, {"parameters": {"binary_data_size": 12 * rows}})
        return cls.answer(
            200, header + bytes(12 * rows), Inference_Header_Content_Length=len(header)
        )

    @staticmethod
    def outputs(rows: int, more: dict[str, Any]) -> bytes:
        tensor = {"name": "y", "datatype": "FP32", "shape": [rows, 3], **more}
        return json.dumps({"model_name": "m", "outputs": [tensor]}).encode()


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """Let the collection of garbage before each load look only at what these tests make."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def http() -> type[Http]:
    return Http


@pytest.fixture
def serve(http: type[Http]) -> Iterator[Callable[..., SmallServer]]:
    """Start a server that answers every inference with the same bytes, or by a coroutine."""
    servers = []

    def start(
        answer: bytes | Callable[..., Awaitable[None]],
        metadata: bytes | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> SmallServer:
        async def same(asked: Asked, writer: asyncio.StreamWriter) -> None:
            assert isinstance(answer, bytes)
            writer.write(answer)

        described = http.answer(200, json.dumps(METADATA).encode())
        server = SmallServer(
            same if isinstance(answer, bytes) else answer,
            described if metadata is None else metadata,
        )
        server.start(tls)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
