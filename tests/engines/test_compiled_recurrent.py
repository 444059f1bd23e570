"""Recurrent layers as C, against ONNX Runtime's and PyTorch's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.plan import Plan
from hasten.errors import CandidateError, IntegrityError
from hasten.inputs.models.onnx import load

TARGET = Target.host().with_threads(1)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}


@dataclass(frozen=True)
class Layer:
    """One recurrent node, and how its states come to it."""

    op: str
    steps: int
    rows: int
    features: int
    hidden: int
    direction: str = "forward"
    layout: int = 0
    state: str = "none"
    bias: bool = True
    peepholes: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = (0, 1)
    dtype: str = "float32"
    lengths: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def add(self, graph: Graph, number: int) -> None:
        """Add the node to a graph, with its inputs and outputs."""
        rng = np.random.default_rng(number)
        gates, count, hidden = GATES[self.op], self.directions, self.hidden

        def drawn(*shape: int) -> Array:
            wide = rng.standard_normal(shape) / max(1, shape[-1]) ** 0.5
            return np.asarray(wide, self.dtype)

        x = (self.steps, self.rows, self.features)
        states = (count, self.rows, hidden)
        names = [graph.given(f"x{number}", drawn(*x), self.layout)]
        names.append(graph.constant(drawn(count, gates * hidden, self.features)))
        names.append(graph.constant(drawn(count, gates * hidden, hidden)))
        names.append(graph.constant(drawn(count, 2 * gates * hidden)) if self.bias else "")
        lengths = np.full(self.rows, self.steps, np.int32)
        names.append(graph.constant(lengths) if self.lengths else "")
        for one in range(2 if self.op == "LSTM" else 1):
            names.append(graph.state(self.state, f"s{number}_{one}", drawn(*states), self.layout))
        if self.peepholes:
            names.append(graph.constant(drawn(count, 3 * hidden)))
        while not names[-1]:
            names.pop()
        made = [f"y{number}_{at}" if at in self.outputs else "" for at in range(3)]
        made = made[: 3 if self.op == "LSTM" else 2]
        attributes = {"direction": self.direction, "hidden_size": hidden, **self.attributes}
        if self.layout and not graph.standard:
            attributes["layout"] = 1
        graph.nodes.append(helper.make_node(self.op, names, made, **attributes))
        for at in self.outputs:
            graph.take(made[at], self.dtype, self.layout, at)


@dataclass
class Graph:
    """Graph of many nodes; `standard` writes what ONNX Runtime takes: layout 0 and float32."""

    standard: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    request: dict[str, Array] = field(default_factory=dict)
    orders: list[tuple[int, ...] | None] = field(default_factory=list)

    def given(self, name: str, array: Array, layout: int) -> str:
        """Add an input of the model."""
        array = self._fitted(array)
        if layout and not self.standard:
            array = np.ascontiguousarray(array.swapaxes(0, 1))
        self.request[name] = array
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        return name

    def constant(self, array: Array) -> str:
        """Add a constant."""
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(self._fitted(array), name))
        return name

    def state(self, kind: str, name: str, array: Array, layout: int) -> str:
        """Add a first state: given, computed, constant, zeros, or none."""
        if kind == "none":
            return ""
        if kind == "given":
            return self.given(name, array, layout)
        if kind == "computed":
            self.nodes.append(
                helper.make_node("Tanh", [self.given(name, array, layout)], ["t" + name])
            )
            return "t" + name
        array = array * 0 if kind == "zeros" else array
        return self.constant(array if self.standard or not layout else array.swapaxes(0, 1).copy())

    def take(self, name: str, dtype: str, layout: int, place: int) -> None:
        """Add an output of the model."""
        kind = TensorProto.FLOAT if dtype == "float32" or self.standard else TensorProto.DOUBLE
        self.outputs.append(
            helper.make_tensor_value_info(name, kind, [None] * (4 if place == 0 else 3))
        )
        order = (2, 0, 1, 3) if place == 0 else (1, 0, 2)
        self.orders.append(order if layout else None)

    def _fitted(self, array: Array) -> Array:
        return array.astype(np.float32) if self.standard and array.dtype == np.float64 else array

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        graph = helper.make_graph(
            self.nodes, "layers", self.inputs, self.outputs, self.initializers
        )
        opsets = [helper.make_opsetid("", 18)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def answers(layers: list[Layer], folder: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the answers of a model of some layers: ONNX Runtime's, and those of its C."""
    ours, theirs = Graph(standard=False), Graph(standard=True)
    for number, layer in enumerate(layers):
        layer.add(ours, number)
        layer.add(theirs, number)
    session = onnxruntime.InferenceSession(
        theirs.model().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, theirs.request)
    expected = {
        one.name: array if order is None else array.transpose(order)
        for one, array, order in zip(theirs.outputs, found, theirs.orders, strict=True)
    }
    return expected, answered(ours.model(), ours.request, folder)


