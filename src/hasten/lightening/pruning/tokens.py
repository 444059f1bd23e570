"""Reduce the tokens of a vision transformer by merging the most similar ones in each block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hasten.errors import CandidateError, InputError
from hasten.lightening.pruning.layers import is_attention
from hasten.lightening.pruning.skip import Skip

_PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")


class MergingBlocks(nn.Sequential):
    """Run a transformer's blocks, under their own names, and merge tokens in each.

    Args:
        blocks: Blocks of timm's VisionTransformer.
        merged: Number of tokens that each block merges into others, at most half of those left.
        prefix: Number of leading tokens that are never merged: the class token and registers.

        Source: Bolya et al., Token Merging, arXiv:2210.09461, section 3: merging between attention
        and MLP, by the cosine of keys; attention weights a token by the number it stands for.
    """

    def __init__(self, blocks: Sequence[nn.Module], merged: int, prefix: int) -> None:
        super().__init__(*blocks)
        self.merged, self.prefix = merged, prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run tokens `(n, tokens, width)` through all blocks, and return fewer tokens."""
        sizes: torch.Tensor | None = None
        for block in self:
            if isinstance(block, Skip):
                continue
            part: Any = block
            given, keys = _attended(part.attn, part.norm1(x), sizes)
            x = x + part.drop_path1(part.ls1(given))
            merged = min(self.merged, (x.shape[1] - self.prefix) // 2)
            if merged > 0:
                sizes = torch.ones_like(x[..., :1]) if sizes is None else sizes
                x, sizes = _merged(x, sizes, keys, merged, self.prefix)
            x = x + part.drop_path2(part.ls2(part.mlp(part.norm2(x))))
        return x


def merging(module: nn.Module, merged: int) -> nn.Module:
    """Return a copy of timm's VisionTransformer that merges tokens, with unchanged weight names.

    Args:
        module: Module to copy; it isn't changed.
        merged: Number of tokens that each block merges into others; 0 changes no answer.

    Raises:
        InputError: the module isn't built like timm's VisionTransformer.
    """
    blocks = getattr(module, "blocks", None)
    known = isinstance(blocks, nn.Sequential) and all(
        isinstance(block, Skip)
        or (all(hasattr(block, p) for p in _PARTS) and is_attention(block.attn))  # type: ignore[arg-type]
        for block in blocks
    )
    if not known or not hasattr(module, "num_prefix_tokens"):
        raise InputError(
            f"only timm's VisionTransformer can merge tokens; this is a {type(module).__name__}"
        )
    module = copy.deepcopy(module)
    module.blocks = MergingBlocks(
        list(module.blocks),  # type: ignore[arg-type]
        merged,
        int(module.num_prefix_tokens),  # type: ignore[arg-type]
    )
    return module


def fastest(
    module: nn.Module,
    latency_ns: Callable[[nn.Module], float],
    choices: Sequence[int],
    target_ns: float = 0.0,
) -> tuple[int, float] | None:
    """Return how many tokens to merge in each block, and the measured latency in nanoseconds.

    Merging itself takes time, so with few tokens it may slow a module down.

    Args:
        module: Module that is built like timm's VisionTransformer.
        latency_ns: Function that builds a module and measures its latency in nanoseconds.
        choices: Numbers of tokens to try; the smallest that reaches the target is returned, else
            the fastest.
        target_ns: Latency to reach, in nanoseconds.

    Returns:
        Number of tokens and latency; None if no choice is faster than the unchanged module.

    Raises:
        InputError: the module isn't built like timm's VisionTransformer.
        CandidateError: the unchanged module can't be measured.
    """
    plain_ns = latency_ns(module)
    best: tuple[int, float] | None = None
    for merged in sorted(choices):
        try:
            took_ns = latency_ns(merging(module, merged))
        except CandidateError:
            continue  # the engine can't run the merged module
        if took_ns < (plain_ns if best is None else best[1]):
            best = merged, took_ns
        if took_ns <= min(target_ns, plain_ns):
            break
    return best


def _attended(
    attention: Any, x: torch.Tensor, sizes: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an attention's output, and the tokens' keys `(n, tokens, width)`, the heads' mean."""
    n, tokens, _ = x.shape
    heads, width = attention.num_heads, attention.head_dim
    gate = getattr(attention, "gate", None)
    thirds = attention.qkv(x).reshape(n, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
    q, k, v = thirds.unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    # A token that stands for s tokens draws s times the attention: softmax(scores + log s).
    bias = None if sizes is None else sizes.log().transpose(1, 2)[:, None]
    dropout = attention.attn_drop.p if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    mixed = attention.norm(mixed.transpose(1, 2).reshape(n, tokens, heads * width))
    if gate is not None:
        mixed = mixed * gate(x).sigmoid()
    return attention.proj_drop(attention.proj(mixed)), k.mean(1)


def _merged(
    x: torch.Tensor, sizes: torch.Tensor, keys: torch.Tensor, merged: int, prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge those tokens at even places that are most similar to one at an odd place into that.

    Args:
        x: Tokens of shape `(n, tokens, width)`.
        sizes: Number of original tokens that each token stands for, of shape `(n, tokens, 1)`.
        keys: Keys whose cosine tells the similarity, of shape `(n, tokens, any)`.
        merged: Number of tokens to merge, at least 1.
        prefix: Number of leading tokens that are left alone.

    Returns:
        Tokens and sizes, `merged` fewer: the prefix, remaining even places, odd places.
    """
    width = x.shape[2]
    every = torch.cat([x * sizes, sizes], 2)
    head, body = every[:, :prefix], every[:, prefix:]
    keys = functional.normalize(keys[:, prefix:], dim=2)
    alike = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    closest, partner = alike.max(2)
    order = closest.topk(closest.shape[1], dim=1).indices
    ours, theirs = body[:, ::2], body[:, 1::2]
    gone, stays = order[:, :merged], order[:, merged:]
    # One-hot products, since every engine multiplies and few scatter well.
    places = torch.arange(theirs.shape[1], device=x.device)
    to = (partner.gather(1, gone)[..., None] == places).to(x.dtype)
    theirs = theirs + to.transpose(1, 2) @ _rows(ours, gone)
    every = torch.cat([head, _rows(ours, stays), theirs], 1)
    return every[..., :width] / every[..., width:], every[..., width:]


def _rows(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[2]))
