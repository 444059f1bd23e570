"""Turn the outputs of a network's heads into detections, and letterbox images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    pass

CANDIDATES = 64
"""Number of an image's best boxes that are kept before overlapping ones are removed."""
FLOOR = 0.25
"""Least score of a detection."""
OVERLAP = 0.45
"""IoU above which the worse of two boxes of a class is removed."""
ROUNDS = 4
"""Number of suppression rounds: a removed box removes no other, in chains of up to this length."""


class Detector(nn.Module):
    """Network whose answers are detections.

    Returns `boxes` `(n, k, 4)`, corners x0, y0, x1, y1 in pixels of the input; `scores` `(n, k)`,
    0 where there is no detection; and `labels` `(n, k)`, the number of the class, -1 where there is
    no detection. k is 64, or the network's number of boxes if that is smaller. The heads aren't
    outputs, since the outputs of every sample are kept on disk for comparison.

    Args:
        network: Network with a method `candidates` that returns all boxes `(n, all, 4)` and their
            scores `(n, all, classes)` for images, such as `Darknet` and `SsdLite`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the detections in images.

        Args:
            x: Letterboxed images in [0, 1] of dtype float32 and shape `(n, channels, height, width)`.

        Returns:
            `boxes`, `scores` and `labels`, as the class describes them.
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
    """Return `(n, k)`: 1 where no better remaining box of the class overlaps too much, else 0.

    Args:
        boxes: Boxes of shape `(n, k, 4)`, best first.
        labels: Class numbers of shape `(n, k)`.
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
