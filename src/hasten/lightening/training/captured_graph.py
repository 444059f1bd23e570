"""Capture a live module as a graph of the operations that an export makes of it."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from hasten.errors import CandidateError
from hasten.inputs.models.torch_inputs import takes_any_inputs
from hasten.passes.silence import first_line, silenced

_aten = torch.ops.aten
_PRODUCTS = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv2d.padding,
    _aten.linear.default,
)
_NORMALIZATION = _aten._native_batch_norm_legit_no_training.default


class Structure:
    """Nesting of a module's outputs; copies share it, since torch warns when it copies one."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec

    def __deepcopy__(self, _: object) -> Structure:
        return self

    def of(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return tensors nested like the module's outputs."""
        return pytree.tree_unflatten(tensors, self._spec)


class Captured(torch.nn.Module):
    """Module that runs the operations captured from another one.

    Attributes:
        operations: Graph with parameters, which returns the outputs as a flat sequence.
        structure: Nesting of the outputs.
    """

    def __init__(self, operations: fx.GraphModule, structure: Structure) -> None:
        super().__init__()
        self.operations = operations
        self.structure = structure

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Answer like the captured module, with equally nested outputs."""
        return self.structure.of(self.operations(*inputs))


def captured(module: torch.nn.Module, batch: Sequence[torch.Tensor]) -> Captured:
    """Return a module's operations in eval mode, as a graph with its own parameters.

    Batch normalization is folded into the product before it. Operations that an export splits
    are split here too: attention, SiLU, a linear layer on more than two axes.

    Args:
        module: Module to capture; it isn't changed.
        batch: Inputs in forward's order, each of shape `(n, ...)` with n at least 2, since
            torch.export considers a size of 1 constant.

    Raises:
        CandidateError: torch.export can't capture the module with a variable batch size.
    """
    own = copy.deepcopy(module).cpu().eval()
    axis = {0: torch.export.Dim("batch")}
    each: tuple[Any, ...] = tuple(axis for _ in batch)
    shapes = (each,) if takes_any_inputs(own) else each
    try:
        with silenced():
            program = torch.export.export(own, tuple(batch), dynamic_shapes=shapes)
            program = program.run_decompositions(_SPLIT)
            graph = program.module(check_guards=False)
    except Exception as error:  # torch.export raises what its parts and the module's code raise
        raise CandidateError(
            f"torch can't capture the network with a variable batch size: {first_line(error)}"
        ) from error
    trained = {name: p.requires_grad for name, p in module.named_parameters()}
    for name, parameter in graph.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    graph.graph.set_codegen(fx.graph.CodeGen())
    _split_linear(graph)
    _fold(graph)
    for node in graph.graph.nodes:
        node.meta.clear()
    return Captured(settled(graph), Structure(program.call_spec.out_spec))


def settled(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a graph that supports both modes, without unused operations and parameters."""
    graph.graph.eliminate_dead_code()
    return fx.GraphModule(graph, graph.graph)


def constant(graph: fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return the parameter or buffer that a node reads; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(graph)
    return found if isinstance(found, torch.Tensor) else None


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute attention as two matrix products; queries and keys share the scale as in exports."""
    if attn_mask is not None or is_causal or enable_gqa:
        return NotImplemented
    share = math.sqrt(scale or 1 / math.sqrt(query.shape[-1]))
    products = torch.matmul(query * share, (key * share).transpose(-2, -1))
    return torch.matmul(torch.softmax(products, -1), value)


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


_SPLIT: dict[Any, Any] = {
    _aten.scaled_dot_product_attention.default: _attention,
    _aten.silu.default: _silu,
}


def _split_linear(graph: fx.GraphModule) -> None:
    """Split linear layers on more than two axes into a product and the addition of the bias."""
    for node in list(graph.graph.find_nodes(op="call_function", target=_aten.linear.default)):
        parts: Any = node.args
        x, weight, bias = (*parts, None)[:3]
        if x.meta["val"].ndim <= 2:
            continue
        with graph.graph.inserting_before(node):
            turned = graph.graph.call_function(_aten.permute.default, (weight, [1, 0]))
            made = graph.graph.call_function(_aten.matmul.default, (x, turned))
            if bias is not None:
                made = graph.graph.call_function(_aten.add.Tensor, (made, bias))
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def _fold(graph: fx.GraphModule) -> None:
    """Fold batch normalization into the products before it.

    Source: Jacob et al., arXiv:1712.05877, section 3.2, with moving averages as the statistics.
    """
    for node in list(graph.graph.find_nodes(op="call_function", target=_NORMALIZATION)):
        product: Any = node.args[0]
        if product.target not in _PRODUCTS or len(product.users) > 1:
            continue
        if any(user.args[1] != 0 for user in node.users) or not _fold_into(graph, product, node):
            continue
        for user in list(node.users):
            user.replace_all_uses_with(product)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)


def _fold_into(graph: fx.GraphModule, product: fx.Node, node: fx.Node) -> bool:
    """Fold a normalization into a product; return False if the product's constants are shared."""
    parts: Any = product.args
    weight, bias = parts[1], (*parts, None)[2]
    values, offset = constant(graph, weight), constant(graph, bias)
    gamma, beta, mean, variance = (constant(graph, part) for part in node.args[1:5])
    noise: Any = node.args[6]
    if values is None or mean is None or variance is None or (bias is None) != (offset is None):
        return False
    if len(weight.users) > 1:
        return False
    gain = torch.rsqrt(variance + noise) * (1.0 if gamma is None else gamma)
    shift = ((0.0 if offset is None else offset) - mean) * gain + (0.0 if beta is None else beta)
    scaled = values * gain.reshape(-1, *[1] * (values.ndim - 1))
    _keep(graph, str(weight.target), scaled, values.requires_grad)
    name = f"{weight.target}_shift"
    _keep(graph, name, shift, values.requires_grad)
    with graph.graph.inserting_before(product):
        read = graph.graph.get_attr(name)
    product.args = (*parts[:2], read, *parts[3:])
    return True


def _keep(graph: fx.GraphModule, target: str, values: torch.Tensor, learns: bool) -> None:
    """Store a parameter under a dotted name."""
    *path, name = target.split(".")
    place = graph.get_submodule(".".join(path))
    setattr(place, name, torch.nn.Parameter(values.detach().clone(), requires_grad=learns))
