"""Insert the roundings of int8 into the graph of a network, and learn their scales."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from hasten.errors import CandidateError
from hasten.lightening.training.captured_graph import Captured, settled
from hasten.lightening.training.quantized_file import Int8Range
from hasten.passes.static_quantization import StaticQuantization

_TENSORS, _WEIGHTS, _BIASES = "hasten_tensors", "hasten_weights", "hasten_biases"
"""Names of the submodules that hold the roundings of a prepared graph."""
_LEAST_STEP = 1e-12
_HALF = 0.501
"""Largest error of rounding inside a range, in steps."""


@dataclass(frozen=True)
class RoundedTensors:
    """Range, with the operations of the captured graph whose results are rounded to it.

    Attributes:
        range: Calibrated range.
        nodes: Names of the operations in the captured graph; empty if the tensors lie inside a
            single operation.
    """

    range: Int8Range
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class RoundedWeights:
    """Parameter that is rounded around 0, with its largest magnitude mapped to `highest`.

    Attributes:
        parameter: Name of the parameter in the captured graph.
        axis: Axis whose positions have a scale each; None for a single scale.
        highest: Highest integer: 127 or 64.
    """

    parameter: str
    axis: int | None
    highest: int


@dataclass(frozen=True)
class Placement:
    """Places of rounding in a network; with the float network, enough to prepare it again.

    Attributes:
        quantization: Pass that chose the places.
        tensors: Activations to round, with calibrated ranges.
        weights: Parameters to round.
        unmatched: Names in the file of tensors that only the file rounds: they lie inside a single
            torch operation, or are constants that equal no parameter.
    """

    quantization: StaticQuantization
    tensors: tuple[RoundedTensors, ...]
    weights: tuple[RoundedWeights, ...]
    unmatched: tuple[str, ...]


class _Rounding(torch.autograd.Function):
    """Round to integers and back, with a gradient for values inside the range and for the scale."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int
    ) -> torch.Tensor:
        y = torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
        ctx.save_for_backward(x, y, scale)
        ctx.share = 1 / math.sqrt(max(1, x.numel()) * max(high, 1))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        inside = (y - x).abs() <= scale * _HALF
        passed = gradients[0] * inside
        along = (gradients[0] * y).sum() - (passed * x).sum()
        return passed, (along / scale) * ctx.share, None, None, None


