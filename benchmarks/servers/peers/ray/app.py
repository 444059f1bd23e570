"""Ray Serve behind its own HTTP proxy: JSON and raw float32."""

import os
import secrets
import signal
import sys
import tempfile
from typing import Any

import numpy as np
import ray
from handed import model, port
from ray import serve
from ray.serve.config import HTTPOptions
from same_model import open_model
from starlette.requests import Request
from starlette.responses import Response

OBJECTS_BYTES = 200 << 20
"""Of its store of objects, that no request here comes into."""


@serve.deployment(max_ongoing_requests=100)  # its default of 5 is less than the 16 clients
class Model:
    """Answers in one replica."""

    def __init__(self) -> None:
        self.answer = open_model()

    async def __call__(self, request: Request) -> Any:
        if request.url.path == "/raw":
            x = np.frombuffer(await request.body(), np.float32)
            return Response(self.answer(x).tobytes(), media_type="application/octet-stream")
        return {"data": self.answer((await request.json())["data"]).reshape(-1).tolist()}


def run(folder: str) -> None:
    """Serve until the process is told to end."""
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECTS_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=port()),
        logging_config={"enable_access_log": False},
    )
    serve.run(Model.bind(), name=model(), route_prefix="/")
    signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else it leaves one in the home folder
    with tempfile.TemporaryDirectory(prefix="ray-") as place:  # short, for its sockets' names
        try:
            run(place)
        finally:
            ray.shutdown()
