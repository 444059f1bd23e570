"""Whole numbers in graphs of OpenVINO: how large those of a request may be for its plugins to calculate right.

A plugin holds whole numbers in 32 bits, and calculates with most of them in float32, which has all whole numbers up to
2^24 only. It doesn't tell when a number leaves either range. So the numbers of a request are bounded instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.engines.openvino.ranges import Bound
from hasten.errors import NotCovered

Span = tuple[int, int]
"""Least and largest of some whole numbers."""
_WORD: Span = (-(2**31), 2**31 - 1)
_FLOAT = 2**24
"""Largest whole number up to which float32 has all of them."""
_TYPES: dict[str, Span] = {
    **{f"u{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"i{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
_SIZES: Span = (-(2**20), 2**20)
"""Numbers that follow from no whole number of a request: sizes, places, rounded floats, truths."""
_FIRST = """Broadcast Convert DepthToSpace Gather GatherElements GatherND Identity MaxPool Reshape Slice SpaceToDepth
    Split Squeeze StridedSlice Tile TopK Transpose Unique Unsqueeze VariadicSplit"""
_MOVES: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(_FIRST.split(), (0,)),
    "Concat": None,
    "OneHot": (2, 3),
    "ScatterElementsUpdate": (0, 2),
    "ScatterNDUpdate": (0, 2),
    "ScatterUpdate": (0, 2),
}
"""Inputs of operations whose first result has numbers of these alone, of 32 bits; None for all inputs."""
_COMPARES = frozenset(
    ["Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "Minimum", "Maximum"]
)
"""Operations that are right in float32 if all numbers but those of one input are small."""
_DIVIDES = frozenset(["Divide", "FloorMod", "Mod"])
"""Operations that other engines refuse to compute where the second input is 0."""
_COUNTS = frozenset(["NonZero", "Result", "ShapeOf"])
"""Operations that calculate with no amounts."""


_BITS = frozenset(["BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"])
"""Calculations with 32 bits."""


def _most(span: Span) -> int:
    return max(abs(span[0]), abs(span[1]))


def _around(most: int, *spans: Span) -> Span:
    """Return all numbers up to an amount; those below 0 only where some of the given spans have such."""
    return (-most if any(low < 0 for low, _ in spans) else 0), most


def _hull(*spans: Span) -> Span:
    return min(low for low, _ in spans), max(high for _, high in spans)


def _product(one: Span, other: Span) -> Span:
    ends = [a * b for a in one for b in other]
    return min(ends), max(ends)


def _power(base: Span, exponent: Span) -> Span:
    return _around(max(1, _most(base)) ** min(64, max(0, exponent[1])), base)


def _bits(*spans: Span) -> Span:
    low, most = _around(1 << max(_most(span) for span in spans).bit_length(), *spans)
    return low, most - 1


def _same(span: Span) -> Span:
    return span


_SUMS = frozenset(["CumSum", "MatMul", "ReduceL1", "ReduceMean", "ReduceSum"])
"""Operations that add up what the rule tells."""
_RULES: dict[str, Callable[..., Span]] = {
    **dict.fromkeys(
        [
            "CumSum",
            "ReduceL1",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceSum",
            "ReverseSequence",
        ],
        _same,
    ),
    "Abs": lambda x: (0, _most(x)),
    "Add": lambda x, y: (x[0] + y[0], x[1] + y[1]),
    "BitwiseAnd": _bits,
    "BitwiseNot": lambda x: (-x[1] - 1, -x[0] - 1),
    "BitwiseOr": _bits,
    "BitwiseRightShift": lambda x, y: _hull(x, (0, 0)),
    "BitwiseXor": _bits,
    "Clamp": lambda x: _hull(x, (0, 0)),
    "Divide": lambda x, y: _around(_most(x), x, y),
    "FloorMod": lambda x, y: _around(_most(y), x, y),
    "MatMul": _product,
    "Maximum": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "Minimum": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    "Mod": lambda x, y: _around(_most(y), x, y),
    "Multiply": _product,
    "Negative": lambda x: (-x[1], -x[0]),
    "Pad": _hull,
    "Power": _power,
    "Range": lambda start, stop, step: _hull(start, stop),
    "Relu": lambda x: (max(0, x[0]), max(0, x[1])),
    "Select": _hull,
    "Sign": lambda x: (-1, 1),
    "Subtract": lambda x, y: (x[0] - y[1], x[1] - y[0]),
}
"""Least and largest result of operations by those of their inputs."""
_READS: dict[str, tuple[int, ...]] = {
    **{kind: (0,) for kind, rule in _RULES.items() if rule is _same},
    "Pad": (0, 3),
    "Select": (1, 2),
}
"""Inputs of operations that they calculate with, where these aren't all."""


