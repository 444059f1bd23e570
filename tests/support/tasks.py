"""Two real tasks and networks for them, trained when they are asked for: seconds each."""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.core.tensors import Array

Halves = tuple[tuple[Array, Array], tuple[Array, Array]]


def _halves(x: Array, y: Array) -> Halves:
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.ascontiguousarray(x[order].astype(np.float32)), y[order]
    half = len(x) // 2
    return (x[:half], y[:half]), (x[half:], y[half:])


def cancer() -> Halves:
    """scikit-learn's breast-cancer data: 569 x 30, two classes; what is trained on, and what judges."""
    from sklearn.datasets import load_breast_cancer

    return _halves(*load_breast_cancer(return_X_y=True))


def digits() -> Halves:
    """scikit-learn's digits: 1,797 images of 8 x 8, ten classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _halves(x.reshape(-1, 1, 8, 8) / 16, y)


def _trained(network: Any, data: tuple[Array, Array], epochs: int) -> Any:
    import torch

    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.1)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(x)), 32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
            torch.autograd.backward(loss)
            optimizer.step()
    return network.eval()


def perceptron(widths: tuple[int, ...] = (32, 16), epochs: int = 30) -> Any:
    """A 30-32-16-2 network for the breast-cancer data, its normalization inside."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[Any] = [nn.BatchNorm1d(30, affine=False)]
    for size, following in zip((30, *widths), widths, strict=False):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return _trained(nn.Sequential(*layers, nn.Linear(widths[-1], 2)), cancer()[0], epochs)


def small_cnn(epochs: int = 30) -> Any:
    """Two convolutions for the digits."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return _trained(network, digits()[0], epochs)