def answered(model: onnx.ModelProto, request: dict[str, Array], folder: Path) -> dict[str, Array]:
    """Return what a model's C answers."""
    artifact = built(model, folder)
    with CompiledC().open(artifact, TARGET) as session:
        return session.run(request)


def built(model: onnx.ModelProto, folder: Path) -> Artifact:
    """Return a model's plan."""
    path = folder / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return CompiledC().build(load(path), TARGET, folder)


def layer_model(layer: Layer) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model of one layer, and a request."""
    graph = Graph(standard=False)
    layer.add(graph, 0)
    return graph.model(), graph.request


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Draw a layer with any attributes and shapes."""
    op = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = FUNCTIONS[op] * (2 if direction == "bidirectional" else 1)
    attributes: dict[str, Any] = {}
    if draw(st.booleans()):
        kinds = st.sampled_from(["Sigmoid", "Tanh", "Relu", "Softsign"])
        attributes["activations"] = draw(st.lists(kinds, min_size=count, max_size=count))
    if draw(st.booleans()):
        attributes["clip"] = draw(st.sampled_from([0.125, 0.5, 3.0]))
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if op == "LSTM":
        attributes["input_forget"] = draw(st.integers(0, 1))
    places = st.sets(st.integers(0, 2 if op == "LSTM" else 1), min_size=1)
    return Layer(
        op,
        steps=draw(st.sampled_from([1, 2, 3, 7])),
        rows=draw(st.sampled_from([1, 1, 1, 2, 3])),
        features=draw(st.integers(1, 12)),
        hidden=draw(st.sampled_from([1, 2, 3, 5, 8, 12, 16, 17, 32, 33, 70])),
        direction=direction,
        layout=draw(st.integers(0, 1)),
        state=draw(st.sampled_from(["none", "given", "computed", "constant", "zeros"])),
        bias=draw(st.booleans()),
        peepholes=op == "LSTM" and draw(st.booleans()),
        attributes=attributes,
        outputs=tuple(sorted(draw(places))),
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        lengths=draw(st.booleans()),
    )


@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(several=st.lists(layers(), min_size=4, max_size=4))
def test_layers_with_any_attributes_answer_as_in_onnxruntime(several, tmp_path_factory):  # type: ignore[no-untyped-def]
    expected, got = answers(several, tmp_path_factory.mktemp("layers"))
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=2e-4, atol=2e-5, err_msg=name)


