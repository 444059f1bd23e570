"""A wide network, that far smaller ones do as well as, and images: made up, and real ones."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from hasten.core.progress import nobody
from hasten.core.tensors import Array
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.requests import random_requests
from hasten.inputs.metrics.top_k import Top1
from hasten.lightening import prospects, pruned
from hasten.lightening.given import Given
from hasten.lightening.making import Subject
from hasten.lightening.prospects import Prospect, _prospect
from hasten.lightening.pruning import costs
from hasten.lightening.pruning.layers import LayerShape
from hasten.lightening.task import Task, task_of
from hasten.lightening.training.loop import Recipe, Trainer
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Objective
from hasten.measure.work import work


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers whatever tests ran before."""
    torch.manual_seed(0)


def corners(count: int, seed: int) -> tuple[Array, Array]:
    """Return noisy images `(n, 1, 16, 16)` of which one quarter is bright, and which."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 1, 16, 16), dtype=np.float32)
    labels = rng.integers(4, size=count)
    for i, label in enumerate(labels):
        row, column = 8 * (label // 2), 8 * (label % 2)
        x[i, 0, row : row + 8, column : column + 8] += 1
    return x, labels


def wide(width: int = 256, classes: int = 4) -> nn.Module:
    """Return a network far wider than the task needs."""
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *(*block(1, width), *block(width, width), nn.MaxPool2d(2), *block(width, width)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)),
    )


def clothes() -> tuple[tuple[Array, Array], ...]:
    """Return cuts of real labelled images `(n, 1, 16, 16)` in [-1, 1]: to teach by, to train on, to judge.

    Fashion-MNIST's where Debian's dataset-fashion-mnist is installed, else handwritten digits.
    """
    garments = importlib.import_module("garments")
    _, known, judged = garments.labelled()

    def cut(images: Any) -> tuple[Array, Array]:
        halved = images.pixels.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32)
        framed = np.pad(halved, ((0, 0), (1, 1), (1, 1)))
        return framed[:, None] / 127.5 - 1, images.labels

    return cut(known[:900]), cut(known[900:1500]), cut(judged[:800])


def taught(examples: tuple[Array, Array], folder: Path) -> nn.Module:
    """Return the wide network after an epoch, the same on an idle and on a busy machine."""
    x, labels = examples
    module = wide(64, classes=10)
    Trainer(
        Network(module, ("input",)),
        None,
        ArrayDataset({"input": x[:-200]}, labels[:-200]),
        ArrayDataset({"input": x[-200:]}, labels[-200:]),
        Top1(),
        Objective(),
        Recipe(seconds=600, epochs=1, batch=32, rate=5e-3, mixed=0),
        folder / "teacher.pt",
    ).train()
    return module


@contextlib.contextmanager
def by_counts(each_ns: float = 0.01) -> Iterator[None]:
    """Let a network take a time per multiply-add in the block, however busy the machine is."""

    def timed(shapes: Iterable[LayerShape], *_: Any) -> dict[LayerShape, float]:
        return {shape: each_ns * shape.macs for shape in shapes}

    def counted(_: Any, subjects: Mapping[str, Subject], seed: int) -> dict[str, Prospect]:
        """Return prospects as if each network had been timed."""
        found = {}
        for name, subject in subjects.items():
            request = random_requests(subject.model.request, seed).inputs([0])
            operations = sum(layer.operations for layer in work(subject.model, request))
            way = min(subject.built, key=lambda way: way.label)
            found[name] = _prospect(subject, way, [each_ns * operations / 2], True)
        return found

    with (
        patch.object(prospects, "_in_turns", counted),
        patch.object(costs, "timed", timed),
        patch.object(pruned, "_inside", lambda *_: ({}, 0.0)),
    ):
        yield


@contextlib.contextmanager
def float_alone() -> Iterator[None]:
    """Let networks be built in float alone before they are timed: int8 forms take most of the time."""
    with patch.object(prospects, "_quantizers", list):
        yield


def task_for(
    read: Given,
    module: nn.Module,
    recipe: Recipe,
    folder: Path,
    *,
    calibration: int = 20,
    features: float | None = None,
) -> Task:
    """Return what the ways have in common, within a budget that anything meets."""
    return task_of(
        read,
        module,
        recipe,
        folder,
        budget_ns=1e9,
        max_drop=0.01,
        engines=("onnxruntime",),
        calibration=calibration,
        loss=None,
        features=features,
        listen=nobody,
    )
