"""What runtimes raise, as one line that names the operator, the reason and what to try."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hasten.core.raised import REMEDY
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.failures import failed
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import NotCovered
from hasten.inputs.models.onnx import load

BEGIN = """Exception from src/inference/src/cpp/core.cpp:84:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted."""
CONV = """ Failed operations detailed log:
-- Conv-16 with a message:
While validating ONNX node '<Node(Conv): /features/conv>': Check 'data_rank.is_dynamic()' failed at x.hpp:307:
While validating node 'opset1::Convolution Convolution_4 (opset1::Parameter x[0])' with friendly_name 'C':
Data batch channel count (3) does not match filter input channel count (2).

Summary:
-- Conversion is failed for: Conv-16

"""
RESIZE = """ Failed operations detailed log:
-- Resize-13 with a message:
Check '(false)' failed at src/frontends/onnx/frontend/src/op/resize.cpp:76:
While validating ONNX node '<Node(Resize): up>':
weird - this type of interpolation mode is not supported.
-- Pad-13 with a message:
another one

Summary:
"""
UNKNOWN = """
Summary:
-- No conversion rule found for operations: Det-16, com.example.Twice-1
"""
GRU = (
    "Exception from src/core/src/pass/graph_rewrite.cpp:298:\n[ConvertGRUSequenceToTensorIterator] END: "
    "node: opset5::GRUSequence GRUSequence_16075 (opset1::Transpose T[0]:f32[2,5,4]) -> (f32[2,1,5,3]) "
    "CALLBACK HAS THROWN: Unknown activation function: foo\n\n"
)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            BEGIN + CONV,
            "Conv (node '/features/conv'): Data batch channel count (3) does not match filter input channel "
            f"count (2); {REMEDY}",
        ),
        (
            BEGIN + RESIZE,
            "Resize (node 'up'): weird - this type of interpolation mode is not supported; "
            + REMEDY,
        ),
        (BEGIN + UNKNOWN, "No conversion rule found for operations: Det, com.example.Twice"),
        (GRU, "GRUSequence: Unknown activation function: foo"),
        (
            f"{BEGIN}\n-- Conv-16 with a message:\n",
            f"Conv: no reason given; {REMEDY}",
        ),
    ],
)
def test_what_openvino_says_of_an_operator_is_one_line(message: str, said: str) -> None:
    error = failed("OpenVINO can't convert the model", RuntimeError(message))
    assert str(error) == f"OpenVINO can't convert the model: {said}"


# -- names that would write to the terminal

OPERATOR, NODE = "No\x1b[2Jsuch\u202e", "a\x1b]0;pwn\x07"
SHOWN, SHOWN_NODE = r"No\x1b[2Jsuch\u202e", r"a\x1b]0;pwn\x07"
IN_ONNX_RUNTIME = (
    f'This is an invalid model. In Node, ("{SHOWN_NODE}", {SHOWN}, "", -1) : ("x": tensor(float),) -> '
    f'("y": tensor(float),) , Error No Op registered for {SHOWN} with domain_version of 17'
)


def hostile(folder: Path) -> Path:
    """A model that no engine runs, whose names clear the screen, set the title and turn the text around."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy")
    node = helper.make_node(OPERATOR, ["x"], ["y"], name=NODE)
    graph = helper.make_graph([node], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "hostile.onnx")
    return folder / "hostile.onnx"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            OnnxRuntime(),
            f"ONNX Runtime can't load the model: {IN_ONNX_RUNTIME}",
        ),
        (
            OpenVino(),
            "OpenVINO can't convert the model: No conversion rule found for operations: "
            f"{SHOWN}-17 (node '{SHOWN_NODE}')",
        ),
    ],
)
def test_names_in_a_model_are_shown_with_their_control_characters_written_out(
    tmp_path: Path, engine: Engine, said: str
) -> None:
    model = load(hostile(tmp_path)).settled_by({"x": np.zeros(4, np.float32)})
    (tmp_path / "built").mkdir()
    with pytest.raises(NotCovered) as error:
        engine.build(model, Target.host().with_threads(1), tmp_path / "built")
    assert str(error.value) == said


@pytest.mark.seconds
def test_commands_write_no_control_characters_of_a_model_to_the_terminal(tmp_path: Path) -> None:
    program = "from hasten.cli import main; main()"
    command = [sys.executable, "-c", program, "profile", str(hostile(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert IN_ONNX_RUNTIME in done.stderr
    assert re.fullmatch("[ -~\\n]*", done.stdout + done.stderr)
