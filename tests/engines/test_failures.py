"""What runtimes raise, as one line that names the operator, the reason and what to try."""

import pytest

from hasten.core.raised import REMEDY
from hasten.engines.failures import failed

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
