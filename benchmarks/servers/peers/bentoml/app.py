"""BentoML: JSON and raw float32."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType
from handed import port
from same_model import open_model

Raw = Annotated[bytes, ContentType("application/octet-stream")]


@bentoml.service(metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Model:
    """Answers in one worker process with one thread, BentoML's default."""

    def __init__(self) -> None:
        self.answer = open_model()

    @bentoml.api(route="/json")
    def json(self, data: list[float]) -> dict[str, Any]:
        return {"data": self.answer(data).reshape(-1).tolist()}

    @bentoml.api(route="/raw")
    def raw(self, data: Raw, /) -> Raw:
        return self.answer(np.frombuffer(data, np.float32)).tobytes()


if __name__ == "__main__":
    command = Path(sys.prefix, "bin", "bentoml")
    here = Path(__file__).parent
    arguments = ("serve", "app:Model", "--host", "127.0.0.1", "--port", str(port()))
    os.execv(command, [str(command), *arguments, "--working-dir", str(here)])
