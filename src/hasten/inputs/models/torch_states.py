"""Numbers of a torch module that a call of it changes, such as a counter: no exported file changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def states_of(module: torch.nn.Module) -> dict[str, Any]:
    """Return copies of a module's buffers and of its attributes that are numbers, texts or tensors.

    Parameters are left out: hardly a call changes these, and copies of them take memory.

    Args:
        module: Module.

    Returns:
        Name with the parts that it is in, such as "layer.count" -> copy of a tensor, or a number's text.
    """
    import torch

    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        own = {**vars(part), **dict(part.named_buffers(recurse=False))}
        for name, value in own.items():
            place = f"{path}.{name}" if path else name
            if isinstance(value, torch.Tensor):
                found[place] = value.detach().clone()
            elif isinstance(value, (int, float, str)):
                found[place] = repr(value)
    return found


def changed_since(before: Mapping[str, Any], module: torch.nn.Module) -> list[str]:
    """Return the names of what isn't as it was, in order.

    Args:
        before: Copies that `states_of` returned.
        module: The same module, after a call.
    """
    return [name for name, value in states_of(module).items() if not _same(before.get(name), value)]


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or isinstance(one, str):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
