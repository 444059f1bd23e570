"""What Triton's Python back end runs for `chains.py`: it brings `triton_python_backend_utils` itself."""

import json
import os
import sys

import numpy as np
import triton_python_backend_utils as triton

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # which this interpreter disregards
from chain_parts import by_hand  # noqa: E402

import hasten  # noqa: E402


class TritonPythonModel:
    """Decides on pictures with the bundles of a detector and of a classifier."""

    def initialize(self, args):  # type: ignore[no-untyped-def]
        given = json.loads(args["model_config"])["parameters"]
        given = {name: json.loads(one["string_value"]) for name, one in given.items()}
        self.sizes = given["sizes"]
        self.opened = [
            hasten.load(given[name], cache=False, beside_others=True)
            for name in ("detector", "classifier")
        ]

    def execute(self, requests):  # type: ignore[no-untyped-def]
        return [self._answer(request) for request in requests]

    def _answer(self, request):  # type: ignore[no-untyped-def]
        (data,) = triton.get_input_tensor_by_name(request, "raw").as_numpy()
        decision = json.dumps(by_hand(*self.opened, data, self.sizes)).encode()
        return triton.InferenceResponse([triton.Tensor("decision", np.array([decision], object))])

    def finalize(self):  # type: ignore[no-untyped-def]
        for one in self.opened:
            one.close()
