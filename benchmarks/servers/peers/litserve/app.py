"""LitServe: JSON and, as a file in a form, raw float32."""

from typing import Any

import litserve
import numpy as np
from handed import port
from same_model import open_model
from starlette.responses import Response


class Model(litserve.LitAPI):
    """Answers in one worker process, LitServe's default."""

    def setup(self, device: str) -> None:
        self.answer = open_model()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        if "file" in request:
            return np.frombuffer(request["file"].file.read(), np.float32), True
        return request["data"], False

    def predict(self, x: Any) -> Any:
        data, raw = x
        return self.answer(data), raw

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        array, raw = output
        if raw:
            return Response(array.tobytes(), media_type="application/octet-stream")
        return {"data": array.reshape(-1).tolist()}


if __name__ == "__main__":
    # ZeroMQ between its processes is what LitServe advises from 100 requests per second on.
    litserve.LitServer(Model(), accelerator="cpu", fast_queue=True).run(
        host="127.0.0.1",
        port=port(),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
