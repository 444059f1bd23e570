"""Attention as one operator, since torch's own decomposition reads every score five times."""

from __future__ import annotations

from typing import Any

from hasten.engines.tpu.environment import load_jax
from hasten.errors import CandidateError


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute torch's `scaled_dot_product_attention` on JAX arrays, with the softmax in float32.

    Args:
        query: Queries `(..., heads, length, width)`.
        key: Keys `(..., heads, other length, width)`.
        value: Values `(..., heads, other length, depth)`.
        attn_mask: Booleans that are true where to attend, or floats to add to the scores; None
            without.
        dropout_p: Dropout, which must be 0, as it is outside of training.
        is_causal: Whether each position attends only to itself and earlier ones.
        scale: Factor of the scores; by default 1 / sqrt(width).
        enable_gqa: Whether several heads of queries share one head of keys and values.

    Returns:
        Attention output `(..., heads, length, depth)`, zeros where the mask allows no position.

    Raises:
        CandidateError: there is dropout.

    Source: Vaswani et al., arXiv:1706.03762, eq. 1.
    """
    jnp = load_jax().numpy
    if dropout_p:
        raise CandidateError(f"attention has dropout of {dropout_p}: export the model in eval mode")
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(one, shared, axis=-3) for one in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    turned = jnp.swapaxes(key, -1, -2)
    scores = jnp.matmul(query, turned, preferred_element_type=jnp.float32) * scale
    if is_causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.astype(jnp.float32)
    largest = scores.max(axis=-1, keepdims=True)
    if attn_mask is not None:
        largest = jnp.where(jnp.isneginf(largest), 0, largest)
    powers = jnp.exp(scores - largest)
    total = powers.sum(axis=-1, keepdims=True)
    if attn_mask is not None:
        total = jnp.where(total == 0, 1, total)
    return jnp.matmul((powers / total).astype(value.dtype), value)
