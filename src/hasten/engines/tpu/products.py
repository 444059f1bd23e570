"""Products with constant weights, in int8 with sums in int32, as the matrix units compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.engines.tpu.environment import load_jax

LARGEST = 127
"""Largest symmetric int8, where -128 is left out."""


@dataclass(frozen=True)
class SeenRange:
    """Smallest and largest number that were seen.

    Attributes:
        low: Smallest number.
        high: Largest number.
    """

    low: float
    high: float


@dataclass(frozen=True)
class TpuProduct:
    """Convolution or matrix product, with its operands.

    Attributes:
        value: Input, `(batch, channels, ...)` or `(..., channels)`.
        weight: Weights, `(out, in / groups, ...)` or `(out, in)`.
        bias: Bias `(out,)`, or None.
        window: Strides, paddings, dilations and groups of a convolution; None for a matrix product.
    """

    value: Any
    weight: Any
    bias: Any
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int] | None = None

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.window is not None and self.window[3] > 1 and self.weight.shape[1] == 1


def product_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TpuProduct | None:
    """Return the product that a torch operator computes, by its name and arguments; else None."""
    packet = ".".join(name.split(".")[:2])
    if packet == "aten.linear":
        return TpuProduct(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias"))
    if packet == "aten.mm":
        return TpuProduct(args[0], args[1].T, None)
    if packet == "aten.matmul" and args[1].ndim == 2:
        return TpuProduct(args[0], args[1].T, None)
    if packet == "aten.addmm" and args[0].ndim == 1 and not kwargs:
        return TpuProduct(args[1], args[2].T, args[0])
    if packet == "aten.convolution" and not args[6]:
        stride, padding, dilation = (_spread(args[i], args[0].ndim - 2) for i in (3, 4, 5))
        if args[0].ndim == args[1].ndim:
            return TpuProduct(args[0], args[1], args[2], (stride, padding, dilation, int(args[8])))
    return None


def _spread(sizes: Sequence[int], axes: int) -> tuple[int, ...]:
    """Return one size per axis, where torch allows a single size for all."""
    return tuple(map(int, sizes if len(sizes) == axes else list(sizes) * axes))


def in_bfloat16(product: TpuProduct) -> Any:
    """Compute a product of bfloat16 numbers with sums in float32, as the matrix units do.

    Returns:
        Product in float32, left for the next operator to round or not.
    """
    jnp = load_jax().numpy
    value, weight = product.value.astype(jnp.bfloat16), product.weight.astype(jnp.bfloat16)
    total = _multiplied(value, weight, product.window, jnp.float32)
    return total if product.bias is None else total + _along(product.bias, product)


def quantized(product: TpuProduct, seen: SeenRange) -> Any:
    """Compute a product in int8, with a scale per output channel of weights and one of the input.

    Weights are around 0. So is the input of a padded convolution, as padding is 0. Any other input
    has a zero point, whose part in each sum is known beforehand.

    Args:
        product: Product with a constant weight.
        seen: Range of the product's input.

    Returns:
        Product in float32.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1 and 7.
    """
    jax = load_jax()
    jnp = jax.numpy
    wide = np.asarray(product.weight).astype(np.float32)
    scales = np.abs(wide).max(axis=tuple(range(1, wide.ndim))) / LARGEST
    scales[scales == 0] = 1
    rounded = np.round(wide / scales.reshape(-1, *[1] * (wide.ndim - 1))).astype(np.int8)
    step, zero = _steps(seen, around_zero=product.window is not None and any(product.window[1]))
    value = jnp.round(product.value.astype(jnp.float32) * (1 / step)) + zero
    value = jnp.clip(value, -LARGEST - (zero != 0), LARGEST).astype(jnp.int8)
    weight = jnp.asarray(rounded)

    def in_integers(left: Any, right: Any) -> Any:
        return _multiplied(left, right, product.window, jnp.int32)

    def in_floats(left: Any, right: Any) -> Any:
        # XLA for processors has no int8 kernel for it and takes 40 times as long. Sums below 2**24
        # are exact.
        wide = (left.astype(jnp.float32), right.astype(jnp.float32))
        return _multiplied(*wide, product.window, jnp.float32, precise=True).astype(jnp.int32)

    if product.window is None:
        total = in_integers(value, weight)
    else:
        total = jax.lax.platform_dependent(value, weight, cpu=in_floats, default=in_integers)
    back, known = scales * step, rounded.astype(np.int64).sum(axis=tuple(range(1, wide.ndim)))
    offset = -zero * known * back
    if product.bias is not None:
        offset = offset + np.asarray(product.bias).astype(np.float32)
    return total.astype(jnp.float32) * _along(back, product) + _along(offset, product)


def _steps(seen: SeenRange, *, around_zero: bool) -> tuple[float, int]:
    """Return the step between int8 values and the value for 0, for a range widened to include 0."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if around_zero or high == low:
        return max(-low, high) / LARGEST or 1.0, 0
    step = (high - low) / 255
    return step, round(-low / step) - 128


def _multiplied(value: Any, weight: Any, window: Any, gives: Any, *, precise: bool = False) -> Any:
    """Multiply and sum in the type `gives`; `window` is that of a `TpuProduct`."""
    lax = load_jax().lax
    precision = lax.Precision.HIGHEST if precise else None
    if window is None:
        axes = (((value.ndim - 1,), (1,)), ((), ()))
        return lax.dot_general(
            value, weight, axes, precision=precision, preferred_element_type=gives
        )
    stride, padding, dilation, groups = window
    return lax.conv_general_dilated(
        value,
        weight,
        stride,
        [(size, size) for size in padding],
        rhs_dilation=dilation,
        feature_group_count=groups,
        precision=precision,
        preferred_element_type=gives,
    )


def _along(values: Any, product: TpuProduct) -> Any:
    """Return one float32 per output channel, shaped to broadcast over the product's result."""
    jnp = load_jax().numpy
    shape = [1] * product.value.ndim
    shape[1 if product.window else -1] = -1
    return jnp.asarray(values, jnp.float32).reshape(shape)
