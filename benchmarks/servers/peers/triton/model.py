"""What Triton's Python back end runs: it brings `triton_python_backend_utils` itself."""

import json
import os
import sys

import triton_python_backend_utils as triton

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # which this interpreter disregards
from same_model import open_model  # noqa: E402


class TritonPythonModel:
    """Answers with the bundle's model."""

    def initialize(self, args):  # type: ignore[no-untyped-def]
        config = json.loads(args["model_config"])
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        self.answer = open_model()

    def execute(self, requests):  # type: ignore[no-untyped-def]
        return [self._answer(request) for request in requests]

    def _answer(self, request):  # type: ignore[no-untyped-def]
        x = triton.get_input_tensor_by_name(request, self.input).as_numpy()
        return triton.InferenceResponse([triton.Tensor(self.output, self.answer(x))])
