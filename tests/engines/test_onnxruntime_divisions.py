"""Divisions of whole numbers on ONNX Runtime: no request ends the process, and all quotients stay the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.divisions import guard_divisions
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load

KINDS = {"int32": TensorProto.INT32, "int64": TensorProto.INT64}
CASES = [
    *("both", "constant divisor", "constant dividend", "branch", "loop", "function"),
    *("the other name of the domain", "in any order"),
]


def written(case: str, kind: str, path: Path) -> Path:
    """Write a model that divides whole numbers of a request, and return its path."""
    number, smallest = KINDS[kind], int(np.iinfo(kind).min)
    a, b, y = (helper.make_tensor_value_info(name, number, ["n"]) for name in "aby")
    inputs = {"constant divisor": [a], "constant dividend": [b]}.get(case, [a, b])
    constants = {
        "constant divisor": [numpy_helper.from_array(np.array([-1], kind), "b")],
        "constant dividend": [numpy_helper.from_array(np.array([smallest], kind), "a")],
    }.get(case, [])
    divide = helper.make_node("Div", ["a", "b"], ["y"])
    nodes, functions, sets = [divide], list[onnx.FunctionProto](), [helper.make_opsetid("", 17)]
    if case == "branch":
        inner = helper.make_node("Div", ["a", "b"], ["q"])
        result = helper.make_tensor_value_info("q", number, ["n"])
        other = helper.make_node("Identity", ["a"], ["p"])
        kept = helper.make_tensor_value_info("p", number, ["n"])
        nodes = [
            helper.make_node("Cast", ["first"], ["holds"], to=TensorProto.BOOL),
            helper.make_node(
                "If",
                ["holds"],
                ["y"],
                then_branch=helper.make_graph([inner], "then", [], [result]),
                else_branch=helper.make_graph([other], "else", [], [kept]),
            ),
        ]
        constants = [numpy_helper.from_array(np.array(1, "int64"), "first")]
    if case == "loop":
        states = [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", number, ["n"]),
        ]
        steps = [
            helper.make_node("Div", ["state", "b"], ["q"]),
            helper.make_node("Identity", ["goes_on"], ["still"]),
        ]
        results = [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("q", number, ["n"]),
        ]
        body = helper.make_graph(steps, "body", states, results)
        nodes = [helper.make_node("Loop", ["times", "", "a"], ["y"], body=body)]
        constants = [numpy_helper.from_array(np.array(1, "int64"), "times")]
    if case == "the other name of the domain":
        divide.domain = "ai.onnx"
    if case == "in any order":
        nodes = [
            helper.make_node("Div", ["c", "d"], ["y"]),
            *(helper.make_node("Identity", [one], [other]) for one, other in ("ac", "bd")),
        ]
    if case == "function":
        functions = [helper.make_function("own", "Quotient", ["a", "b"], ["y"], [divide], sets)]
        nodes = [helper.make_node("Quotient", ["a", "b"], ["y"], domain="own")]
        sets = [*sets, helper.make_opsetid("own", 1)]
    graph = helper.make_graph(nodes, "graph", inputs, [y], constants)
    model = helper.make_model(graph, opset_imports=sets, functions=functions, ir_version=9)
    if case not in CASES[-2:]:  # ONNX Runtime takes these nevertheless
        onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def request(case: str, a: Array, b: Array) -> dict[str, Array]:
    return {"constant divisor": {"a": a}, "constant dividend": {"b": b}}.get(case, {"a": a, "b": b})


def answer(path: Path, inputs: dict[str, Array], folder: Path) -> Any:
    folder.mkdir()
    engine, target = OnnxRuntime(threads=1), Target.host()
    with engine.open(engine.build(load(path), target, folder), target) as session:
        return session.run(inputs)["y"]


def quotient(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded towards 0."""
    size = abs(dividend) // abs(divisor)
    return size if (dividend < 0) == (divisor < 0) else -size


