"""Compare a network with its teacher at inner layers whose outputs have equal shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from hasten.lightening.training.network import Named, Network
from hasten.lightening.training.objective import relative_error

MOST = 8
"""Largest number of layers to compare; they are spread over the depth and include the last."""


def shared_layers(own: Network, teacher: Network, inputs: Named) -> tuple[str, ...]:
    """Return the names of layers whose outputs have equal shapes in both networks, first to last.

    Args:
        own: Network that learns.
        teacher: Network to learn from.
        inputs: Batch of inputs by name.
    """
    layers = [name for name, m in teacher.module.named_modules() if name and _is_leaf(m)]
    both = set(layers) & {name for name, _ in own.module.named_modules()}
    shapes = []
    for network in (own, teacher):
        with torch.no_grad(), watched(network.module, tuple(both)) as seen:
            network(inputs)
        shapes.append({name: tensor.shape for name, tensor in seen().items()})
    found = [n for n in layers if n in shapes[0] and shapes[0][n] == shapes[1].get(n)]
    if len(found) <= MOST:
        return tuple(found)
    step = (len(found) - 1) / (MOST - 1)
    return tuple(found[round(i * step)] for i in range(MOST))


def _is_leaf(module: torch.nn.Module) -> bool:
    return not any(True for _ in module.children()) and any(True for _ in module.parameters())


@contextlib.contextmanager
def watched(
    module: torch.nn.Module, layers: tuple[str, ...]
) -> Iterator[Callable[[], dict[str, torch.Tensor]]]:
    """Record layers' outputs; the yielded function returns those of the last call, by layer."""
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(_: torch.nn.Module, __: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                seen[name] = output

        return hook

    parts = dict(module.named_modules())
    hooks = [parts[name].register_forward_hook(note(name)) for name in layers]
    try:
        yield lambda: dict(seen)
    finally:
        for hook in hooks:
            hook.remove()


def apart(own: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the layers' mean error relative to the variance of the teacher's outputs, a scalar."""
    return torch.stack(
        [relative_error(own[name].float(), tensor.float()) for name, tensor in wanted.items()]
    ).mean()
