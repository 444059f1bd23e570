"""How long a network takes by its layers' measured times, at widths that were never built."""

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
"""About so many on each axis of a grid, at most half as many more."""
SNAPS = (8, 16, 32)
_DRAWN = 0.03
"""How much what the first network tells weighs: less than its measurement, more than noise."""
_STRANGE = 30.0
"""A layer isn't taken for so many times slower than alone: something else hangs on it."""
_SLOWER = 1.05
_HEAVIEST = 3


@dataclass(frozen=True)
class Grid:
    """One layer's times at some widths.

    Attributes:
        inputs: Numbers of channels that it reads, ascending.
        outputs: Numbers of channels that it gives, ascending.
        times_ns: For each of `inputs`, one for each of `outputs`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    times_ns: tuple[tuple[float, ...], ...]

    def at(self, inputs: float, outputs: float) -> float:
        """Return nanoseconds at a width, bilinearly between the points; beyond them, in proportion."""
        i, u = _place(self.inputs, inputs)
        j, v = _place(self.outputs, outputs)
        rows = [self.times_ns[i], self.times_ns[min(i + 1, len(self.inputs) - 1)]]
        j2 = min(j + 1, len(self.outputs) - 1)
        low, high = ((1 - v) * row[j] + v * row[j2] for row in rows)
        return (1 - u) * low + u * high


def _place(axis: Sequence[int], value: float) -> tuple[int, float]:
    """Return the point before a value and how far it lies towards the next; at the ends, there."""
    i = max(0, min(bisect_right(axis, value) - 1, len(axis) - 2))
    if len(axis) == 1:
        return 0, 0.0
    return i, min(1.0, max(0.0, (value - axis[i]) / (axis[i + 1] - axis[i])))


@dataclass(frozen=True)
class Costs:
    """Times of a network's layers, by name, on one engine and machine.

    What the layers take together isn't what the network takes: there are other operations, and
    caches. So their sum is corrected by what whole networks took; see `corrected`.

    Attributes:
        grids: Layer -> its times; a layer that isn't there costs nothing.
        snap: Channels come in multiples of this.
        areas: Layer -> how many values of each channel it gives.
        factor: What the layers' times are multiplied by.
        value_ns: What is added for each value that a layer gives: what runs over it afterwards.
        constant_ns: What is added once.
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
        """Return what a layer takes, as corrected."""
        return self.at(layer.name, layer.shape.inputs, layer.shape.outputs)

    def at(self, name: str, inputs: int, outputs: int) -> float:
        """Return what a layer takes with so many channels, as corrected."""
        key = (name, inputs, outputs)
        if key not in self._known:
            grid = self.grids.get(name)
            alone_ns = 0.0 if grid is None else grid.at(inputs, outputs)
            after_ns = self.value_ns * self.areas.get(name, 0) * outputs
            self._known[key] = self.factor * alone_ns + after_ns
        return self._known[key]

    def width(self, name: str, channels: int) -> int:
        """Return what a layer gave when it was measured; one that wasn't, so many channels."""
        grid = self.grids.get(name)
        return channels if grid is None else grid.outputs[-1]

    def predicted_ns(self, layers: Sequence[Layer]) -> float:
        """Return what a network of these layers takes."""
        return self.constant_ns + sum(self.layer_ns(layer) for layer in layers)

    def scaled(
        self, layers: Sequence[Layer], times_ns: Mapping[str, float], rest_ns: float = 0.0
    ) -> Costs:
        """Return these costs with each layer's times in proportion, so that it takes what it took.

        Alone a layer may find its weights in a cache, or not, otherwise than in its network.

        Args:
            layers: Of the network that was profiled.
            times_ns: Layer -> what it took there, as `in_network` says; others stay as they are.
            rest_ns: What all else took there, which stays.
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
        """Return these costs so that they predict what whole networks took.

        A network that takes longer than its layers and the constant is taken to spend the rest on
        the values that lie between layers, until others that were measured tell it apart.

        Args:
            measured: A network's layers, and its latency in nanoseconds; the first weighs most.

        Raises:
            InputError: none is given.

        Source: least squares of the relative errors with no coefficient below 0 (Lawson and
        Hanson, 1974), drawn towards what the first network tells.
        """
        from scipy.optimize import nnls

        if not measured:
            raise InputError("costs are corrected by networks that were measured; got none")
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
        """Return how many values the layers give."""
        return float(sum(self.areas.get(one.name, 0) * one.shape.outputs for one in layers))


def widths(channels: int) -> tuple[int, ...]:
    """Return widths to time a layer at: multiples of a power of two from 8, and all of it."""
    step = 8
    while step * _POINTS * 1.5 < channels:
        step *= 2
    return (*range(step, channels, step), channels) if channels > 8 else (channels,)


def grid(shape: LayerShape, time_ns: Callable[[LayerShape], float]) -> Grid:
    """Make a layer's grid of times by shape: measured, or made up.

    Times never fall with the width: where they do it is noise, and it is averaged out.
    """
    inputs, outputs = axes(shape)
    if shape.kind == "depthwise":
        times = np.array([[time_ns(shape.of(n, n)) for n in outputs]])
        return Grid((shape.inputs,), outputs, _tuples(_rising(times)))
    times = np.array([[time_ns(shape.of(i, o)) for o in outputs] for i in inputs])
    return Grid(inputs, outputs, _tuples(_rising(_rising(times).T).T))


def axes(shape: LayerShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the widths of a layer's grid: of what it reads, and of what it gives."""
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
    """Make each row rise: neighbours that fall are replaced by their mean.

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
    """Time each layer of a network at several widths, alone; some 20 ms for each width.

    Args:
        layers: Of the unpruned network.
        bench: Where the engine runs.
        engine: What is pruned for.
        cache: Folder for what was timed; times from there are taken as they are.
        precision: Of the layers.
        snap: Channels come in multiples of it; None to find out.

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
    """Return the smallest step at which fewer channels are hardly ever slower than more.

    Looked at are the heaviest convolutions or linear layers of the network, at most 16 widths of
    what each gives.
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
    """Time what isn't in the cache yet; keep it there."""
    facts = [to_record(engine), engine.version(), to_record(bench.target), precision, SCHEMA]
    file = cache / f"layers-{digest(facts)[:16]}.json"
    known: dict[LayerShape, float] = {}
    if file.exists():
        try:
            known = {from_record(LayerShape, s): float(t) for s, t in read_json(file)}
        except (IntegrityError, TypeError, ValueError):
            known = {}  # from a version that wrote it otherwise: timed anew
    missing = [shape for shape in dict.fromkeys(shapes) if shape not in known]
    if missing:
        known |= timed(missing, bench, engine, precision)
        cache.mkdir(parents=True, exist_ok=True)
        write_json(file, [[to_record(shape), time] for shape, time in known.items()])
    absent = [shape for shape in shapes if not known.get(shape)]
    if absent:
        raise CandidateError(f"the engine's profile tells no time of {absent[0]}")
    return {shape: known[shape] for shape in shapes}
