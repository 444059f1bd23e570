"""Detectors: what follows a network's heads, so that the answers are detections; and letterboxing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hasten.core.tensors import Array

if TYPE_CHECKING:
    from PIL import Image

CANDIDATES = 64
"""The best boxes of an image, of which overlapping ones are then left out."""
FLOOR = 0.25
"""No detection has a lower score."""
OVERLAP = 0.45
"""From this IoU on, the better of two boxes of a class stands for both."""
ROUNDS = 4
"""A box that is left out leaves none out itself: true of chains of so many boxes."""


class Detector(nn.Module):
    """A network with what follows its heads, so that the answers are detections.

    Gives `boxes` `(n, k, 4)`, corners x0, y0, x1, y1 in pixels of the input; `scores` `(n, k)`,
    0 where there is no detection; and `labels` `(n, k)`, the class's number, -1 where there is none.
    k is 64, or how many boxes the network has. The heads themselves are no outputs: every sample's
    would be kept on disk to compare with.

    Args:
        network: Has a method `candidates`: from images, every box `(n, all, 4)` and its scores
            `(n, all, classes)`; such as `Darknet` and `SsdLite`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Detect.

        Args:
            x: float32 `(n, channels, height, width)`, letterboxed, in [0, 1].
        """
        boxes, every = self.network.candidates(x)
        scores, labels = every.max(dim=2)
        scores, best = scores.topk(min(CANDIDATES, boxes.shape[1]), dim=1)
        labels = labels.gather(1, best)
        boxes = boxes.gather(1, best[:, :, None].expand(-1, -1, 4))
        found = standing(boxes, labels) * (scores > FLOOR)
        return {
            "boxes": boxes * found[:, :, None],
            "scores": scores * found,
            "labels": torch.where(found > 0, labels, -1),
        }


def standing(boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return `(n, k)`: 1 where no better box of the class that stands overlaps too much, else 0.

    Args:
        boxes: `(n, k, 4)`, best first.
        labels: `(n, k)`.
    """
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(3)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(2)
    union = areas[:, :, None] + areas[:, None, :] - shared
    better = torch.ones(boxes.shape[1], boxes.shape[1], device=boxes.device).triu(1)
    same = (labels[:, :, None] == labels[:, None, :]).to(boxes.dtype)
    leaves_out = (shared > OVERLAP * union).to(boxes.dtype) * same * better
    stands = torch.ones_like(boxes[..., 0])
    for _ in range(ROUNDS):
        stands = 1 - (leaves_out * stands[:, :, None]).amax(1)
    return stands


def letterbox(image: Image.Image, size: int) -> Array:
    """Fit an image into a square of grey without changing its aspect; float32 `(3, size, size)`."""
    from PIL import Image

    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size), (128, 128, 128))
    fitted = image.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(fitted, ((size - width) // 2, (size - height) // 2))
    return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1) / 255)
