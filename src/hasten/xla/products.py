"""Products with constant weights, in int8 with sums in int32, as the matrix units compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.xla.environment import load_jax

LARGEST = 127
"""Of a symmetric int8: -128 is left out."""


@dataclass(frozen=True)
class Product:
    """A convolution or a matrix product, and what it multiplies.

    Attributes:
        value: What is multiplied, `(batch, channels, ...)` or `(..., channels)`.
        weight: By what: `(out, in / groups, ...)`, or `(out, in)`.
        bias: What is added: `(out,)`, or None.
        window: Of a convolution: strides, paddings, dilations, groups. None of a matrix product.
    """

    value: Any
    weight: Any
    bias: Any
    window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int] | None = None


def product_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
    """Return the product that an operator of torch's is, by its name and what it is called with."""
    packet = ".".join(name.split(".")[:2])
    if packet == "aten.linear":
        return Product(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias"))
    if packet == "aten.mm":
        return Product(args[0], args[1].T, None)
    if packet == "aten.matmul" and args[1].ndim == 2:
        return Product(args[0], args[1].T, None)
    if packet == "aten.addmm" and args[0].ndim == 1 and not kwargs:
        return Product(args[1], args[2].T, args[0])
    if packet == "aten.convolution" and not args[6]:
        stride, padding, dilation = (_spread(args[i], args[0].ndim - 2) for i in (3, 4, 5))
        if args[0].ndim == args[1].ndim:
            return Product(args[0], args[1], args[2], (stride, padding, dilation, int(args[8])))
    return None


def _spread(sizes: Sequence[int], axes: int) -> tuple[int, ...]:
    """Return one size for each axis, where torch allows one for all."""
    return tuple(map(int, sizes if len(sizes) == axes else list(sizes) * axes))


def quantized(product: Product, limit: float, dtype: Any) -> Any:
    """Compute a product in int8: weights by one scale per output channel, its input by one.

    Args:
        product: With a constant weight.
        limit: The largest magnitude that its input has.
        dtype: What the result is given in.

    Source: Jacob et al., arXiv:1712.05877, eq. 1, with zero points of 0.
    """
    jax = load_jax()
    jnp, lax = jax.numpy, jax.lax
    axis = 1 if product.window else -1
    wide = np.asarray(product.weight).astype(np.float32)
    scales = np.abs(wide).max(axis=tuple(range(1, wide.ndim))) / LARGEST
    scales[scales == 0] = 1
    weight = np.round(wide / scales.reshape(-1, *[1] * (wide.ndim - 1))).astype(np.int8)
    step = (limit or 1.0) / LARGEST
    shape = [1] * product.value.ndim
    shape[axis] = -1
    back = (scales * step).reshape(shape)
    bias = None if product.bias is None else product.bias.astype(jnp.float32).reshape(shape)
    value = jnp.clip(jnp.round(product.value.astype(jnp.float32) * (1 / step)), -LARGEST, LARGEST)
    value = value.astype(jnp.int8)
    if product.window is None:
        axes = (((value.ndim - 1,), (1,)), ((), ()))
        total = lax.dot_general(value, jnp.asarray(weight), axes, preferred_element_type=jnp.int32)
    else:
        stride, padding, dilation, groups = product.window

        def convolved(left: Any, right: Any, **settings: Any) -> Any:
            return lax.conv_general_dilated(
                left,
                right,
                stride,
                [(size, size) for size in padding],
                rhs_dilation=dilation,
                feature_group_count=groups,
                **settings,
            )

        def in_integers(left: Any, right: Any) -> Any:
            return convolved(left, right, preferred_element_type=jnp.int32)

        def in_floats(left: Any, right: Any) -> Any:
            # XLA for processors has no kernel for integers: 100 times as long. Sums below 2**24 are exact.
            wide = convolved(
                left.astype(jnp.float32), right.astype(jnp.float32), precision=lax.Precision.HIGHEST
            )
            return wide.astype(jnp.int32)

        total = lax.platform_dependent(
            value, jnp.asarray(weight), cpu=in_floats, default=in_integers
        )
    result = total.astype(jnp.float32) * back
    return (result if bias is None else result + bias).astype(dtype)