@dataclass(frozen=True)
class _Step:
    """Operation on whole numbers that follow from an input's.

    Attributes:
        kind: Type of the operation; empty for one of which nothing is known.
        words: Words for it.
        takes: Places of the whole numbers that it reads, or their least and largest.
        gives: Places of its results that are followed further.
        range: Least and largest number that the results' type holds.
        terms: Number of numbers that one result adds up; 0 for as many as a request has.
        bodies: Graphs inside it.
    """

    kind: str
    words: str
    takes: tuple[str | Span, ...]
    gives: tuple[str, ...]
    range: Span
    terms: int
    bodies: tuple[Wholes, ...]

    def result(self, spans: list[Span], elements: int) -> Span | None:
        """Return the least and the largest result; None if a plugin may calculate it wrong."""
        if self.bodies:
            return self._inside(_hull(*spans), elements)
        if self.divides_by_zero(spans):
            return None
        if self.kind == "Convert" and self.gives:  # higher bits are left out, as ONNX has it
            fits = self._held(spans[0], _WORD)
            return fits or (max(self.range[0], _WORD[0]), min(self.range[1], _WORD[1]))
        if self.kind in _MOVES:
            return self._held(_hull(*spans), _WORD)
        limit = _WORD if self.kind in _BITS else (-_FLOAT, _FLOAT)
        small = sorted(map(_most, spans))
        if (
            self.kind not in _BITS
            and small[-1] > _FLOAT
            and not (self.kind in _COMPARES and small[-2] < _FLOAT)
        ):
            return None
        if not self.gives:
            return _SIZES
        if self.kind not in _RULES:
            return None
        found = _RULES[self.kind](*spans)
        if self.kind in _SUMS:
            found = _around(_most(found) * (self.terms or elements), found)
        return self._held(found, limit)

    def divides_by_zero(self, spans: list[Span]) -> bool:
        """Whether it may divide by 0, because a request's numbers make the divisor."""
        if self.kind not in _DIVIDES or not isinstance(self.takes[1], str):
            return False
        return spans[1][0] <= 0 <= spans[1][1]

    def because(self, spans: list[Span]) -> str:
        """Return words for the operation, with the reason for which it has no result if there is more than one."""
        why = ", whose divisor may be 0)" if self.divides_by_zero(spans) else ")"
        return f"{self.words.removesuffix(')')}{why}"

    def _inside(self, whole: Span, elements: int) -> Span | None:
        """Return the least and the largest of what goes into graphs inside and what comes out of them."""
        ends = [whole]
        for body in self.bodies:
            known, beyond = body.followed(dict.fromkeys(body.sources, whole), elements)
            if beyond is not None:
                return None
            ends += [known[one] if isinstance(one, str) else one for one in body.results]
        return _hull(*ends)

    def _held(self, span: Span, limit: Span) -> Span | None:
        """Return a span if it lies within a limit and the results' type."""
        least, most = max(limit[0], self.range[0]), min(limit[1], self.range[1])
        return span if not self.gives or (least <= span[0] and span[1] <= most) else None


