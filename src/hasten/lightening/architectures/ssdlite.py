"""Build torchvision's SSDLite up to its heads, since its decoding has no fixed shapes to export."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import nn

from hasten.errors import InputError

VARIANCES = (10.0, 10.0, 5.0, 5.0)
"""Factors on centres and sizes in the regression targets. Source: torchvision, BoxCoder."""


class SsdLite(nn.Module):
    """SSDLite with MobileNetV3-Large as its backbone.

    Args:
        classes: Number of classes without the background.
        channels: Number of the input's channels.
        width: Factor on the channels of the backbone and of the extra blocks.
        sides: Height and width of the input, in pixels.

    Source: Sandler et al., arXiv:1801.04381, section 6.2; Howard et al., arXiv:1905.02244, 6.3.
    """

    defaults: torch.Tensor

    def __init__(self, classes: int, channels: int, width: float, sides: tuple[int, int]) -> None:
        super().__init__()
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.ssdlite import SSDLiteHead

        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        self.backbone, given = _backbone(channels, width, norm)
        self.sides = sides
        with torch.device("cpu"):
            boxes = DefaultBoxGenerator([[2, 3] for _ in given], min_ratio=0.2, max_ratio=0.95)
            defaults = boxes._grid_default_boxes(_maps(sides, len(given)), list(sides))
        self.head = SSDLiteHead(given, boxes.num_anchors_per_location(), classes + 1, norm)
        self.register_buffer("defaults", defaults)

    def heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the raw heads by torchvision's names.

        They are "bbox_regression" `(n, k, 4)` and "cls_logits" `(n, k, 1 + classes)`, where class 0
        is the background.
        """
        found: dict[str, torch.Tensor] = self.head(list(self.backbone(2 * x - 1).values()))
        return found

    def candidates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all boxes `(n, k, 4)`, as corners in pixels of `x`, and scores `(n, k, classes)`.

        Source: Liu et al., SSD, arXiv:1512.02325, section 2.2.
        """
        heads = self.heads(x)
        moved = heads["bbox_regression"] / x.new_tensor(VARIANCES)
        defaults = self.defaults.to(x.device)
        centres = defaults[:, :2] + moved[..., :2] * defaults[:, 2:]
        halves = moved[..., 2:].exp() * defaults[:, 2:] / 2
        size = x.new_tensor([self.sides[1], self.sides[0]])
        boxes = torch.cat([(centres - halves) * size, (centres + halves) * size], 2)
        return boxes, heads["cls_logits"].softmax(2)[..., 1:]


def _maps(sides: tuple[int, int], count: int) -> list[list[int]]:
    """Return height and width of each feature map: a 16th of the image's, then halved each time."""
    found = [[-(-side // 16) for side in sides]]
    while len(found) < count:
        found.append([-(-side // 2) for side in found[-1]])
    return found


def _backbone(channels: int, width: float, norm: Any) -> tuple[nn.Module, list[int]]:
    """Return MobileNetV3-Large with SSDLite's extra blocks, and its feature maps' channels."""
    from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet

    mobilenetv3 = importlib.import_module("torchvision.models.mobilenetv3")
    try:
        settings, last = mobilenetv3._mobilenet_v3_conf(
            "mobilenet_v3_large", width_mult=width, reduced_tail=True
        )
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"this version of torchvision can't build SSDLite in other widths ({error}): "
            "install torchvision 0.21 or newer"
        ) from error
    blocks = mobilenetv3.MobileNetV3(settings, last, norm_layer=norm).features
    first = blocks[0][0]
    if channels != 3:
        blocks[0][0] = nn.Conv2d(channels, first.out_channels, 3, 2, 1, bias=False)
    for part in blocks.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.03)  # as torchvision does without loaded weights
    last_strided = [i for i, block in enumerate(blocks) if getattr(block, "_is_cn", False)][-1]
    extractor = SSDLiteFeatureExtractorMobileNet(blocks, last_strided, norm, width_mult=width)
    extra = [max(16, int(depth * width)) for depth in (512, 256, 256, 128)]
    own = [blocks[last_strided].block[0].out_channels, blocks[-1].out_channels]
    return extractor, [*own, *extra]
