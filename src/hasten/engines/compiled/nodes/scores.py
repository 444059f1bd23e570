"""Results that the operators of `ai.onnx.ml` make of their sums: start values, post-transforms, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.reductions import done, mapped, reduced
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.values import Value

_PROBIT = 0.147
"""Constant of Winitzki's approximation of the inverse error function, which ONNX Runtime uses."""
_ZERO = 1e-7
"""Largest distance from 0 of scores that SOFTMAX_ZERO leaves out."""


class Steps:
    """Program that is being written over some values.

    Args:
        values: Operands, all of one type, which has number 0, 1, ...
    """

    def __init__(self, *values: Value) -> None:
        self._values = values
        self._dtype = values[0].dtype
        self._steps: list[Step] = []

    def do(self, op: str, *args: int, dtype: str = "") -> int:
        """Append a step and return its number."""
        self._steps.append(Step(op, args, dtype or self._dtype))
        return len(self._values) + len(self._steps) - 1

    def number(self, value: float, dtype: str = "") -> int:
        """Append a number and return the step's number."""
        dtype = dtype or self._dtype
        self._steps.append(Step("value", (), dtype, programs.number(value, dtype)))
        return len(self._values) + len(self._steps) - 1

    def end(self, node: Node) -> Value:
        """Append the map to the plan and return its result."""
        return mapped(node, self._steps, *self._values)


def constant(array: Array) -> Value:
    """Return a value that is known."""
    return Value("", str(array.dtype), array.shape, None, array)


def cast(node: Node, value: Value, dtype: str) -> Value:
    """Append a cast, unless the type is that one."""
    if value.dtype == dtype:
        return value
    return mapped(node, [Step("cast", (0,), dtype)], value)


def scaled(node: Node, total: Value, count: int) -> Value:
    """Append a division by a number."""
    steps = Steps(total)
    steps.do("divide", 0, steps.number(count))
    return steps.end(node)


def transformed(node: Node, total: Value, base: Array, transform: str, dtype: str) -> None:
    """Append a start value and a post-transform, and give the result as the node's output.

    ONNX Runtime leaves a single score as it is, but for PROBIT.

    Args:
        node: Node of the graph.
        total: Scores, of shape `(1, targets)`.
        base: Start values; empty for none.
        transform: Name of the post-transform.
        dtype: Element type of the output.
    """
    targets = total.shape[1]
    if len(base) not in (0, targets):
        node.refuse(f"it has {len(base)} base values for {targets} targets")
    if base.any():
        total = done(node, "add", total, constant(base.astype(total.dtype).reshape(1, -1)))
    if targets > 1 or transform == "PROBIT":
        total = post_transformed(node, total, transform)
    node.give(cast(node, total, dtype))


def post_transformed(node: Node, total: Value, transform: str) -> Value:
    """Append a post-transform of scores of shape `(1, targets)`; return its result."""
    if transform == "NONE":
        return total
    if transform == "LOGISTIC":
        return done(node, "sigmoid", total)
    if transform == "PROBIT":
        return _probit(node, total)
    if transform not in ("SOFTMAX", "SOFTMAX_ZERO"):
        node.refuse(f"its post_transform is {transform!r}")
    most = reduced(node, total, [1], "maximum")
    if transform == "SOFTMAX":
        powers = done(node, "exp", done(node, "subtract", total, most))
        return done(node, "divide", powers, reduced(node, powers, [1], "sum"))
    found = []
    for counted in (True, False):
        steps = Steps(total, most)
        far = steps.do("greater", steps.do("absolute", 0), steps.number(_ZERO), dtype="bool")
        power = steps.do("exp", steps.do("subtract", 0, 1))
        least = steps.do("multiply", 0, steps.do("exp", steps.do("negative", 1)))
        steps.do("where", far, power, steps.number(0) if counted else least)
        found.append(steps.end(node))
    return done(node, "divide", found[1], reduced(node, found[0], [1], "sum"))


