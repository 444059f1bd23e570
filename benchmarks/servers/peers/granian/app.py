"""The same echo on granian, whose HTTP is Rust's, by its own interface."""

from typing import Any

from granian import Granian
from granian.constants import Interfaces
from handed import port


async def app(scope: Any, protocol: Any) -> None:
    """Give back the body as it came."""
    body = await protocol()
    headers = [("content-type", "application/octet-stream"), ("content-length", str(len(body)))]
    protocol.response_bytes(200, headers, body)


if __name__ == "__main__":
    Granian(
        "app:app",
        address="127.0.0.1",
        port=port(),
        interface=Interfaces.RSGI,
        log_enabled=False,
    ).serve()
