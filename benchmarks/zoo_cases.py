"""A case of the zoo: a network that nobody tuned hasten to, its data, and its honest count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, Any]
"""Arrays by name; samples that differ in shape are a list of arrays."""
Way: TypeAlias = Literal["dynamo", "script", "opset11"]

WAYS: tuple[Way, ...] = ("dynamo", "script", "opset11")
"""Ways out of torch: its exporter, the older one by TorchScript, and that in an opset of 2019."""
RECENT, OLD = 17, 11


@dataclass(frozen=True)
class Case:
    """One network with data that judge it.

    Attributes:
        name: Name on the command line.
        family: Kind of network, in words.
        network: Function that returns an `nn.Module` with its weights, a fitted model of
            scikit-learn, or a graph of ONNX.
        data: Function from a generator and a count to that many samples by input name: an array, or a list of
            arrays where samples differ in shape.
        metric: Metric, as the command line spells it.
        max_drop: Most that the score may fall.
        samples: Number of samples to judge it by, and of others to certify it on again.
        outputs: Names of the outputs.
        multiplications: Hand count of one request; None where torch counts them itself.
        quick: Whether the case is one of those that `make test-all` runs.
        ways: Ways out of torch that suit the case; one for what is a file already.
        scalars: Inputs that are a single number, without an axis for the batch.
        brought: Function that writes the network into a folder in a form that hasten reads by itself, and
            returns its name for `hasten optimize`. The exported file is then only what answers are
            compared with.
        own: Function from the network to its own answers, for a network that only hasten itself exports, from
            the form that `brought` writes.
        open_axes: Axes that are open beside the batch, by the name of an input or an output.
        states: Input that takes a state -> output that gives the next one, and the state's shape. A sample is
            then a sequence: its inputs have an axis of steps.
        pipeline: Text of a pipeline file to give with the model; "" for none.
        options: Further options of `hasten optimize`.
    """

    name: str
    family: str
    network: Callable[[], Any]
    data: Callable[[np.random.Generator, int], Arrays]
    metric: str = "agreement"
    max_drop: float = 0.05
    samples: int = 500
    outputs: tuple[str, ...] = ("y",)
    multiplications: int | None = None
    quick: bool = False
    ways: tuple[Way, ...] = WAYS
    scalars: tuple[str, ...] = ()
    brought: Callable[[Any, Path], str] | None = None
    own: Callable[[Any], Callable[[Arrays], Arrays]] | None = None
    open_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    states: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    pipeline: str = ""
    options: tuple[str, ...] = ()

    def drawn(self, count: int, seed: int) -> Arrays:
        """Return so many samples; every seed gives others."""
        return self.data(np.random.default_rng(seed), count)

    def batch(self, count: int, seed: int) -> Arrays:
        """Return a request of so many rows, all of one shape: the first step where a sample is a sequence."""
        drawn = self.drawn(count, seed)
        if any(isinstance(samples, list) for samples in drawn.values()):
            return {name: np.stack([samples[0]] * count) for name, samples in drawn.items()}
        if not self.states:
            return drawn
        return {name: samples[:, 0] for name, samples in drawn.items()} | self.begin(count)

    def begin(self, count: int) -> Arrays:
        """Return the states before the first step of so many sequences."""
        return {
            name: np.zeros((count, *shape), np.float32) for name, (_, shape) in self.states.items()
        }


def normal(shape: tuple[int, ...], name: str = "x") -> Callable[..., Arrays]:
    """Return a maker of samples from a normal distribution."""
    return partial(_normal, name, shape)


def _normal(name: str, shape: tuple[int, ...], rng: np.random.Generator, count: int) -> Arrays:
    return {name: rng.standard_normal((count, *shape), np.float32)}


def pictures(side: int, channels: int = 3, wide: int | None = None) -> Callable[..., Arrays]:
    """Return a maker of pictures with shapes in them: soft patches, edges and noise, normalized."""
    return partial(_pictures, side, wide or side, channels)


def _pictures(high: int, wide: int, channels: int, rng: np.random.Generator, count: int) -> Arrays:
    found = np.empty((count, channels, high, wide), np.float32)
    cell = 8
    for picture in found:
        coarse = rng.standard_normal((channels, -(-high // cell), -(-wide // cell)))
        patches = np.kron(coarse, np.ones((cell, cell)))[:, :high, :wide]
        picture[:] = patches + rng.normal(0, 0.2, picture.shape)
        top, left = rng.integers(0, high // 2), rng.integers(0, wide // 2)
        picture[:, top : top + high // 3, left : left + wide // 3] += rng.normal(
            0, 2, (channels, 1, 1)
        )
    return {"x": found}


def of_every_size(
    shortest: tuple[int, int], longest: tuple[int, int], channels: int = 3
) -> Callable[..., Arrays]:
    """Return a maker of pictures that differ in height and width, in steps of 4 pixels."""
    return partial(_of_every_size, shortest, longest, channels)


def _of_every_size(
    shortest: tuple[int, int],
    longest: tuple[int, int],
    channels: int,
    rng: np.random.Generator,
    count: int,
) -> Arrays:
    sizes = 4 * rng.integers(np.array(shortest) // 4, np.array(longest) // 4 + 1, (count, 2))
    return {"x": [_pictures(high, wide, channels, rng, 1)["x"][0] for high, wide in sizes.tolist()]}


def waves(length: int, channels: int | None = None) -> Callable[..., Arrays]:
    """Return a maker of waves: three tones that begin somewhere, and noise; `(length,)` each."""
    return partial(_waves, length, channels)


def _waves(length: int, channels: int | None, rng: np.random.Generator, count: int) -> Arrays:
    time = np.arange(length) / length
    shape = (count, channels or 1, 3, 1)
    tones = np.sin(2 * np.pi * (rng.uniform(2, length / 8, shape) * time + rng.random(shape)))
    found = (tones * rng.exponential(0.5, shape)).sum(axis=2) + rng.normal(
        0, 0.05, (count, 1, length)
    )
    return {"x": (found if channels else found[:, 0]).astype(np.float32)}


def texts(
    length: int, words: int, *, mask: bool = True, names: Mapping[str, str] | None = None
) -> Callable[..., Arrays]:
    """Return a maker of token ids by Zipf's law, padded to a length, with the mask beside them."""
    return partial(_texts, length, words, mask, dict(names or {}))


