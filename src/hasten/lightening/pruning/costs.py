"""Estimate a network's latency from measured times of its layers, at widths never built."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hasten.core.records import digest, from_record, read_json, to_record, write_json
from hasten.engines.base import Engine
from hasten.errors import CandidateError, InputError, IntegrityError
from hasten.lightening.pruning.layers import Layer, LayerShape
from hasten.lightening.pruning.microbenchmarks import Precision, timed
from hasten.measure.workbench import Bench

SCHEMA = 3
_POINTS = 6
"""Approximate number of points on each axis of a grid; at most half as many more."""
SNAPS = (8, 16, 32)
_DRAWN = 0.03
"""Weight of the prior from the first network: less than its measurement, more than noise."""
_STRANGE = 30.0
"""Largest factor by which a layer may be slower than alone; above, other work counts with it."""
_SLOWER = 1.05
_HEAVIEST = 3


@dataclass(frozen=True)
class Grid:
    """Times of one layer at several widths.

    Attributes:
        inputs: Numbers of input channels, ascending.
        outputs: Numbers of output channels, ascending.
        times_ns: Times in nanoseconds, in a row per number of inputs and a column per number of
            outputs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    times_ns: tuple[tuple[float, ...], ...]

    def at(self, inputs: float, outputs: float) -> float:
        """Return the time at a width in nanoseconds, bilinear inside the grid, constant outside."""
        i, u = _place(self.inputs, inputs)
        j, v = _place(self.outputs, outputs)
        rows = [self.times_ns[i], self.times_ns[min(i + 1, len(self.inputs) - 1)]]
        j2 = min(j + 1, len(self.outputs) - 1)
        low, high = ((1 - v) * row[j] + v * row[j2] for row in rows)
        return (1 - u) * low + u * high


def _place(axis: Sequence[int], value: float) -> tuple[int, float]:
    """Return the index of the point before a value, and the fraction of the way to the next."""
    i = max(0, min(bisect_right(axis, value) - 1, len(axis) - 2))
    if len(axis) == 1:
        return 0, 0.0
    return i, min(1.0, max(0.0, (value - axis[i]) / (axis[i + 1] - axis[i])))


