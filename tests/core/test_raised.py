"""What libraries raise, as people read it."""

from typing import Any

import pytest
from onnx import helper

from hasten.core.raised import REMEDY, raised

CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="first")
UNNAMED = helper.make_node("Conv", ["x", "w"], ["y"])


class Quantizer:
    """As ONNX Runtime's quantizer keeps the node that it works on."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def quantize(self) -> None:
        [].pop()


def of_a_library(node: Any, error: Exception) -> None:
    inner(error)


def inner(error: Exception) -> None:
    raise error


def said(call: Any, *given: Any) -> str:
    with pytest.raises(Exception) as caught:
        call(*given)
    return raised(caught.value)


def test_a_bare_error_is_told_with_its_operator_and_what_to_try() -> None:
    assert said(Quantizer(CONV).quantize) == (
        f"it stopped at Conv (node 'first') (IndexError: pop from empty list); {REMEDY}"
    )
    assert said(of_a_library, UNNAMED, KeyError("w")) == (
        f"it stopped at Conv (the node that gives 'y') (KeyError: 'w'); {REMEDY}"
    )


def test_a_bare_error_without_an_operator_is_told_with_its_place() -> None:
    line = inner.__code__.co_firstlineno + 1
    assert said(inner, AssertionError()) == (
        f"it stopped in test_raised.py:{line} (AssertionError); {REMEDY}"
    )


def test_a_meant_error_keeps_its_first_line_and_gains_its_operator() -> None:
    assert said(inner, ValueError("no scale\nand more")) == "no scale"
    assert said(of_a_library, CONV, ValueError("no scale")) == "at Conv (node 'first'): no scale"
    assert said(of_a_library, CONV, ValueError("Conv has no scale")) == "Conv has no scale"
    assert len(said(inner, ValueError("x" * 1000))) == 300


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. Name:'' Status "
            "Message: /onnxruntime_src/onnxruntime/core/providers/cpu/math/element_wise_ops.h:583 void "
            "onnxruntime::BroadcastIterator::Append(ptrdiff_t, ptrdiff_t) axis == 1 was false. 2 by 4",
            "Non-zero status code returned while running Add node. Name:'' Status Message: axis == 1 was false. 2 by 4",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 "
            "onnxruntime::(anonymous namespace)::read<std::pair<int(*)(), T> >(const onnx::ModelProto&&) const "
            "[with T = int] it is (wrong)",
            "it is (wrong)",
        ),
        (
            "D:\\a\\s\\onnxruntime\\core\\graph\\model.cc:12 onnxruntime::Read::operator()() no",
            "no",
        ),
        ("/onnxruntime_src/core/x.cc:1 cut(off", "cut(off"),
    ],
)
def test_places_in_a_runtimes_source_are_left_out(message: str, line: str) -> None:
    assert raised(RuntimeError(message)) == line