def attack(folder: Path) -> None:
    """Divide the smallest numbers by -1, and say how far that came."""
    for kind in KINDS:
        for case in CASES:
            sys.stdout.write(f"{kind}, {case}\n")
            sys.stdout.flush()
            name = f"{kind}-{case.replace(' ', '-')}"
            path = written(case, kind, folder / f"{name}.onnx")
            smallest = np.full(3, np.iinfo(kind).min, kind)
            asked = request(case, smallest, np.full(3, -1, kind))
            assert (answer(path, asked, folder / name) == smallest).all()


def test_no_request_ends_the_process_by_a_division(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from tests.engines.test_onnxruntime_divisions import attack; attack(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, f"ended by {run.returncode} at {run.stdout.splitlines()[-1:]}"
    assert len(run.stdout.splitlines()) == len(KINDS) * len(CASES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_quotients_of_other_numbers_stay_as_they_are(case: str, kind: str, tmp_path: Path) -> None:
    edges, numbers = np.iinfo(kind), np.random.default_rng(0)
    a = numbers.integers(edges.min, edges.max, 500, kind, endpoint=True)
    b = numbers.choice(np.array([-1, 1, 2, -3, 7, edges.max, edges.min], kind), 500)
    if case == "constant divisor":
        b = np.full(500, -1, kind)
    if case == "constant dividend":
        a, b = np.full(500, edges.min, kind), np.where(b == -1, 5, b).astype(kind)
    a = np.where((a == edges.min) & (b == -1), 0, a).astype(kind)
    wanted = [quotient(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    path = written(case, kind, tmp_path / "model.onnx")
    assert answer(path, request(case, a, b), tmp_path / "built").tolist() == wanted


def test_a_file_that_was_rewritten_is_built_again(tmp_path: Path) -> None:
    model, engine, target = (
        load(written("both", "int64", tmp_path / "a.onnx")),
        OnnxRuntime(),
        Target.host(),
    )
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        artifact = engine.build(model, target, tmp_path / folder)
        model = load(artifact.path)
    with engine.open(artifact, target) as session:
        found = session.run({"a": np.array([7, -9]), "b": np.array([-1, 4])})
    assert found["y"].tolist() == [-7, -2]


def test_a_divisor_of_zero_is_still_refused(tmp_path: Path) -> None:
    path = written("both", "int64", tmp_path / "model.onnx")
    a, b = np.array([1], "int64"), np.array([0], "int64")
    with pytest.raises(CandidateError, match="zero"):
        answer(path, {"a": a, "b": b}, tmp_path / "built")


def test_divisions_that_no_request_can_harm_stay_as_they_are(tmp_path: Path) -> None:
    a = helper.make_tensor_value_info("a", TensorProto.INT64, ["n"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    small = helper.make_tensor_value_info("small", TensorProto.INT8, ["n"])
    nodes = [
        helper.make_node("Div", ["a", "two"], ["half"]),
        helper.make_node("Shape", ["a"], ["size"]),
        helper.make_node("Div", ["size", "minus one"], ["negative"]),
        helper.make_node("Div", ["three", "a"], ["part"]),
        helper.make_node("Div", ["x", "x"], ["ratio"]),
        helper.make_node("Div", ["small", "small"], ["other"]),
    ]
    outputs = [
        *(helper.make_tensor_value_info(n, TensorProto.INT64, None) for n in ("half", "part")),
        helper.make_tensor_value_info("negative", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("ratio", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("other", TensorProto.INT8, ["n"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([number], "int64"), name)
        for name, number in (("two", 2), ("three", 3), ("minus one", -1))
    ]
    graph = helper.make_graph(nodes, "graph", [a, x, small], outputs, constants)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    before = path.read_bytes()
    assert guard_divisions(path, ["a", "x", "small"]) == 0
    assert path.read_bytes() == before


def test_an_input_with_a_default_may_be_a_divisor_of_a_request(tmp_path: Path) -> None:
    path = written("constant divisor", "int64", tmp_path / "model.onnx")
    proto = onnx.load(str(path))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([2], "int64"), "b"))
    onnx.save(proto, str(path))
    assert guard_divisions(path, ["a"]) == 0
    assert guard_divisions(path, ["a", "b"]) == 1