def test_a_step_carries_its_state_from_call_to_call(tmp_path: Path) -> None:
    layer = Layer("GRU", 1, 1, 40, 24, state="given", attributes={"linear_before_reset": 1})
    model, request = layer_model(layer)
    runtime = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    artifact = built(model, tmp_path)
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((5, 1, 1, 40)).astype(np.float32)
    theirs = ours = request["s0_0"]
    with CompiledC().open(artifact, TARGET) as session:
        for x in steps:
            y, theirs = runtime.run(None, {"x0": x, "s0_0": theirs})
            got = session.run({"x0": x, "s0_0": ours})
            ours = got["y0_1"]
            np.testing.assert_allclose(got["y0_0"], y, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_only_step_s_state_is_computed_once_and_copied_only_for_a_second_output(
    tmp_path: Path,
) -> None:
    layer = Layer("LSTM", 1, 1, 4, 8, state="given", outputs=(1, 2))
    plan = Plan.read(built(layer_model(layer)[0], tmp_path).path)
    assert [type(one).__name__ for one in plan.operations] == ["Dense", "Recurrent"]
    both = Layer("LSTM", 1, 1, 4, 8, state="given", outputs=(0, 1, 2))
    plan = Plan.read(built(layer_model(both)[0], tmp_path).path)
    assert [type(one).__name__ for one in plan.operations] == ["Dense", "Recurrent", "Map"]


class Classifier(torch.nn.Module):
    """Two recurrent layers over a sequence, and classes from their last state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(3, 10, batch_first=True, bidirectional=True)
        self.second = torch.nn.GRU(20, 12, num_layers=2, batch_first=True)
        self.classes = torch.nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.first(x)
        x, _ = self.second(x)
        answer: torch.Tensor = self.classes(x[:, -1])
        return answer


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_layers_of_pytorch_answer_each_row_of_a_batch_by_itself(
    dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Classifier().eval()
    x = torch.randn(3, 20, 3)
    path = tmp_path / "model.onnx"
    given: dict[str, Any] = {"input_names": ["x"], "output_names": ["classes"], "dynamo": dynamo}
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(network, (x,), path, dynamic_shapes=shapes, verbose=False, **given)
    else:
        axes = {"x": {0: "batch"}, "classes": {0: "batch"}}
        torch.onnx.export(network, (x,), path, dynamic_axes=axes, **given)
    artifact = CompiledC().build(load(path), TARGET, tmp_path)
    with CompiledC().open(artifact, TARGET) as session:
        assert session.batch_sizes is None
        whole = session.run({"x": x.numpy()})["classes"]
        rows = [session.run({"x": x[at : at + 1].numpy()})["classes"] for at in range(3)]
    with torch.no_grad():
        np.testing.assert_allclose(whole, network(x).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(whole, np.concatenate(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": {"activations": ["HardSigmoid", "Tanh"]}}, "activation is 'HardSigmoid'"),
        ({"attributes": {"activations": ["Tanh"]}}, "1 activations"),
        ({"attributes": {"direction": "inward"}}, "direction is 'inward'"),
        ({"attributes": {"hidden_size": 9}}, "its hidden_size differs from that of its weights"),
    ],
)
def test_what_a_layer_does_not_take_is_said_in_one_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model, _ = layer_model(Layer("GRU", 3, 1, 2, 4, **change))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(CandidateError, match=message) as caught:
        _ = CompiledC().build(load(path), TARGET, tmp_path)
    assert "the compiled engine doesn't take GRU (node that gives 'y0_0')" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sequences_that_end_early_are_refused(tmp_path: Path) -> None:
    model, _ = layer_model(Layer("GRU", 3, 1, 2, 4, lengths=True))
    lengths = next(one for one in model.graph.initializer if one.data_type == TensorProto.INT32)
    lengths.CopyFrom(numpy_helper.from_array(np.array([2], np.int32), lengths.name))
    with pytest.raises(CandidateError, match="sequences are shorter than 3"):
        built(model, tmp_path)


DAMAGE: dict[str, Any] = {
    "kind": "gru_after",
    "hidden": 9,
    "steps": 4,
    "rows": 2,
    "activations": ["sigmoid", "tanh"],
    "clip": -1.0,
    "weight": "t99",
    "bias": "t1",
    "peepholes": "t1",
    "state": {"tensor": "t0", "strides": [8, 1], "offset": 100},
    "cell": {"tensor": "t0", "strides": [8, 2], "offset": 0},
    "output": {"tensor": "t0", "strides": [24, 8, 1], "offset": 0},
    "last": {"tensor": "t0", "strides": [8], "offset": 0},
    "last_cell": None,
    "scratch": "t0",
}


@pytest.fixture(scope="module")
def plan_record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """Return the record of a plan of an LSTM, and the size of its weights in bytes."""
    layer = Layer("LSTM", 3, 1, 5, 8, state="given", outputs=(0, 1, 2))
    artifact = built(layer_model(layer)[0], tmp_path_factory.mktemp("plan"))
    return json.loads(artifact.path.read_text()), artifact.files[0].stat().st_size


@pytest.mark.parametrize("field_", sorted(DAMAGE))
def test_a_plan_whose_layer_does_not_fit_is_refused(
    field_: str, plan_record: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    record, weights = plan_record
    damaged = json.loads(json.dumps(record))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(damaged))
    Plan.read(path).check(weights)
    (layer,) = (one for one in damaged["plan"]["operations"] if one["type"] == "recurrent")
    assert layer[field_] != DAMAGE[field_]
    layer[field_] = DAMAGE[field_]
    path.write_text(json.dumps(damaged))
    with pytest.raises(IntegrityError, match="the plan is damaged"):
        Plan.read(path).check(weights)