@dataclass(frozen=True)
class Costs:
    """Times of a network's layers on one engine and machine.

    The layers' times don't add up to the network's latency, because of other operations and of
    caches. So their sum is corrected by the latencies of whole networks; see `corrected`.

    Attributes:
        grids: Times by layer; a layer that is missing costs nothing.
        snap: Number of which channel counts are multiples.
        areas: Number of values per output channel, by layer.
        factor: Factor on the layers' times.
        value_ns: Time added per output value of a layer, in nanoseconds, for what later operations
            do with it.
        constant_ns: Time added once, in nanoseconds.
    """

    grids: Mapping[str, Grid]
    snap: int = 8
    areas: Mapping[str, int] = field(default_factory=dict)
    factor: float = 1.0
    value_ns: float = 0.0
    constant_ns: float = 0.0
    _known: dict[tuple[str, int, int], float] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def layer_ns(self, layer: Layer) -> float:
        """Return the corrected time of a layer, in nanoseconds."""
        return self.at(layer.name, layer.shape.inputs, layer.shape.outputs)

    def at(self, name: str, inputs: int, outputs: int) -> float:
        """Return the corrected time of a layer with these numbers of channels, in nanoseconds."""
        key = (name, inputs, outputs)
        if key not in self._known:
            grid = self.grids.get(name)
            alone_ns = 0.0 if grid is None else grid.at(inputs, outputs)
            after_ns = self.value_ns * self.areas.get(name, 0) * outputs
            self._known[key] = self.factor * alone_ns + after_ns
        return self._known[key]

    def width(self, name: str, channels: int) -> int:
        """Return a layer's largest measured number of outputs; `channels` if it wasn't measured."""
        grid = self.grids.get(name)
        return channels if grid is None else grid.outputs[-1]

    def predicted_ns(self, layers: Sequence[Layer]) -> float:
        """Estimate the latency of a network of these layers, in nanoseconds."""
        return self.constant_ns + sum(self.layer_ns(layer) for layer in layers)

    def scaled(
        self, layers: Sequence[Layer], times_ns: Mapping[str, float], rest_ns: float = 0.0
    ) -> Costs:
        """Return these costs with each layer's times scaled to what it took inside the network.

        A layer that is timed alone may hit caches that it misses in its network, or the reverse.

        Args:
            layers: Layers of the profiled network.
            times_ns: Times inside the network in nanoseconds, by layer, from `in_network`; missing
                layers aren't scaled.
            rest_ns: Time of everything else in the network, in nanoseconds, which is the constant.
        """
        alone_ns: dict[str, float] = {}
        for layer in layers:
            if layer.name in self.grids:
                grid = self.grids[layer.name]
                took = grid.at(layer.shape.inputs, layer.shape.outputs)
                alone_ns[layer.name] = alone_ns.get(layer.name, 0.0) + took
        grids = dict(self.grids)
        for name, took in alone_ns.items():
            ratio = min(times_ns.get(name, took) / took, _STRANGE)
            times = tuple(tuple(ratio * t for t in row) for row in grids[name].times_ns)
            grids[name] = replace(grids[name], times_ns=times)
        return replace(self, grids=grids, constant_ns=rest_ns)

    def corrected(self, measured: Sequence[tuple[Sequence[Layer], float]]) -> Costs:
        """Return these costs fitted to the latencies of whole networks.

        If a network takes longer than its layers and the constant, the rest is attributed to the
        values between layers, unless other measured networks contradict that.

        Args:
            measured: Layers and latency in nanoseconds of each network; the first weighs most.

        Raises:
            InputError: no network is given.

        Source: non-negative least squares of the relative errors (Lawson and Hanson, 1974),
        regularized towards the coefficients that the first network suggests.
        """
        from scipy.optimize import nnls

        if not measured:
            raise InputError("costs are corrected with measured networks: got none")
        plain = replace(self, factor=1.0, value_ns=0.0, constant_ns=0.0)
        took = np.array([latency_ns for _, latency_ns in measured])
        columns = np.array(
            [[plain.predicted_ns(layers), self._values(layers), 1.0] for layers, _ in measured]
        )
        sizes = columns[0] / took[0]
        sizes[sizes == 0] = 1.0
        rows = columns / took[:, None] / sizes
        alone, rest = float(columns[0, 0] / took[0]), self.constant_ns / took[0]
        if alone + rest >= 1 or not columns[0, 1]:
            alone, rest = alone / (alone + rest), rest / (alone + rest)
        drawn = np.array([alone, 1 - alone - rest, rest])
        found, _ = nnls(
            np.vstack([rows, _DRAWN * np.eye(3)]),
            np.concatenate([np.ones(len(took)), _DRAWN * drawn]),
        )
        factor, value_ns, constant_ns = (float(n) for n in found / sizes)
        return replace(plain, factor=factor, value_ns=value_ns, constant_ns=constant_ns)

    def _values(self, layers: Sequence[Layer]) -> float:
        """Return the number of output values of all layers."""
        return float(sum(self.areas.get(one.name, 0) * one.shape.outputs for one in layers))


def widths(channels: int) -> tuple[int, ...]:
    """Return widths to time a layer at: multiples of a power of two from 8 on, and the full one."""
    step = 8
    while step * _POINTS * 1.5 < channels:
        step *= 2
    return (*range(step, channels, step), channels) if channels > 8 else (channels,)


def grid(shape: LayerShape, time_ns: Callable[[LayerShape], float]) -> Grid:
    """Make a layer's grid from a function that gives the time of a shape in nanoseconds.

    Times shouldn't fall as the width grows: where they do, that is noise and is averaged out.
    """
    inputs, outputs = axes(shape)
    if shape.kind == "depthwise":
        times = np.array([[time_ns(shape.of(n, n)) for n in outputs]])
        return Grid((shape.inputs,), outputs, _tuples(_rising(times)))
    times = np.array([[time_ns(shape.of(i, o)) for o in outputs] for i in inputs])
    return Grid(inputs, outputs, _tuples(_rising(_rising(times).T).T))


