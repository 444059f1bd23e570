"""What somebody types without hasten: the engines as they come, and each toolkit's int8 by its defaults.

`prepare` writes the files; the functions named as the rivals answer from them in processes of their
own, where the environment variable RIVALS names the folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = "RIVALS"
MODEL, STATIC, NNCF = "model.onnx", "static-int8.onnx", "nncf-int8.xml"


def static_int8(model: Path, requests: Iterable[dict[str, Any]], out: Path) -> None:
    """Quantize by ONNX Runtime's defaults: the preparation that it recommends, then `quantize_static`."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(requests)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    prepared = out.with_name(f"prepared-{out.name}")
    try:
        with contextlib.chdir(out.parent):  # where it gives up, it leaves a file behind
            quant_pre_process(str(model), str(prepared))
    except Exception:  # its symbolic shapes don't know some operators
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(str(prepared), str(out), Reader())


def nncf_int8(model: Path, requests: Iterable[dict[str, Any]], out: Path) -> None:
    """Quantize by NNCF's defaults, on 300 samples at most."""
    import nncf
    import openvino

    quantized = nncf.quantize(openvino.convert_model(str(model)), nncf.Dataset(requests))
    openvino.save_model(quantized, str(out))


@functools.cache
def _session() -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(Path(os.environ[FOLDER], MODEL))


def onnxruntime(*inputs: Any) -> Any:
    """Answer by ONNX Runtime, no setting given."""
    names = [value.name for value in _session().get_inputs()]
    return _session().run(None, dict(zip(names, inputs, strict=True)))


@functools.cache
def _request(file: str) -> Any:
    import openvino

    return openvino.compile_model(Path(os.environ[FOLDER], file), "CPU").create_infer_request()


def _inferred(file: str, inputs: tuple[Any, ...]) -> Any:
    return [array.copy() for array in _request(file).infer(list(inputs)).values()]


def openvino(*inputs: Any) -> Any:
    """Answer by OpenVINO, no setting given: where the processor has bf16, it computes in that."""
    return _inferred(MODEL, inputs)


def openvino_int8(*inputs: Any) -> Any:
    """Answer by OpenVINO from NNCF's int8, no setting given."""
    return _inferred(NNCF, inputs)
