"""ONNX's recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Graph, Node
from hasten.engines.compiled.nodes.products import dense
from hasten.engines.compiled.operators.recurrent import ACTIVATIONS, Recurrent
from hasten.engines.compiled.tensors import Access
from hasten.engines.compiled.values import Value

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_FUNCTIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class _Layer:
    """Settings of a node.

    Attributes:
        node: The node.
        batch_first: Whether its layout has the batch before the steps.
        steps: Length of the sequence.
        rows: Sequences in one row of the batch.
        hidden: Numbers of the state.
        reverse: For each direction, whether it begins at the end.
    """

    node: Node
    batch_first: bool
    steps: int
    rows: int
    hidden: int
    reverse: tuple[bool, ...]

    @classmethod
    def of(cls, node: Node) -> _Layer:
        """Read a node's attributes and the shapes of its inputs."""
        direction = node.attributes.get("direction", "forward")
        if direction not in _DIRECTIONS:
            node.refuse(f"its direction is {direction!r}")
        value, reverse = node.input(0), _DIRECTIONS[direction]
        recurrence = node.constant(2, "recurrence's weights")
        first = bool(node.attributes.get("layout", 0))
        if len(value.shape) != 3 or recurrence.ndim != 3:
            node.refuse(f"its input has shape {list(value.shape)}")
        rows, steps = value.shape[:2] if first else value.shape[1::-1]
        layer = cls(node, first, steps, rows, recurrence.shape[2], reverse)
        if node.attributes.get("hidden_size", layer.hidden) != layer.hidden:
            node.refuse("its hidden_size differs from that of its weights")
        return layer

    @property
    def gates(self) -> int:
        """Sums for one number of the state."""
        return _GATES[self.node.proto.op_type]

    @property
    def batch(self) -> int:
        """Axis of the batch in the input."""
        return 0 if self.batch_first else 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape of a state that goes in or comes out."""
        count = len(self.reverse)
        shape = (self.rows, count) if self.batch_first else (count, self.rows)
        return (*shape, self.hidden)

    def constants(self, place: int, shape: tuple[int, ...]) -> Array | None:
        """Return constants, one part for each direction; None where they are left out or zeros."""
        if not self.node.has(place):
            return None
        found = self.node.constant(place, f"input {place}")
        if found.shape != (len(self.reverse), *shape):
            self.node.refuse(f"its input {place} has shape {list(found.shape)}")
        return found if found.any() else None

    def functions(self) -> list[tuple[str, ...]]:
        """Return the functions of the gates, for each direction."""
        usual = _FUNCTIONS[self.node.proto.op_type]
        given = self.node.attributes.get("activations") or usual * len(self.reverse)
        names = [one.decode() if isinstance(one, bytes) else str(one) for one in given]
        found = [name.lower() for name in names]
        for name in names:
            if name.lower() not in ACTIVATIONS:
                self.node.refuse(f"a gate's activation is {name!r}")
        if len(found) != len(usual) * len(self.reverse):
            self.node.refuse(f"it has {len(found)} activations")
        return [tuple(found[at : at + len(usual)]) for at in range(0, len(found), len(usual))]

    def given_state(self, place: int) -> Value | None:
        """Return a first state; None where it is left out or zeros."""
        node = self.node
        if not node.has(place):
            return None
        value = node.input(place)
        if value.shape != self.state_shape:
            node.refuse(f"its first state has shape {list(value.shape)}")
        if value.constant is not None and not value.constant.any():
            return None
        if value.batch not in (None, self.batch) or value.counts_rows:
            node.mixes_rows()
        return value

    def stored(self, constants: Array | None, direction: int) -> str:
        """Keep a direction's part of constants; return its tensor, "" where there are none."""
        if constants is None:
            return ""
        return self.node.graph.store(np.ascontiguousarray(constants[direction]))

    def state_access(self, value: Value | None, direction: int) -> Access | None:
        """Return a direction's part of a state, over rows and numbers."""
        if value is None:
            return None
        tensor = self.node.graph.tensor(value)
        if self.batch_first:
            return Access(tensor, (len(self.reverse) * self.hidden, 1), direction * self.hidden)
        return Access(tensor, (self.hidden, 1), direction * self.rows * self.hidden)

    def output_access(self, value: Value | None, direction: int) -> Access | None:
        """Return a direction's part of the states of all steps, over rows, steps and numbers."""
        if value is None:
            return None
        tensor, count, hidden = value.tensor, len(self.reverse), self.hidden
        if self.batch_first:
            strides = (self.steps * count * hidden, count * hidden, 1)
            return Access(tensor, strides, direction * hidden)
        strides = (hidden, count * self.rows * hidden, 1)
        return Access(tensor, strides, direction * self.rows * hidden)

    def input_access(self, tensor: str, direction: int) -> Access:
        """Return a direction's products of the input, over rows, steps and gates' numbers."""
        wide = self.gates * self.hidden
        whole = len(self.reverse) * wide
        strides = (self.steps, 1) if self.batch_first else (1, self.rows)
        return Access(tensor, (strides[0] * whole, strides[1] * whole, 1), direction * wide)


