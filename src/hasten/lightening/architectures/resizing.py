"""Wrap a network so that it shrinks its input first."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Resized(nn.Module):
    """Network that takes larger images than it works on.

    It averages over whole pixels down to less than twice the inner size, then interpolates
    linearly: no detail is skipped, and every runtime has both operators.

    Args:
        network: Network that takes `(n, channels, *inner)`; boxes that it returns are scaled back.
        outer: Height and width of the input, in pixels.
        inner: Height and width of the network's own input, in pixels.
    """

    def __init__(self, network: nn.Module, outer: tuple[int, int], inner: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.inner = inner
        self.window = tuple(max(1, o // i) for o, i in zip(outer, inner, strict=True))
        self.interpolates = tuple(o // w for o, w in zip(outer, self.window, strict=True)) != inner
        self.scales = (outer[1] / inner[1], outer[0] / inner[0]) * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Resize images, and return the network's answers."""
        if self.window != (1, 1):
            x = functional.avg_pool2d(x, self.window)
        if self.interpolates:
            x = functional.interpolate(x, self.inner, mode="bilinear", align_corners=False)
        answer: torch.Tensor | dict[str, torch.Tensor] = self.network(x)
        if isinstance(answer, dict):
            scales = answer["boxes"].new_tensor(self.scales)
            return {**answer, "boxes": answer["boxes"] * scales}
        return answer


def inner_size(outer: tuple[int, int], pixels: int, multiple: int) -> tuple[int, int]:
    """Return height and width, multiples of `multiple`, with a longer side of about `pixels`."""
    scale = pixels / max(outer)
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in outer)
    return height, width
