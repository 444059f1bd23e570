"""Layers inside that a network and its teacher both have: where shapes agree, answers can be compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from hasten.lightening.training.network import Named, Network
from hasten.lightening.training.objective import relative_error

MOST = 8
"""Layers compared, at most: spread over the depth, the last always among them."""


def shared_layers(own: Network, teacher: Network, inputs: Named) -> tuple[str, ...]:
    """Return the names of layers whose outputs have one shape in both, first to last.

    Args:
        own: What is to learn.
        teacher: What it learns from.
        inputs: A batch.
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
    """Note what layers give; what is yielded returns it, of the last call."""
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
    """Return the mean over layers of the error relative to the teacher's variance."""
    return torch.stack(
        [relative_error(own[name].float(), tensor.float()) for name, tensor in wanted.items()]
    ).mean()
