"""Tensors of torch in files from others, held against the memory that they would take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_UNASKED_BYTES = 1 << 20
"""Bytes that any tensor may claim, such as a mask that a module expands."""


def unlike_its_shape(tensor: Any) -> str:
    """Say why a tensor's numbers aren't those that its shape claims; "" if they are.

    A tensor that repeats one number along an axis takes no memory until somebody copies it. Several tensors may
    share their numbers, as tied weights do.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return "are sparse, quantized, or on torch's meta device"
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > max(held, _UNASKED_BYTES):
        return f"have the shape {[*tensor.shape]}, of {claimed:,} bytes, but the file has {held:,}"
    return ""


def stored_bytes(tensors: Iterable[Any]) -> int:
    """Return the number of bytes of tensors, those that several share once."""
    storages = (one.untyped_storage() for one in tensors)
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())
