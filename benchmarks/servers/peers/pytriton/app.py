"""pytriton: Triton in front of a function that stays in this process."""

import os
import sysconfig

import numpy as np
from handed import bundle, folder, model, port
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from same_model import open_model

import hasten.bundle

if __name__ == "__main__":
    # Triton's stub must find this Python's library, not the system's.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    artifact = hasten.bundle.read(bundle()).winner.artifact
    (spec,) = artifact.request
    answer, output = open_model(), artifact.outputs[0].name

    def infer(requests):  # type: ignore[no-untyped-def]
        return [{output: answer(request[spec.name])} for request in requests]

    config = TritonConfig(
        http_address="127.0.0.1", http_port=port(), allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config, workspace=folder() / "workspace") as server:
        server.bind(
            model_name=model(),
            infer_func=infer,
            inputs=[Tensor(name=spec.name, dtype=np.float32, shape=spec.sizes)],
            outputs=[Tensor(name=output, dtype=np.float32, shape=(-1, -1))],
            config=ModelConfig(batching=False),
        )
        server.serve()