@dataclass(frozen=True)
class Wholes:
    """Calculations of a graph with whole numbers that follow from those of its inputs.

    Attributes:
        sources: Least and largest number that the type of each whole-number input holds, by its place.
        names: Names of these inputs, by place.
        steps: Calculations, in order.
        results: Places of the graph's whole numbers that follow from these inputs, and the least and largest of each
            constant that it gives.
    """

    sources: Mapping[str, Span]
    names: Mapping[str, frozenset[str]]
    steps: tuple[_Step, ...]
    results: tuple[str | Span, ...] = ()
    _found: dict[int, dict[str, Bound]] = field(
        default_factory=dict, metadata={"in records": False}
    )

    @classmethod
    def of(cls, graph: Any) -> Wholes:
        """Return those of a graph of OpenVINO."""
        sources = dict[str, Span]()
        names = dict[str, frozenset[str]]()
        followed = set[str]()
        readers = set[str]()
        steps = list[_Step]()

        def follow(port: Any) -> None:
            followed.add(_place(port))
            readers.update(one.get_node().get_name() for one in port.get_target_inputs())

        for parameter in graph.get_parameters():
            port = parameter.output(0)
            if (known := _range(port)) is not None:
                sources[_place(port)], names[_place(port)] = known, frozenset(port.names)
                follow(port)
        for operation in graph.get_ordered_ops() if followed else ():
            if operation.get_name() not in readers:
                continue
            if (step := _step(operation, followed)) is not None:
                steps.append(step)
                for port in operation.outputs():
                    if _place(port) in step.gives:
                        follow(port)
        return cls(sources, names, tuple(steps), tuple(_given(graph, followed)))

    def bounds(self, elements: int) -> dict[str, Bound]:
        """Return the bound of each whole-number input, by each of its names.

        Args:
            elements: Number of elements of a request's largest input, which no open axis exceeds.
        """
        elements = 1 << max(0, elements - 1).bit_length()
        if elements not in self._found:
            self._found[elements] = self._bounds(elements)
        return self._found[elements]

    def _bounds(self, elements: int) -> dict[str, Bound]:
        found = {place: Bound(min(_most(known), 2**31)) for place, known in self.sources.items()}
        while beyond := self.beyond(
            {place: _cut(known, found[place].most) for place, known in self.sources.items()},
            elements,
        ):
            words, causes = beyond
            ended = not any(found[place].most for place in causes)
            for place in causes:
                found[place] = Bound(-1 if ended else found[place].most // 2, words)
            if ended:
                break
        return {name: bound for place, bound in found.items() for name in self.names[place]}

    def beyond(self, spans: Mapping[str, Span], elements: int) -> tuple[str, frozenset[str]] | None:
        """Return words for the first operation that may be wrong, with the places of the inputs that it follows from.

        Args:
            spans: Least and largest number of each whole-number input, by place.
            elements: Number of elements that no open axis exceeds.
        """
        return self.followed(spans, elements)[1]

    def followed(
        self, spans: Mapping[str, Span], elements: int
    ) -> tuple[dict[str, Span], tuple[str, frozenset[str]] | None]:
        """Return the least and the largest number at each place, up to what `beyond` returns, and that."""
        known = dict(spans)
        causes = {place: frozenset({place}) for place in spans}
        for step in self.steps:
            places = [one for one in step.takes if isinstance(one, str)]
            own = frozenset().union(*(causes[place] for place in places))
            given = [known[one] if isinstance(one, str) else one for one in step.takes]
            found = step.result(given, elements)
            if found is None:
                return known, (step.because(given), own)
            known.update(dict.fromkeys(step.gives, found))
            causes.update(dict.fromkeys(step.gives, own))
        return known, None


def check_wholes(graph: Any) -> None:
    """Refuse a graph whose whole numbers are too large for a plugin whatever a request has, such as a constant.

    Raises:
        NotCovered: it is such; the message names the operation.
    """
    for bound in Wholes.of(graph).bounds(1).values():
        if bound.most < 0:
            raise NotCovered(
                f"OpenVINO computes {bound.why} in float32, where its whole numbers don't fit"
            )


def _cut(span: Span, most: int) -> Span:
    return max(span[0], -most, _WORD[0]), min(span[1], most, _WORD[1])


def _place(port: Any) -> str:
    """Return the place of an operation's result, by its own name: people may give several the same."""
    return f"{port.get_node().get_name()}:{port.get_index()}"


def _range(port: Any) -> Span | None:
    """Return the least and the largest number of a result's type; None for other than whole numbers."""
    return _TYPES.get(port.get_element_type().get_type_name())


def _given(graph: Any, followed: set[str]) -> Iterator[str | Span]:
    """Yield what a graph gives of the numbers that are followed, and of constants."""
    for result in graph.get_results():
        port = result.input_value(0)
        if _place(port) in followed:
            yield _place(port)
        elif port.get_node().get_type_name() == "Constant" and _range(port) is not None:
            yield _known(port)


def _step(operation: Any, followed: set[str]) -> _Step | None:
    """Return an operation that calculates with numbers that are followed; None for others."""
    kind = operation.get_type_name()
    if kind in _COUNTS:
        return None
    sources = [port.get_source_output() for port in operation.inputs()]
    reads = _MOVES[kind] if kind in _MOVES else _READS.get(kind)
    sources = [one for at, one in enumerate(sources) if reads is None or at in reads]
    if not any(_place(one) in followed for one in sources):
        return None
    if (
        kind.startswith("Scatter")
        and str(operation.get_attributes().get("reduction", "none")) != "none"
    ):
        kind = ""
    bodies = tuple(map(Wholes.of, bodies_of(operation)))
    if bodies:  # truths and floats tell nothing of the whole numbers inside
        sources = [one for one in sources if _range(one) is not None]
    results = operation.outputs()[: 1 if kind in ("MaxPool", "TopK", "Unique") else None]
    results = [port for port in results if _range(port) is not None]
    return _Step(
        kind,
        f"{operation.get_type_name()} (node {operation.get_friendly_name()!r})",
        tuple(_place(one) if _place(one) in followed else _known(one) for one in sources),
        tuple(map(_place, results)),
        next(filter(None, map(_range, results)), _WORD),
        _terms(operation) if kind in _SUMS else 1,
        bodies,
    )


def _known(port: Any) -> Span:
    """Return the least and the largest number of what follows from no whole number of a request."""
    node = port.get_node()
    if node.get_type_name() == "Constant" and _range(port) is not None:
        numbers = node.get_data()
        return (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    known = _range(port)
    return _SIZES if known is None or _most(known) > _SIZES[1] else known


def _terms(operation: Any) -> int:
    """Return how many numbers one result of a sum adds up; 0 if an axis is open."""
    shape, axes = operation.input(0).get_partial_shape(), operation.input_value(1).get_node()
    if (
        operation.get_type_name() == "MatMul"
        or axes.get_type_name() != "Constant"
        or shape.rank.is_dynamic
    ):
        return 0
    sizes = [shape[int(axis)] for axis in np.ravel(axes.get_data())]
    return (
        0
        if any(one.is_dynamic for one in sizes)
        else int(np.prod([one.get_length() for one in sizes]))
    )


def bodies_of(operation: Any) -> list[Any]:
    """Return the graphs inside an operation, such as the two branches of an If."""
    kind = operation.get_type_name()
    if kind == "If":
        return [operation.get_then_body(), operation.get_else_body()]
    return [operation.get_function()] if kind in ("Loop", "TensorIterator") else []
