"""Which plans give the same bits everywhere, and the float ends of a network of bytes by numpy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from tests.support.bundles import built
from tests.support.plans import answers, planned
from tests.support.quantized import quantized

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled.engine import CompiledC, read
from hasten.engines.compiled.integers import Integers
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.choices import Largest, Pick
from hasten.engines.compiled.operators.maps import Map
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.operators.reductions import Reduce
from hasten.engines.compiled.plan import Operation
from hasten.engines.compiled.tensors import Access, Tensor
from hasten.errors import CandidateError, IntegrityError

_ENDS = {
    "plain": ("y = Gemm <transB = 1> (f, w, b)", "float[1, 7] y", True),
    "argmax": ("s = Gemm <transB = 1> (f, w, b) y = ArgMax <axis = 1> (s)", "int64[1, 1] y", True),
    "five best": (
        "s = Gemm <transB = 1> (f, w, b) n, y = TopK <axis = 1> (s, five)",
        "int64[1, 5] y",
        True,
    ),
    "softmax": ("s = Gemm <transB = 1> (f, w, b) y = Softmax (s)", "float[1, 7] y", False),
    "sigmoid and mean": (
        "s = Gemm <transB = 1> (f, w, b) g = Exp (s) y = ReduceMean <axes = [1]> (g)",
        "float[1, 1] y",
        False,
    ),
    "log softmax": ("s = Gemm <transB = 1> (f, w, b) y = LogSoftmax (s)", "float[1, 7] y", False),
}
_FLOATS = {"softmax": ["y"], "sigmoid and mean": ["g", "y"], "log softmax": ["y"]}


def _network(end: str) -> onnx.ModelProto:
    nodes, output, _ = _ENDS[end]
    text = f"""
        <ir_version: 8, opset_import: ["": 17]>
        ended (float[1, 3, 8, 6] x) => ({output}) <int64[1] five = {{5}}> {{
            c = Conv <pads = [1, 1, 1, 1]> (x, v)
            r = Relu (c)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            {nodes}
        }}"""
    shapes = {"v": (9, 3, 3, 3), "w": (7, 9), "b": (7,)}
    return quantized(text, shapes, floats=_FLOATS.get(end, ()))


@pytest.mark.parametrize("end", _ENDS)
def test_numpy_answers_as_the_c_bit_for_bit_or_near_it_where_a_network_ends_in_floats(
    end: str, tmp_path: Path
) -> None:
    onnx.save(_network(end), tmp_path / "ended.onnx")
    artifact = built(tmp_path, tmp_path / "ended.onnx", Integers()).artifact
    x = np.random.default_rng(3).standard_normal((1, 3, 8, 6)).astype(np.float32)
    found = {}
    for engine in (CompiledC(), Integers()):
        with engine.open(artifact, Target.host()) as session:
            found[engine] = session.run({"x": x})["y"]
    fast, slow = found.values()
    assert fast.dtype == slow.dtype
    assert fast.shape == slow.shape
    alike = _ENDS[end][2]
    assert CompiledC().same_everywhere(artifact) is alike
    if alike:
        assert fast.tobytes() == slow.tobytes()
    np.testing.assert_allclose(fast, slow, rtol=1e-5)


def test_a_step_of_floats_that_numpy_has_no_form_of_is_named(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> m (float[1, 4] x) => (float[1, 4] y) { y = MatMul (x, w) }'
    model = parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CandidateError, match=r"^a step calculates with floats \(dense\), and this"):
        built(tmp_path, tmp_path / "m.onnx", Integers())


def _answered(
    operations: Sequence[Operation],
    tensors: Mapping[str, Array],
    made: Mapping[str, tuple[str, int]],
) -> None:
    """Assert that the C of each operation gives the bits that numpy does, if it says so, or near ones."""
    plan, weights = planned(operations, {}, tensors, made)
    found = answers(plan, weights, {name: array[np.newaxis] for name, array in tensors.items()})
    for operation in operations:
        slow = dict(tensors)
        slow |= {name: np.zeros(size, dtype) for name, (dtype, size) in made.items()}
        operation.calculate(slow)
        for name in operation.writes:
            assert slow[name].dtype == made[name][0]
            if operation.same_bits(plan):
                assert found[name].tobytes() == slow[name].tobytes(), (operation, name)
            else:
                np.testing.assert_allclose(
                    found[name].ravel(), slow[name], 2e-5, 1e-6, err_msg=str(operation)
                )


_NUMBERS = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, -2.5, 7.0, np.nan, np.inf]), min_size=12, max_size=12
)


@settings(max_examples=8)
@given(numbers=_NUMBERS, smallest=st.booleans(), count=st.integers(1, 6))
def test_places_among_numbers_of_any_kind_are_those_of_the_c(
    numbers: list[float], smallest: bool, count: int
) -> None:
    kind: Any = "argmin" if smallest else "argmax"
    operations = (
        Largest("x", "v", "p", 2, 6, count, smallest),
        Reduce(kind, Access("x", (6, 1)), "y", (2,), (6,)),
    )
    made = {"v": ("float32", 2 * count), "p": ("int64", 2 * count), "y": ("int64", 2)}
    _answered(operations, {"x": np.array(numbers, np.float32)}, made)


def test_a_pick_is_that_of_the_c() -> None:
    x = np.arange(12, dtype=np.float32)
    places = np.array([0, -1, 3, -4, 2], np.int64)
    pick = Pick(Access("x", (0, 1)), Access("p", (1, 0)), "y", (5, 3), 4, 3)
    _answered([pick], {"x": x, "p": places}, {"y": ("float32", 15)})


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_reduction_is_near_that_of_the_c(dtype: str) -> None:
    x = (np.random.default_rng(0).standard_normal(24) * 5).astype(dtype)
    kinds: list[Any] = ["sum", "product", "maximum", "minimum"]
    kinds += ["mean"] if dtype == "float32" else []
    operations = [Reduce(kind, Access("x", (1, 6, 2)), kind, (2,), (4, 3)) for kind in kinds]
    _answered(operations, {"x": x}, dict.fromkeys(kinds, (dtype, 2)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool"])
def test_each_step_of_a_program_is_near_that_of_the_c(dtype: str) -> None:
    drawn = np.random.default_rng(5).standard_normal((3, 16)) * 20
    drawn[2] = np.abs(drawn[2]) / 20  # for the domains of logarithms, roots and powers
    x0, x1, x2 = (np.abs(drawn) if dtype == "uint8" else drawn).astype(dtype)
    if x1.dtype.kind in "iu":
        x1[x1 == 0] = 1  # a division by 0 is refused
    operations, made = [], {}
    for op in sorted(programs.SUPPORTED - {"cast", "where", "value"}):
        places = (2, 2) if op in ("log", "sqrt", "power") else (0, 1)
        for count, result in ((1, dtype), (2, dtype), (1, "bool"), (2, "bool")):
            step = Step(op, tuple(range(count)), result)
            with contextlib.suppress(IntegrityError):
                programs.check((step,), (dtype,) * count)
                inputs = tuple(Access(f"x{at}", (1,)) for at in places[:count])
                operations.append(Map((step,), inputs, Access(op, (1,)), (16,)))
                made[op] = (result, 16)
                break
    assert len(operations) > 5
    _answered(operations, {"x0": x0, "x1": x1, "x2": x2}, made)


_WIDE = (Step("cast", (0,), "int32"), Step("value", (), "int32", "128"))


@pytest.mark.parametrize(
    ("steps", "dtypes", "alike"),
    [
        ((*_WIDE, Step("subtract", (1, 2), "int32"), Step("cast", (3,), "int8")), ["uint8"], True),
        ((*_WIDE, Step("add", (1, 2), "int32"), Step("cast", (3,), "int8")), ["uint8"], False),
        ((Step("add", (0, 1), "int32"),), ["int32", "int32"], False),
        ((Step("copy", (0,), "float32"),), ["float32"], True),
        ((Step("maximum", (0, 1), "float32"),), ["float32", "float32"], True),
        ((Step("multiply", (0, 1), "float32"),), ["float32", "float32"], False),
        (
            (Step("less", (0, 1), "bool"), Step("where", (2, 0, 1), "float32")),
            ["float32"] * 2,
            True,
        ),
        ((Step("cast", (0,), "float32"),), ["uint8"], True),
        ((Step("cast", (0,), "float32"),), ["int32"], False),
        ((Step("cast", (0,), "int32"),), ["float32"], False),
        ((Step("cast", (0,), "bool"),), ["uint8"], True),
    ],
)
def test_a_program_is_the_same_bits_everywhere_if_it_only_moves_compares_or_counts_within_range(
    steps: tuple[Step, ...], dtypes: list[str], alike: bool
) -> None:
    programs.check(steps, tuple(dtypes))
    assert programs.same_bits(steps, tuple(dtypes)) is alike


def test_a_plan_with_one_step_of_floats_is_not_the_same_everywhere(tmp_path: Path) -> None:
    onnx.save(_network("plain"), tmp_path / "ended.onnx")
    artifact = built(tmp_path, tmp_path / "ended.onnx", CompiledC()).artifact
    plan, _ = read(artifact)
    assert plan.same_bits
    tensors = {**plan.tensors, "more": Tensor("float32", 7)}
    double = Map(
        (Step("add", (0, 0), "float32"),),
        (Access(plan.outputs[0], (1,)),),
        Access("more", (1,)),
        (7,),
    )
    spliced = replace(plan, tensors=tensors, operations=(*plan.operations, double))
    spliced.write(artifact.path)
    assert not CompiledC().same_everywhere(artifact)
    artifact.path.write_bytes(b"{}")
    assert not CompiledC().same_everywhere(artifact)
