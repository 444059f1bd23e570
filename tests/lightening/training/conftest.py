"""A small task that a small network learns in a second: which corner of an image is bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.top_k import Top1
from hasten.lightening.training.loop import Recipe, Trainer
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Objective
from hasten.lightening.training.teacher import Teacher

AMPLE_S = 1e6
"""Time of a training that its epochs end: by the clock, a busy machine would change its learning rate."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def corners(count: int, seed: int = 0, *, labelled: bool = True) -> ArrayDataset:
    """Return noisy images `(n, 1, 8, 8)` of which one quarter is bright, and which."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, 8, 8), dtype=np.float32)
    labels = rng.integers(4, size=count)
    for i, label in enumerate(labels):
        row, column = 4 * (label // 2), 4 * (label % 2)
        x[i, 0, row : row + 4, column : column + 4] += 1
    return ArrayDataset({"x": x}, labels if labelled else None)


def cnn(width: int = 8, seed: int = 0) -> nn.Module:
    """Return a small network with normalization."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4)),
    )


def trainer(
    folder: Path, module: nn.Module, teacher: nn.Module | None = None, **more: object
) -> Trainer:
    """Return a trainer for 80 steps of 32 images."""
    settings: dict[str, object] = {
        "data": corners(320),
        "judged": corners(200, seed=1),
        "metric": Top1(),
        "objective": Objective(),
        "recipe": Recipe(seconds=AMPLE_S, epochs=8, batch=32, rate=1e-2),
        **more,
    }
    data = settings["data"]
    assert isinstance(data, ArrayDataset)
    return Trainer(
        network=Network(module, ("x",)),
        teacher=None if teacher is None else Teacher(Network(teacher, ("x",)), len(data)),
        checkpoint=folder / "checkpoint.pt",
        **settings,  # type: ignore[arg-type]
    )
