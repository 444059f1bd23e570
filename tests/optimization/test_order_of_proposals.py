"""What is proposed first, word for word: a registry that changes its order must show here."""

from dataclasses import replace

import pytest
from tests.support.desk import Desk

from hasten.core.devices import FAMILIES, find_target
from hasten.core.records import to_record, type_name
from hasten.core.target import Target
from hasten.measure.candidate import Single
from hasten.optimization.grid import grid, variations

ISA = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16")
INT8_OF_THE_HOST = ["static_quantization", "nncf_quantization", "litert_quantization"]
LOSSY = {
    "cuda": [*INT8_OF_THE_HOST[1:], "tensorrt_quantization", "half_precision"],
    "tpu": [*INT8_OF_THE_HOST, "dynamic_quantization"],
    "fpga": [*INT8_OF_THE_HOST, "dynamic_quantization"],
    "npu": ["static_quantization", "nncf_quantization"],
    "igpu": ["static_quantization", "nncf_quantization"],
    "qnn": ["qnn_quantization"],
    "litert": ["litert_quantization"],
    "coreml": [],
}
"""Family -> the passes that are tried on an engine that takes whatever they make."""


def named(candidate: Single) -> str:
    """The registered names of a candidate's passes and engine; bf16 beside the engine's."""
    precision = to_record(candidate.engine).get("precision", "f32")
    engine = type_name(candidate.engine) + ("" if precision == "f32" else f" in {precision}")
    return " + ".join([*map(type_name, candidate.passes), engine])


@pytest.fixture
def host() -> Target:
    return replace(Target.host(), cpus=(0, 1), threads=2, isa=ISA)


def test_on_this_host_the_grid_is_in_its_usual_order(desk: Desk, host: Target) -> None:
    engines = ["onnxruntime", "openvino", "litert"]
    assert [named(one) for one in grid(desk.model, host, engine_names=engines)] == [
        "onnxruntime",
        "openvino",
        "litert",
        "openvino in bf16",
        "simplify + onnxruntime",
        "simplify + openvino",
        "simplify + litert",
        "onnxruntime_settled",
        "static_quantization + onnxruntime",
        "static_quantization + openvino",
        "static_quantization + openvino in bf16",
        "nncf_quantization + openvino",
        "nncf_quantization + openvino in bf16",
        "litert_quantization + litert",
        "dynamic_quantization + onnxruntime",
        "dynamic_quantization + openvino",
        "dynamic_quantization + openvino in bf16",
    ]


def test_further_variants_take_turns_in_the_passes_order(desk: Desk, host: Target) -> None:
    engines = ["onnxruntime", "openvino", "litert"]
    first = grid(desk.model, host, engine_names=engines)
    assert [type_name(one.passes[-1]) for one in variations(first, desk.model, host)][:6] == [
        "static_quantization",
        "nncf_quantization",
        "litert_quantization",
        "dynamic_quantization",
        "static_quantization",
        "nncf_quantization",
    ]


def test_every_family_of_devices_is_offered_the_passes_that_suit_it(desk: Desk) -> None:
    assert LOSSY.keys() == FAMILIES.keys()
    for name, passes in LOSSY.items():
        proposed = grid(desk.model, find_target(name), engine_names=["null"])
        assert [type_name(one.passes[0]) for one in proposed[1:]] == passes