def _probit(node: Node, total: Value) -> Value:
    s = Steps(total)
    one, half = s.number(1), s.number(0.5)
    x = s.do("subtract", s.do("multiply", s.number(2), 0), one)
    log = s.do("log", s.do("multiply", s.do("subtract", one, x), s.do("add", one, x)))
    v = s.do("add", s.number(2 / (3.14159 * _PROBIT)), s.do("multiply", half, log))
    w = s.do("multiply", s.number(1 / _PROBIT), log)
    root = s.do("sqrt", s.do("subtract", s.do("multiply", v, v), w))
    size = s.do("sqrt", s.do("subtract", root, v))
    below = s.do("less", x, s.number(0), dtype="bool")
    size = s.do("multiply", s.number(1.41421356), size)
    s.do("where", below, s.do("negative", size), size)
    return s.end(node)


def classified(
    node: Node,
    total: Value,
    labels: Sequence[Any],
    base: Array,
    given: set[int],
    positive: bool,
    transform: str,
) -> None:
    """Append what makes labels and scores of a classifier's sums, as ONNX Runtime does; give both.

    Args:
        node: Node of the graph; its first output is the labels, the second one the scores.
        total: Sums, of shape `(1, classes)`.
        labels: Label of each class.
        base: Start values; empty for none.
        given: Classes that have weights.
        positive: Whether no weight is below 0.
        transform: Name of the post-transform.
    """
    classes = len(labels)
    if classes == 2 and given == {0} and len(base) <= 1:
        _binary(node, total, labels, float(base.sum()), positive, transform)
        return
    bases = (0,) if classes == 2 else (0, classes)
    if given != set(range(classes)) or classes < 2 or len(base) not in bases:
        node.refuse(f"weights of classes {sorted(given)} of {classes}, {len(base)} base values")
    if base.any():
        total = done(node, "add", total, constant(base.astype(total.dtype).reshape(1, -1)))
    if classes == 2:
        steps = Steps(_column(node, total, 1))
        above = steps.do("greater", 0, steps.number(0), dtype="bool")
        steps.do("cast", above, dtype="int64")
        labelled(node, steps.end(node), [0, 1] if isinstance(labels[0], int) else labels)
    else:
        place = reduced(node, total, [1], "argmax")
        labelled(node, replace(place, shape=(1,)), labels)
    node.give(cast(node, post_transformed(node, total, transform), "float32"), 1)


def _column(node: Node, value: Value, column: int) -> Value:
    """Append a copy of one column, of shape `(1,)`."""
    made = node.graph.new(value.dtype, (1,), value.batch)
    node.graph.map([Step("copy", (0,), value.dtype)], [(value, (1,), column)], made)
    return made


def _binary(
    node: Node, total: Value, labels: Sequence[Any], base: float, positive: bool, transform: str
) -> None:
    """Append the two scores of a classifier whose sums are of one class."""
    if transform == "PROBIT":
        node.refuse("it applies PROBIT to one class")
    score = _column(node, total, 0)
    if base:
        steps = Steps(score)
        steps.do("add", 0, steps.number(base))
        score = steps.end(node)
    steps = Steps(score)
    above = steps.do("greater", 0, steps.number(0.5 if positive else 0), dtype="bool")
    steps.do("cast", above, dtype="int64")
    labelled(node, steps.end(node), labels)
    # The first column is the logistic of -score, 1 - score, or -score.
    logistic = transform == "LOGISTIC"
    signs = constant(np.asarray([[-1, 1]], total.dtype))
    starts = constant(np.asarray([[int(positive and not logistic), 0]], total.dtype))
    steps = Steps(score, signs, starts)
    both = steps.do("add", 2, steps.do("multiply", 0, 1))
    if logistic:
        steps.do("sigmoid", both)
    node.give(cast(node, steps.end(node), "float32"), 1)


def labelled(node: Node, place: Value, labels: Sequence[Any]) -> None:
    """Append the label of a class's place; texts aren't given, so nothing can take them."""
    if not isinstance(labels[0], int):
        node.give(replace(place, tensor="", dtype="texts"), 0)
        return
    if list(labels) == list(range(len(labels))):
        node.give(place, 0)
        return
    if 3 * len(labels) > programs.MOST_STEPS:
        node.refuse(f"{len(labels)} labels that aren't 0, 1, ...")
    steps = Steps(place)
    found = steps.number(labels[0])
    for number, label in enumerate(labels[1:], start=1):
        here = steps.do("equal", 0, steps.number(number), dtype="bool")
        found = steps.do("where", here, steps.number(label), found)
    node.give(steps.end(node), 0)