class ActivationRounding(torch.nn.Module):
    """Round to a range whose scale is learned, as a factor on the calibrated scale.

    The logarithm of the factor is learned, so that a step of any optimizer is small compared to
    the scale.

    Source: gradient of the scale and its size, Esser et al., arXiv:1902.08153, eq. 3 and section
    2.2; logarithm, Jain et al., arXiv:1903.08066, section 3.2.
    """

    calibrated: torch.Tensor
    zero: torch.Tensor

    def __init__(self, own: Int8Range) -> None:
        super().__init__()
        self.lowest, self.highest = own.lowest, own.highest
        self.largest = own.largest_scale or math.inf
        self.register_buffer("calibrated", torch.tensor([own.scale]))
        self.register_buffer("zero", torch.tensor([own.zero], dtype=torch.int32))
        self.drift = torch.nn.Parameter(torch.zeros(1))

    @property
    def scale(self) -> torch.Tensor:
        """Width of one step, of shape `(1,)`."""
        return (self.calibrated * self.drift.exp()).clamp(_LEAST_STEP, self.largest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tensor, rounded."""
        rounded: torch.Tensor = _Rounding.apply(  # type: ignore[no-untyped-call]
            x, self.scale, self.zero, self.lowest, self.highest
        )
        return rounded


class WeightRounding(torch.nn.Module):
    """Round weights around 0, with the largest magnitude of each channel as the highest integer."""

    def __init__(self, axis: int | None, highest: int) -> None:
        super().__init__()
        self.axis, self.highest = axis, highest

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the tensor, rounded."""
        low, high = -self.highest, self.highest
        steps = self.steps(weight)
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(weight, steps, zeros, low, high)
        return torch.fake_quantize_per_channel_affine(weight, steps, zeros, self.axis, low, high)

    def steps(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the scale of each channel, or the single scale if there is no axis."""
        size = weight.detach().abs()
        others = [i for i in range(weight.ndim) if i != self.axis]
        largest = size.max() if self.axis is None else size.amax(others)
        return torch.where(largest > 0, largest / self.highest, torch.ones_like(largest))


class BiasRounding(torch.nn.Module):
    """Round a bias to the step of sums of integer products: the input's step times the weights'.

    Such a step isn't small if one channel's inputs or weights are far larger than another's.
    """

    def __init__(self, inputs: ActivationRounding, weights: WeightRounding) -> None:
        super().__init__()
        self._others = (inputs, weights)  # a tuple, so that torch doesn't register them again

    def __deepcopy__(self, memo: dict[int, Any]) -> BiasRounding:
        return BiasRounding(*copy.deepcopy(self._others, memo))

    def forward(self, bias: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return a bias rounded to the steps of its input and of its float weights."""
        inputs, weights = self._others
        step = inputs.scale.detach() * weights.steps(weight)
        rounded = torch.round(bias.detach() / step) * step
        return bias + (rounded - bias.detach())


class PreparedNetwork(torch.nn.Module):
    """Trainable network that answers as it will in int8.

    In both modes it computes as in eval mode: batch normalization is folded in, dropout is off.
    Train it in float32, not under autocast: bfloat16 has fewer digits than the integers.

    Attributes:
        placement: Places of rounding.
        operations: Graph with the parameters and the roundings.
    """

    def __init__(self, exact: Captured, placement: Placement) -> None:
        """Insert roundings into a captured network, which must not be used afterwards.

        Raises:
            CandidateError: the graph lacks an operation or a parameter of the placement.
        """
        super().__init__()
        self.placement = placement
        self.structure = exact.structure
        self.operations = _rounded(exact.operations, placement)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Answer like the original module, with equally nested outputs."""
        return self.structure.of(self.operations(*inputs))

    def ranges(self) -> Iterator[Int8Range]:
        """Yield the learned ranges; for a range that no operation uses, the calibrated one."""
        for i, one in enumerate(self.placement.tensors):
            if not one.nodes:
                yield one.range
                continue
            rounding = self.operations.get_submodule(f"{_TENSORS}.{i}")
            assert isinstance(rounding, ActivationRounding)
            yield replace(one.range, scale=rounding.scale.item())

    def exact(self) -> Captured:
        """Return a copy that doesn't round, with the current parameters."""
        graph = copy.deepcopy(self.operations)
        for node in list(graph.graph.find_nodes(op="call_module")):
            if str(node.target).split(".")[0] in (_TENSORS, _WEIGHTS, _BIASES):
                rounded: Any = node.args[0]
                node.replace_all_uses_with(rounded)
                graph.graph.erase_node(node)
        return Captured(settled(graph), self.structure)


def _rounded(graph: fx.GraphModule, placement: Placement) -> fx.GraphModule:
    """Insert roundings after operations and parameters."""
    nodes = {node.name: node for node in graph.graph.nodes}
    reads = {str(n.target): n for n in graph.graph.find_nodes(op="get_attr")}
    inputs = list(graph.graph.find_nodes(op="placeholder"))
    for i, tensors in enumerate(placement.tensors):
        graph.add_submodule(f"{_TENSORS}.{i}", ActivationRounding(tensors.range))
        for name in tensors.nodes:
            node = _there(nodes, name)
            after = inputs[-1] if node in inputs else node
            _round_behind(graph, node, after, f"{_TENSORS}.{i}")
    for i, weight in enumerate(placement.weights):
        graph.add_submodule(f"{_WEIGHTS}.{i}", WeightRounding(weight.axis, weight.highest))
        node = _there(reads, weight.parameter)
        _round_behind(graph, node, node, f"{_WEIGHTS}.{i}")
    if placement.quantization.quantize_bias:
        _round_biases(graph)
    return settled(graph)


def _round_biases(graph: fx.GraphModule) -> None:
    """Round the bias of each product whose input and weights are rounded."""
    for node in list(graph.graph.nodes):
        parts: Any = node.args
        if len(parts) < 3 or not all(isinstance(part, fx.Node) for part in parts[:3]):
            continue
        x, weight, bias = parts[:3]
        before = [_rounding(graph, part) for part in (x, weight)]
        if bias.op != "get_attr" or len(bias.users) > 1:
            continue
        if isinstance(before[0], ActivationRounding) and isinstance(before[1], WeightRounding):
            name = f"{_BIASES}.{node.name}"
            graph.add_submodule(name, BiasRounding(before[0], before[1]))
            with graph.graph.inserting_before(node):
                made = graph.graph.call_module(name, (bias, weight.args[0]))
            node.args = (x, weight, made, *parts[3:])


def _rounding(graph: fx.GraphModule, node: fx.Node) -> torch.nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _there(nodes: Mapping[str, fx.Node], name: str) -> fx.Node:
    if name not in nodes:
        raise CandidateError(
            f"the network differs from the one that was prepared: it lacks {name!r}"
        )
    return nodes[name]


def _round_behind(graph: fx.GraphModule, node: fx.Node, after: fx.Node, target: str) -> None:
    with graph.graph.inserting_after(after):
        rounding = graph.graph.call_module(target, (node,))
    node.replace_all_uses_with(rounding, delete_user_cb=lambda user: user is not rounding)
