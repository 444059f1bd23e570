"""What Triton's Python back end runs: each output is the input of the same place."""

import json

import triton_python_backend_utils as triton  # type: ignore[import-not-found]


class TritonPythonModel:
    """Answers with what it is asked."""

    def initialize(self, args):  # type: ignore[no-untyped-def]
        config = json.loads(args["model_config"])
        self.names = [
            (came["name"], goes["name"])
            for came, goes in zip(config["input"], config["output"], strict=True)
        ]

    def execute(self, requests):  # type: ignore[no-untyped-def]
        return [self._answer(request) for request in requests]  # type: ignore[no-untyped-call]

    def _answer(self, request):  # type: ignore[no-untyped-def]
        return triton.InferenceResponse(
            [
                triton.Tensor(goes, triton.get_input_tensor_by_name(request, came).as_numpy())
                for came, goes in self.names
            ]
        )