def _recurrent(node: Node) -> None:
    layer, kind = _Layer.of(node), _kind(node)
    wide, hidden = layer.gates * layer.hidden, layer.hidden
    recurrence = layer.constants(2, (wide, hidden))
    if recurrence is None:
        recurrence = np.zeros((len(layer.reverse), wide, hidden), node.input(0).dtype)
    biases = layer.constants(3, (2 * wide,))
    if biases is None:
        biases = np.zeros((len(layer.reverse), 2 * wide), recurrence.dtype)
    _check_lengths(layer)
    products = _products(layer, biases, kind)
    state = layer.given_state(5)
    cell = layer.given_state(6) if kind == "lstm" else None
    known = any(one is not None and one.batch is not None for one in (products, state, cell))
    outputs = _Outputs.of(layer, products.dtype, layer.batch if known else None)
    peepholes = layer.constants(7, (3 * hidden,)) if kind == "lstm" else None
    behind = biases[:, wide + 2 * hidden :] if kind == "gru_after" else None
    for direction, functions in enumerate(layer.functions()):
        _add(
            node.graph,
            Recurrent(
                kind=kind,
                hidden=hidden,
                steps=layer.steps,
                rows=layer.rows,
                reverse=layer.reverse[direction],
                activations=functions,
                clip=float(node.attributes.get("clip", 0.0)),
                coupled=kind == "lstm" and bool(node.attributes.get("input_forget", 0)),
                input=layer.input_access(products.tensor, direction),
                weight=node.graph.store(np.ascontiguousarray(recurrence[direction].T)),
                bias=layer.stored(behind, direction),
                peepholes=layer.stored(peepholes, direction),
                state=layer.state_access(state, direction),
                cell=layer.state_access(cell, direction),
                output=layer.output_access(outputs.all, direction),
                last=layer.state_access(outputs.last, direction),
                last_cell=layer.state_access(outputs.cell, direction),
            ),
            products.dtype,
        )


def _add(graph: Graph, made: Recurrent, dtype: str) -> None:
    """Append an operation, with memory for what it keeps between its steps."""
    if made.scratch_size:
        scratch = graph.new(dtype, (made.scratch_size,), None)
        made = replace(made, scratch=scratch.tensor)
    graph.add(made)


def _kind(node: Node) -> Literal["rnn", "gru", "gru_after", "lstm"]:
    if node.proto.op_type == "GRU":
        return "gru_after" if node.attributes.get("linear_before_reset", 0) else "gru"
    return "lstm" if node.proto.op_type == "LSTM" else "rnn"


def _check_lengths(layer: _Layer) -> None:
    """Refuse sequences that end early."""
    node = layer.node
    if node.has(4) and (node.constant(4, "lengths of sequences") != layer.steps).any():
        node.refuse(f"its sequences are shorter than {layer.steps}")


def _products(layer: _Layer, biases: Array, kind: str) -> Value:
    """Append the input's products for all steps and directions; return them.

    A bias of the state is a part of them, unless the reset gate comes between.
    """
    node, value = layer.node, layer.node.input(0)
    wide = layer.gates * layer.hidden
    weight = layer.constants(1, (wide, value.shape[2]))
    if weight is None:
        weight = np.zeros((len(layer.reverse), wide, value.shape[2]), value.dtype)
    first, second = biases[:, :wide], biases[:, wide:].copy()
    if kind == "gru_after":
        second[:, 2 * layer.hidden :] = 0
    if value.batch not in (None, layer.batch):
        node.mixes_rows()
    bias = (first + second).reshape(-1)
    return dense(node, value, weight.reshape(-1, value.shape[2]).T, bias)


@dataclass(frozen=True)
class _Outputs:
    """Values that a layer's directions write.

    Attributes:
        all: State after each step, where it is used.
        last: State after the last step, where it is used.
        cell: Cell after the last step, where it is used.
    """

    all: Value | None
    last: Value | None
    cell: Value | None

    @classmethod
    def of(cls, layer: _Layer, dtype: str, batch: int | None) -> _Outputs:
        """Make the outputs of a node."""
        node, count = layer.node, len(layer.reverse)
        every = (
            (layer.rows, layer.steps, count, layer.hidden)
            if layer.batch_first
            else (layer.steps, count, layer.rows, layer.hidden)
        )
        place = None if batch is None else 0 if layer.batch_first else 2
        state = layer.state_shape
        cell = node.computed(dtype, state, batch, 2) if node.wants(2) else None
        if layer.steps > 1 or not node.wants(1):
            last = node.computed(dtype, state, batch, 1) if node.wants(1) else None
            whole = node.computed(dtype, every, place, 0) if node.wants(0) else None
            return cls(whole, last, cell)
        last = node.computed(dtype, state, batch, 1)
        node.give(replace(last, shape=every, batch=place))  # the only step is the last one
        return cls(None, last, cell)


LOWERINGS: dict[str, Callable[[Node], None]] = dict.fromkeys(_GATES, _recurrent)
"""Lowering of each operator by its name."""
