"""The floor: uvicorn with its fastest parts, and an echo, the least that an application can do.

A number as the path says how many bytes of the body go back, as many as a model would answer.
"""

from typing import Any

import uvicorn
from handed import port

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/octet-stream")],
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Give back the body's first bytes."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)[: int(scope["path"][1:])]
    length = (b"content-length", b"%d" % len(body))
    await send({**_START, "headers": [*_START["headers"], length]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port(),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=600,  # a client that stands still keeps its connections
    )
