"""Recurrent layers as C, against ONNX Runtime's and PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled.engine import CompiledC
from hasten.inputs.models.onnx import load

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
    attributes: dict[str, object] = field(default_factory=dict)
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
            return (rng.standard_normal(shape) / max(1, shape[-1]) ** 0.5).astype(self.dtype)

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
            self.nodes.append(helper.make_node("Tanh", [self.given(name, array, layout)], ["t" + name]))
            return "t" + name
        array = array * 0 if kind == "zeros" else array
        return self.constant(array if self.standard or not layout else array.swapaxes(0, 1).copy())

    def take(self, name: str, dtype: str, layout: int, place: int) -> None:
        """Add an output of the model."""
        kind = TensorProto.FLOAT if dtype == "float32" or self.standard else TensorProto.DOUBLE
        self.outputs.append(helper.make_tensor_value_info(name, kind, [None] * (4 if place == 0 else 3)))
        order = (2, 0, 1, 3) if place == 0 else (1, 0, 2)
        self.orders.append(order if layout else None)

    def _fitted(self, array: Array) -> Array:
        return array.astype(np.float32) if self.standard and array.dtype == np.float64 else array

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        graph = helper.make_graph(self.nodes, "layers", self.inputs, self.outputs, self.initializers)
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
    path = folder / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    target = Target.host().with_threads(1)
    artifact = CompiledC().build(load(path), target, folder)
    with CompiledC().open(artifact, target) as session:
        return session.run(request)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Draw a layer with any attributes and shapes."""
    op = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = FUNCTIONS[op] * (2 if direction == "bidirectional" else 1)
    attributes: dict[str, object] = {}
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


@settings(max_examples=6, deadline=None)
@given(several=st.lists(layers(), min_size=8, max_size=8))
def test_layers_with_any_attributes_answer_as_in_onnxruntime(several, tmp_path_factory):  # type: ignore[no-untyped-def]
    expected, got = answers(several, tmp_path_factory.mktemp("layers"))
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=2e-4, atol=2e-5, err_msg=name)
