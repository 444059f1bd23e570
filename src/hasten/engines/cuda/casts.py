"""Casts of a program's weights under autocast, made once instead of at each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Answer = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Casts:
    """Counts of a program's casts of weights.

    Attributes:
        once: Number of casts that were made once, for all requests.
        each_request: Number of casts that autocast still makes at each request.
    """

    once: int = 0
    each_request: int = 0


def cast_once(module: Any, half: Any, answer: Answer, given: Sequence[Any]) -> Casts:
    """Give the operators of a program the weights that autocast would cast for them at each request.

    An operator of autocast's list for lower precision casts what it reads. One that is given a
    weight in that precision already casts nothing and computes the same. So the program is run
    once, and it is observed which operators cast which weights and read them in no other way; those
    get the casts that were observed. The other operators keep the weights as they are. The
    program must answer the same afterwards, bit for bit; otherwise it is left as it was.

    Args:
        module: Program as a graph, on its device; it is changed.
        half: Element type that autocast casts to.
        answer: Function that runs the module under autocast.
        given: Tensors of a request, in the order of the program's inputs.
    """
    constants = _constants(module.graph)
    with torch.inference_mode(False), torch.no_grad():
        seen = _Observer(module, half, constants)
        with torch.autocast(given[0].device.type, half, cache_enabled=False):
            seen.run(*given, enable_io_processing=False)
        before = answer(*given)
        replaced = _replaced(module, seen.casts)
        if not _same(before, answer, given):
            for node, constant, new in replaced:
                node.replace_input_with(new, constant)
            module.recompile()
            return Casts(0, seen.left + len(replaced))
        _drop_unused(module)
        return Casts(len(replaced), seen.left)


def _constants(graph: Any) -> set[Any]:
    """Return the nodes that are the same at each request; none where the program writes to one."""
    constants: set[Any] = set()
    for node in graph.nodes:
        inputs = set(node.all_input_nodes)
        if node.op == "get_attr":
            constants.add(node)
        elif isinstance(node.target, torch._ops.OpOverload):
            if node.target._schema.is_mutable and inputs & constants:
                return set()
            random = torch.Tag.nondeterministic_seeded in node.target.tags
            if inputs and inputs <= constants and not random:
                constants.add(node)
    return constants


class _Observer(torch.fx.Interpreter):
    """Run of a program that finds the operators which cast constants and only read the casts.

    Attributes:
        casts: Operators with the constant that each casts, and what the cast gave.
        left: Number of casts by operators that must keep the constant as it is.
    """

    def __init__(self, module: Any, half: Any, constants: set[Any]) -> None:
        super().__init__(module)
        self.casts: list[tuple[Any, Any, Any]] = []
        self.left = 0
        self._half, self._constants = half, constants
        self._values: dict[int, tuple[Any, Any]] = {}
        """Constants and their values by the values' ids, which no other gets while these are kept."""

    def run_node(self, n: Any) -> Any:
        with _Reads(self._values, self._half) as reads:
            value = super().run_node(n)
        if n in self._constants and isinstance(value, torch.Tensor):
            self._values[id(value)] = n, value
        for constant, cast in reads.casts.items():
            own = isinstance(n.target, torch._ops.OpOverload) and constant in n.all_input_nodes
            if own and constant not in reads.otherwise:
                self.casts.append((n, constant, cast))
            else:
                self.left += 1
        return value


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watch over which constants an operator casts, and which it reads otherwise."""

    def __init__(self, values: dict[int, tuple[Any, Any]], half: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values, self._half = values, half
        self.casts: dict[Any, Any] = {}
        self.otherwise: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        read = [self._values.get(id(one)) for one in tree_leaves((args, kwargs))]
        for constant, _ in (one for one in read if one is not None):
            if func is torch.ops.aten._to_copy.default and value.dtype == self._half:
                self.casts[constant] = value
            else:
                self.otherwise.add(constant)
        return value


def _replaced(module: Any, casts: Sequence[tuple[Any, Any, Any]]) -> list[tuple[Any, Any, Any]]:
    """Let each operator read the cast of its constant; return it with both, the new one last."""
    made: dict[Any, Any] = {}
    replaced = []
    for node, constant, cast in casts:
        if constant not in made:
            name = f"_cast_{len(made)}"
            module.register_buffer(name, cast, persistent=False)
            with module.graph.inserting_after(constant):
                made[constant] = module.graph.get_attr(name)
        node.replace_input_with(constant, made[constant])
        replaced.append((node, constant, made[constant]))
    module.recompile()
    return replaced


def _same(before: tuple[Any, ...], answer: Answer, given: Sequence[Any]) -> bool:
    try:
        after = answer(*given)
    except Exception:  # an operator that doesn't take weights of another type than its inputs
        return False
    return len(before) == len(after) and all(
        old.dtype == new.dtype
        and torch.equal(torch.nan_to_num(old), torch.nan_to_num(new))
        and torch.equal(torch.isnan(old), torch.isnan(new))
        for old, new in zip(before, after, strict=True)
    )


def _drop_unused(module: Any) -> None:
    """Free the weights that nothing reads any more."""
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function") and not node.users and not node.is_impure():
            graph.erase_node(node)
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in set(names) - read:
        owner, _, own = name.rpartition(".")
        delattr(module.get_submodule(owner), own)
    module.recompile()
