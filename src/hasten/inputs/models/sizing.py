"""Axes of outputs whose size a graph makes from a request's values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hasten.core.tensors import BY_VALUE, TensorSpec

if TYPE_CHECKING:
    import onnx

_SIZING = frozenset(
    {
        *("Compress", "NonMaxSuppression", "NonZero", "Unique"),
        *("ImageDecoder", "StringSplit"),
        *(
            "BeamSearch",
            "CropAndResize",
            "GreedySearch",
            "Sampling",
            "Tokenizer",
            "WhisperBeamSearch",
        ),
    }
)
"""Operators that find or make more of other values; the last ones are ONNX Runtime's own."""
_SIZES = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "SequenceAt": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "STFT": (1, 3),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Operators -> their inputs whose numbers say how large their outputs are."""
_OF_FIRST = frozenset(
    {"CumSum", "Scatter", "ScatterElements", "ScatterND", "TensorScatter", "Trilu"}
)
"""Operators whose output has the shape of their first input, whatever shape the others have."""
_KNOWN = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains of operators of which it is known whether values size their outputs."""
_MOST_PASSES = 64
_FIXED, _VALUES, _SIZED = range(3)
"""Levels of a tensor: request's values change nothing in it; they change its numbers; they may change its size, too."""


def named_by_value(
    proto: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Name axes of outputs `BY_VALUE` where values may give their size.

    No batch is divided by such a first axis, and a server runs nobody's requests together with others where there is
    one. The file gives the axis another name than the inputs' axes have, or none. A first axis is one if the output is
    computed from what NonZero, NonMaxSuppression, Unique or Compress made of the inputs, or if numbers made of them
    size it, as those of Range do. For other axes that is also the case if values decide how often a loop runs, or
    which branch, and if an operator isn't known.

    Args:
        proto: Model.
        inputs: Inputs of the model.
        outputs: Outputs of the model.
    """
    own = {spec.shape[0] for spec in inputs if spec.shape} - {"?"}
    all_own = {size for spec in inputs for size in spec.shape} - {"?"}
    sized, more = _sized(proto, widely=False), _sized(proto, widely=True)

    def size_of(spec: TensorSpec, axis: int) -> int | str:
        size = spec.shape[axis]
        names, found = (all_own, more) if axis else (own, sized)
        if isinstance(size, int) or size in (*names, "..."):  # axes of an unknown number
            return size
        return BY_VALUE if spec.name in found else size

    return tuple(
        dataclasses.replace(
            spec, shape=tuple(size_of(spec, axis) for axis in range(len(spec.shape)))
        )
        for spec in outputs
    )


def _sized(proto: onnx.ModelProto, *, widely: bool) -> set[str]:
    """Return the outputs that may have another size for other values.

    Args:
        proto: Model.
        widely: Whether those count whose size may depend on how often a loop runs, on which branch does, or on an
            operator that isn't known.
    """
    levels = _Levels(proto, widely=widely)
    names = [value.name for value in proto.graph.output]
    return {name for name in names if not levels.settled or levels.of("", name) == _SIZED}


class _Levels:
    """Levels of the tensors of a model, of its subgraphs and of its functions, at most.

    Args:
        proto: Model.
        widely: Whether loops, branches and unknown operators count; see `_sized`.

    Attributes:
        settled: Whether they are known; else the model's functions and loops are nested too deeply.
    """

    def __init__(self, proto: onnx.ModelProto, *, widely: bool) -> None:
        self._widely = widely
        self._functions = {_name(one.domain, one.name): one for one in proto.functions}
        self._found: dict[tuple[str, str], int] = {}
        """Function, or "" for the main graph, and name of a tensor -> its level."""
        constants = {tensor.name for tensor in proto.graph.initializer}
        for value in proto.graph.input:
            self._raise("", value.name, _FIXED if value.name in constants else _VALUES)
        self.settled = False
        for _ in range(_MOST_PASSES):  # each goes further into functions and back in loops
            self._changed = False
            self._follow("", proto.graph.node)
            for name, function in self._functions.items():
                self._follow(name, function.node)
            if not self._changed:
                self.settled = True
                return

    def of(self, place: str, name: str) -> int:
        """Return the level of a tensor in a function, or in the main graph and its subgraphs."""
        return self._found.get((place, name), _FIXED)

    def _raise(self, place: str, name: str, level: int) -> None:
        if name and level > self.of(place, name):
            self._found[place, name] = level
            self._changed = True

    def _follow(self, place: str, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            given = [self.of(place, name) for name in node.input]
            called = _name(node.domain, node.op_type)
            if called in self._functions:
                made = self._called(called, given)
            elif inner := [*_inner(node)]:
                made = self._nested(place, node, inner, given)
            else:
                made = [self._made(node, given)] * len(node.output)
            for name, level in zip(node.output, made, strict=False):
                self._raise(place, name, level)

    def _called(self, name: str, given: Sequence[int]) -> list[int]:
        function = self._functions[name]
        for inner, level in zip(function.input, given, strict=False):
            self._raise(name, inner, level)
        return [self.of(name, output) for output in function.output]

    def _nested(
        self,
        place: str,
        node: onnx.NodeProto,
        inner: Sequence[onnx.GraphProto],
        given: Sequence[int],
    ) -> list[int]:
        """Follow a node's subgraphs, and return the levels of its outputs."""
        loop = node.op_type == "Loop"
        made = [_FIXED] * len(node.output)
        deciding = max([*given[:2], _FIXED]) if loop else max([*given[:1], _FIXED])
        for graph in inner:
            # The first number of a loop's body counts its steps, whatever the values are.
            passed = [_FIXED, *given[1:]] if loop else [max([*given, _FIXED])] * len(graph.input)
            for value, level in zip(graph.input, passed, strict=False):
                self._raise(place, value.name, level)
            self._follow(place, graph.node)
            results = [self.of(place, value.name) for value in graph.output]
            for value, level in zip(graph.input[loop:], results, strict=False):
                self._raise(place, value.name, level)
            if loop:
                deciding, results = max([deciding, *results[:1]]), results[1:]
            made = [max(pair) for pair in zip(made, results, strict=False)]
        if node.op_type not in ("If", "Loop") or not deciding:
            return made
        return [max(level, _SIZED if self._widely else _VALUES) for level in made]

    def _made(self, node: onnx.NodeProto, given: Sequence[int]) -> int:
        """Return the level of a node's outputs, from those of its inputs."""
        level = max([*given, _FIXED])
        if level == _FIXED:
            return _FIXED
        if node.op_type in ("Shape", "Size"):
            return _VALUES if level == _SIZED else _FIXED
        if node.op_type in _SIZING or (self._widely and node.domain not in _KNOWN):
            return _SIZED
        if any(given[at] for at in _SIZES.get(node.op_type, ()) if at < len(given)):
            return _SIZED
        return max(given[0], _VALUES) if node.op_type in _OF_FIRST else level


def _name(domain: str, name: str) -> str:
    return f"{'' if domain == 'ai.onnx' else domain}:{name}"


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield a node's subgraphs."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