def _texts(
    length: int,
    words: int,
    mask: bool,
    names: dict[str, str],
    rng: np.random.Generator,
    count: int,
) -> Arrays:
    ids = 1 + (rng.zipf(1.3, (count, length)) - 1) % (words - 1)
    there = np.arange(length) < rng.integers(length // 4, length + 1, (count, 1))
    found = {"input_ids": (ids * there).astype(np.int64)}
    if mask:
        found["attention_mask"] = there.astype(np.int64)
    return {names.get(name, name): array for name, array in found.items()}


def sentences(shortest: int, longest: int, words: int) -> Callable[..., Arrays]:
    """Return a maker of texts as they are: token ids by Zipf's law, a mask of ones, no padding."""
    return partial(_sentences, shortest, longest, words)


def _sentences(
    shortest: int, longest: int, words: int, rng: np.random.Generator, count: int
) -> Arrays:
    lengths = np.rint(rng.lognormal(np.log(16), 0.6, count)).clip(shortest, longest).astype(int)
    return {
        "input_ids": [1 + (rng.zipf(1.3, n) - 1) % (words - 1) for n in lengths],
        "attention_mask": [np.ones(n, np.int64) for n in lengths],
    }


def decided(network: Any, data: Callable[..., Arrays], outputs: int = 1) -> Any:
    """Return a network of random weights whose answers spread: each score is made standard.

    Otherwise nearly every sample gets the same class, and any other model would agree.

    Args:
        network: Module that answers scores of classes, `(n, classes)`.
        data: Maker of its samples.
        outputs: Number of outputs; only the first is changed.
    """
    import torch
    from torch import nn

    samples = data(np.random.default_rng(7), 48)
    with torch.no_grad():
        scores = network.eval()(*map(torch.from_numpy, samples.values()))
    scores = scores if outputs == 1 else scores[0]

    class Decided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", scores.mean(0))
            self.register_buffer("scale", scores.std(0).clamp_min(1e-6))

        def forward(self, *inputs: Any) -> Any:
            found = self.network(*inputs)
            first = ((found if outputs == 1 else found[0]) - self.mean) / self.scale
            return first if outputs == 1 else (first, *found[1:])

    return Decided().eval()
