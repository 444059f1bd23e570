"""Conversion of TensorFlow's models by tf2onnx, and TFLite's own answers, in the process that hasten starts for a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError, named
from hasten.inputs.models.apart import Stated

_MOST_LETTERS = 1 << 16
"""Largest number of letters of what tf2onnx says, from its end."""


def convert(flag: str, path: Path, opset: int, out: Path) -> dict[str, Any]:
    """Convert a model to ONNX.

    Args:
        flag: Option of tf2onnx for a model of this kind.
        path: The model.
        opset: Version of the operators.
        out: File to write.

    Returns:
        Exit code of tf2onnx, and the end of what it said.
    """
    words = [sys.executable, "-P", "-m", "tf2onnx.convert", flag, str(path)]
    done = subprocess.run(
        [*words, "--output", str(out), "--opset", str(opset)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return {"code": done.returncode, "said": done.stderr[-_MOST_LETTERS:]}


def answer(path: Path, given: Sequence[str], wanted: Sequence[str], arrays: Path) -> Stated:
    """Open a TFLite file in LiteRT, or in TensorFlow where that is missing, and answer a request if there is one.

    LiteRT checks neither the settings of custom operators nor all that its operators are given, so it may crash.

    Args:
        path: The file.
        given: Names of the inputs in the request.
        wanted: Names of the outputs that are wanted; none for no request.
        arrays: File of the request's arrays, one after another; the answers take their place.

    Returns:
        Inputs and outputs, by the names that the file has.

    Raises:
        InputError: the file can't be read, or can't answer; the message says only why.
    """
    interpreter_of = _interpreter_of()
    try:
        interpreter = interpreter_of(str(path))
        details = interpreter.get_input_details()
        if wanted:
            _answer(interpreter, details, given, wanted, arrays)
        outputs = interpreter.get_output_details()
        names = tuple(entry["name"] for entry in details)
        return Stated(names, *(tuple(map(_described, each)) for each in (details, outputs)))
    except Exception as error:  # LiteRT raises several kinds
        raise InputError(named(error)[:300]) from error


def _interpreter_of() -> Any:
    """Return the class that opens TFLite files.

    Raises:
        InputError: it can't be imported.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            import tensorflow
        except ImportError as error:
            raise InputError("LiteRT can't be imported") from error
        return tensorflow.lite.Interpreter
    return Interpreter


def _answer(
    interpreter: Any, details: Any, given: Sequence[str], wanted: Sequence[str], arrays: Path
) -> None:
    with arrays.open("rb") as file:
        request: dict[str, Array] = {name: np.load(file) for name in given}
    for entry in details:
        interpreter.resize_tensor_input(entry["index"], request[entry["name"]].shape)
    interpreter.allocate_tensors()
    for entry in details:
        interpreter.set_tensor(entry["index"], request[entry["name"]])
    interpreter.invoke()
    index = {entry["name"]: entry["index"] for entry in interpreter.get_output_details()}
    with arrays.open("wb") as file:
        for name in wanted:
            np.save(file, interpreter.get_tensor(index[name]), allow_pickle=False)


def _described(entry: Any) -> TensorSpec:
    sizes = (
        size if size >= 0 else "batch" if axis == 0 else f"axis_{axis}"
        for axis, size in enumerate(entry["shape_signature"].tolist())
    )
    return TensorSpec(entry["name"], np.dtype(entry["dtype"]).name, tuple(sizes))
