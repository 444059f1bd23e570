"""Numbers of a torch module that a call of it changes, such as a counter: no exported file changes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def states_of(module: torch.nn.Module) -> dict[str, Any]:
    """Return copies of a module's buffers and of its attributes that are numbers, texts or tensors.

    Parameters are left out: hardly a call changes these, and copies of them take memory. Sparse and nested tensors, and
    those without numbers, can't be compared, and are left out as well.

    Args:
        module: Module.

    Returns:
        Name with the parts that it is in, such as "layer.count" -> copy of a tensor, or a number's text.
    """
    return {
        name: value if isinstance(value, str) else value.clone() for name, value in _values(module)
    }


def changed_since(before: Mapping[str, Any], module: torch.nn.Module) -> list[str]:
    """Return the names of what isn't as it was, in order.

    Args:
        before: Copies that `states_of` returned.
        module: The same module, after a call.
    """
    return [name for name, value in _values(module) if not _same(before.get(name), value)]


def _values(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names with a module's own tensors, and with the texts of its numbers."""
    import torch

    for path, part in module.named_modules():
        own = {**vars(part), **dict(part.named_buffers(recurse=False))}
        for name, value in own.items():
            place = f"{path}.{name}" if path else name
            if isinstance(value, (int, float, str)):
                yield place, repr(value)
            elif isinstance(value, torch.Tensor):
                dense = value.layout is torch.strided and not value.is_nested
                if dense and not value.is_meta:
                    yield place, value.detach()


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or isinstance(one, str):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
