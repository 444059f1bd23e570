"""Tensors of torch in files from others, held against the memory that they would take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_UNASKED_BYTES = 64 << 20
"""Bytes that all tensors of a file may claim beyond what it has, for masks that a module expands."""


def unlike_its_shape(tensors: Iterable[tuple[Any, Any]]) -> str:
    """Say which tensor's numbers aren't those that its shape claims, and why; "" if there is none.

    A tensor that repeats one number along an axis takes no memory until somebody copies it. Several tensors may
    share their numbers, as tied weights do.

    Args:
        tensors: Names and tensors.
    """
    import torch

    left = _UNASKED_BYTES
    for name, one in tensors:
        if one.layout != torch.strided or one.is_quantized or one.device.type == "meta":
            return f"{name!r:.100} are sparse, quantized, or on torch's meta device"
        claimed, held = one.numel() * one.element_size(), one.untyped_storage().nbytes()
        left -= max(0, claimed - held)
        if left < 0:
            return (
                f"{name!r:.100} have the shape {[*one.shape]}, of {claimed:,} bytes, but the file has {held:,}: "
                "call .contiguous() on it"
            )
    return ""


def stored_bytes(tensors: Iterable[Any]) -> int:
    """Return the number of bytes of tensors, those that several share once."""
    storages = (one.untyped_storage() for one in tensors)
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())
