"""The engines as they come: no setting given. What `speedups.py` compares a bundle with.

The environment variable UNTUNED_MODEL names the ONNX file.
"""

from __future__ import annotations

import functools
import os
from typing import Any


@functools.cache
def _onnxruntime() -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(os.environ["UNTUNED_MODEL"])


def onnxruntime(*inputs: Any) -> Any:
    """Answer by ONNX Runtime's defaults."""
    session = _onnxruntime()
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


@functools.cache
def _openvino() -> Any:
    import openvino

    return openvino.compile_model(os.environ["UNTUNED_MODEL"], "CPU").create_infer_request()


def openvino(*inputs: Any) -> Any:
    """Answer by OpenVINO's defaults: where the processor has bf16, they compute in it."""
    return [array.copy() for array in _openvino().infer(list(inputs)).values()]
