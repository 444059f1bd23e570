"""A wide network for images of which one corner is bright, that far smaller ones do as well as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from hasten.data.arrays import ArrayDataset
from hasten.metrics.top_k import Top1
from hasten.tensors import Array
from hasten.training.loop import Recipe, Trainer
from hasten.training.network import Network
from hasten.training.objective import Objective


def corners(count: int, seed: int) -> tuple[Array, Array]:
    """Return noisy images `(n, 1, 16, 16)` of which one quarter is bright, and which."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, 16, 16), dtype=np.float32)
    labels = rng.integers(4, size=count)
    for i, label in enumerate(labels):
        row, column = 8 * (label // 2), 8 * (label % 2)
        x[i, 0, row : row + 8, column : column + 8] += 1
    return x, labels


def wide(width: int = 256) -> nn.Module:
    """Return a network far wider than the task needs."""
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *(*block(1, width), *block(width, width), nn.MaxPool2d(2), *block(width, width)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4)),
    )


def taught(folder: Path) -> nn.Module:
    """Return the wide network, trained for a few seconds."""
    module = wide()
    known, judged = (
        ArrayDataset({"input": x}, labels) for x, labels in (corners(600, 0), corners(200, 1))
    )
    Trainer(
        Network(module, ("input",)),
        None,
        known,
        judged,
        Top1(),
        Objective(),
        Recipe(seconds=8, epochs=3, batch=32, rate=5e-3),
        folder / "teacher.pt",
    ).train()
    return module