def axes(shape: LayerShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of inputs and of outputs in a layer's grid."""
    if shape.kind == "attention":
        return (shape.inputs,), tuple(range(1, shape.outputs + 1))
    if shape.kind == "depthwise":
        return (shape.inputs,), widths(shape.outputs)
    if shape.groups > 1:
        return (shape.inputs,), (shape.outputs,)
    return widths(shape.inputs), widths(shape.outputs)


def _rising(
    times: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Make each row non-decreasing by replacing neighbours that fall by their mean.

    Source: pool adjacent violators, Barlow et al., Statistical Inference under Order Restrictions,
    1972.
    """
    result = []
    for row in times:
        pools: list[list[float]] = []
        for value in row:
            pools.append([float(value), 1.0])
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (a, n), (b, m) = pools[-2:]
                pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
        result.append([mean for mean, count in pools for _ in range(int(count))])
    return np.array(result)


def _tuples(
    times: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in times)


def measure(
    layers: Sequence[Layer],
    bench: Bench,
    engine: Engine,
    cache: Path,
    precision: Precision = "i8",
    snap: int | None = None,
) -> Costs:
    """Time each layer of a network alone, at several widths, which takes about 20 ms per width.

    Args:
        layers: Layers of the unpruned network.
        bench: Bench whose processes run the engine.
        engine: Engine to prune for.
        cache: Folder of measured times; times found there aren't measured again.
        precision: Precision of the layers.
        snap: Number of which channel counts must be multiples; None to measure it.

    Raises:
        CandidateError: the engine failed, or has no profiler.
    """
    shapes = list(dict.fromkeys(layer.shape for layer in layers))
    wanted = [point for shape in shapes for point in _points(shape)]
    times = _cached(wanted, bench, engine, cache, precision)
    grids = {shape: grid(shape, times.__getitem__) for shape in shapes}
    if snap is None:
        snap = _snap(grids, bench, engine, cache, precision)
    return Costs(
        {layer.name: grids[layer.shape] for layer in layers},
        snap,
        {layer.name: layer.shape.area for layer in layers},
    )


def _points(shape: LayerShape) -> list[LayerShape]:
    inputs, outputs = axes(shape)
    return [shape.of(i, o) for i in inputs for o in outputs]


def _snap(
    grids: Mapping[LayerShape, Grid],
    bench: Bench,
    engine: Engine,
    cache: Path,
    precision: Precision,
) -> int:
    """Return the smallest step between widths at which fewer channels are hardly ever slower.

    The heaviest convolutions or linear layers of the network are timed, each at up to 16 numbers
    of output channels.
    """
    heavy = sorted(
        (
            s
            for s in grids
            if s.kind in ("convolution", "linear") and s.groups == 1 and s.outputs > 32
        ),
        key=lambda s: -grids[s].at(s.inputs, s.outputs),
    )[:_HEAVIEST]
    series = []
    for shape in heavy:
        top = min(shape.outputs, 128) // 32 * 32
        series.append([shape.of(shape.inputs, n) for n in range(8, top + 1, 8)])
    times = _cached([s for one in series for s in one], bench, engine, cache, precision)
    for step in SNAPS[:-1]:
        worse = [
            any(times[s] > _SLOWER * times[later] for later in one[i + 1 :])
            for one in series
            for i, s in enumerate(one)
            if s.outputs % step == 0
        ]
        if sum(worse) * 5 <= len(worse):
            return step
    return SNAPS[-1]


def _cached(
    shapes: Sequence[LayerShape], bench: Bench, engine: Engine, cache: Path, precision: Precision
) -> dict[LayerShape, float]:
    """Return the times of shapes in nanoseconds; measure and store those that aren't cached."""
    facts = [to_record(engine), engine.version(), to_record(bench.target), precision, SCHEMA]
    file = cache / f"layers-{digest(facts)[:16]}.json"
    known: dict[LayerShape, float] = {}
    if file.exists():
        try:
            known = {from_record(LayerShape, s): float(t) for s, t in read_json(file)}
        except (IntegrityError, TypeError, ValueError):
            known = {}  # the file of a version with another format: measured again
    missing = [shape for shape in dict.fromkeys(shapes) if shape not in known]
    if missing:
        known |= timed(missing, bench, engine, precision)
        cache.mkdir(parents=True, exist_ok=True)
        write_json(file, [[to_record(shape), time] for shape, time in known.items()])
    absent = [shape for shape in shapes if not known.get(shape)]
    if absent:
        raise CandidateError(f"the engine's profile has no time for {absent[0]}")
    return {shape: known[shape] for shape in shapes}
