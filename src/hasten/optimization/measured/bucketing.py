"""Buckets: for samples that differ in shape, models compiled for a few shapes, and requests padded to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hasten.core.shapes import Pads
from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.engines.base import Engine
from hasten.engines.buckets import Buckets
from hasten.engines.padding import Axis, Bucket, Dimension, Pad
from hasten.measure.candidate import Single, Trial
from hasten.optimization.grid import takes
from hasten.optimization.measured.mixing import Likely
from hasten.optimization.measured.screening import Screening, takes_one_shape
from hasten.optimization.shapes import sizes_of
from hasten.passes.base import Pass

_FEW = 8
"""Largest number of different shapes that each get a model of their own, so that nothing is padded."""
_COUNTS = (4, 8)
"""Numbers of buckets to try where there are more."""
_ENGINES = 3
_FORMS = 3
"""Largest number of inexact models to try in buckets on an engine that takes one shape."""
_LOOKED_AT = 64

Sizes = npt.NDArray[np.int64]
_Base: TypeAlias = tuple[Engine, tuple[Pass, ...]]
"""Engine to try in buckets, and the passes that make its model."""


@dataclass(frozen=True)
class _Shapes:
    """Buckets for the search samples.

    Attributes:
        dimensions: Open dimensions in which samples differ.
        sets: Sets of buckets, that with the fewest first; empty where none is worth trying.
        pads: Values to pad inputs with that aren't 0.
        padding: Whether requests are padded.
        least: Least size of each dimension, where requests are padded.
    """

    dimensions: tuple[Dimension, ...]
    sets: list[tuple[Bucket, ...]]
    pads: tuple[Pad, ...]
    padding: bool
    least: tuple[int, ...]


class Bucketing:
    """Proposes buckets for the engines and for the fastest models that are likely to be certified.

    Args:
        trials: Trials, which screen the candidates.
        attempt: Callback that tries candidates, as far as the time allows.
        likely: Predicate of trials that would probably be certified.
        notes: Notes for the reader of the result, added to here.
        pads: Values to pad inputs with that a person named.
    """

    def __init__(
        self,
        trials: Screening,
        attempt: Callable[[Sequence[Single]], Any],
        likely: Likely,
        notes: list[str],
        pads: Pads = (),
    ) -> None:
        self._named = {name: Pad(name, value) for name, value in pads}
        self._trials, self._attempt, self._likely, self._notes = trials, attempt, likely, notes

    def propose_exact(self, *, few: bool = False) -> None:
        """Try few buckets of the original on each engine, then more of them where buckets are fastest.

        Args:
            few: Whether to try one set of buckets alone, on the fastest engine.
        """
        engines = self._engines()
        if few:
            engines = sorted(engines, key=self._ratio_of)[:1]
        self._try([(engine, ()) for engine in engines], more=not few)

    def propose_inexact(self, ranked: Sequence[Trial], *, few: bool = False) -> None:
        """Try few buckets of inexact models that may be certified, then more of those where they are fastest.

        The fastest one gets them on its own engine. Engines that take one shape, on which no inexact model was
        tried before, get the likeliest ones.

        Args:
            ranked: Measured trials, fastest first.
            few: Whether to try the likeliest model alone, on engines that take one shape.
        """
        alone = self._of_one_shape(ranked)
        if few:
            first = [passes for _, passes in alone[:1]]
            self._try([base for base in alone if base[1] in first], more=False)
            return
        own = [
            (trial.candidate.engine, trial.candidate.passes)
            for trial in ranked
            if not trial.exact and trial.candidate.engine.reshapes and self._likely(trial, 1.0)
        ]
        self._try([*own[:1], *alone])

    def _of_one_shape(self, ranked: Sequence[Trial]) -> list[_Base]:
        """Return engines that take one shape, with inexact models to try in buckets there, the likeliest first.

        Those whose answers on another engine will probably be certified come before those that weren't scored on
        any. Those that would probably fail the test are left out.

        Args:
            ranked: Measured trials, fastest first.
        """
        left = [
            one.candidate
            for one in self._trials.done.values()
            if one.skipped and not one.candidate.exact and takes_one_shape(one.candidate.engine)
        ]
        scored = [t for t in ranked if not t.exact and t.candidate.passes and t.scores is not None]
        likely = [t.candidate.passes for t in scored if self._likely(t, 1.0)]
        known = {t.candidate.passes for t in scored}
        found = []
        for engine in dict.fromkeys(one.engine for one in left):
            forms = [(*passes[:-1], passes[-1].suited(engine)) for passes in likely]
            forms += [
                one.passes for one in left if one.engine == engine and one.passes not in known
            ]
            able = [p for p in dict.fromkeys(forms) if p and self._beyond(engine, p) is not None]
            found.append([(engine, passes) for passes in able[:_FORMS]])
        return [base for each in itertools.zip_longest(*found) for base in each if base]

    def _beyond(self, engine: Engine, passes: tuple[Pass, ...]) -> Engine | None:
        """Return the engine for what no bucket of an engine covers; None where there is none for a model.

        Args:
            engine: Engine of the buckets.
            passes: Passes that make the model.
        """
        last = passes[-1:]
        if not all(step.gives in Buckets.formats and takes(engine, step) for step in last):
            return None
        if engine.reshapes:
            return engine
        plain = (t.candidate.engine for t in self._trials.done.values() if not t.candidate.passes)
        able = (one for one in plain if one.reshapes and one.exact)
        for other in (self._trials.baseline.engine, *able):
            trial = self._trials.done.get(Single(passes, other).key)
            failed = trial is not None and (trial.failure or trial.skipped)
            if not failed and all(takes(other, step) for step in last):
                return other
        return None

    def _try(self, bases: Sequence[_Base], *, more: bool = True) -> None:
        """Try the first set of buckets on each engine, with the passes before it, and the others on the best.

        Args:
            bases: Engines, each with the passes before it.
            more: Whether to try the other sets.
        """
        shapes = self._shapes
        if not shapes.sets:
            return
        tried: list[Single] = []
        for engine, passes in bases:
            beyond = self._beyond(engine, passes)
            if beyond is None:
                continue
            tried.append(
                Single(
                    passes,
                    Buckets(
                        engine,
                        beyond,
                        shapes.dimensions,
                        shapes.sets[0],
                        shapes.pads,
                        shapes.padding,
                        shapes.least,
                    ),
                )
            )
        self._attempt(tried)
        done = [t for one in tried if (t := self._trials.done.get(one.key)) and t.measurement]
        done = [t for t in done if not t.failure and (t.exact or self._likely(t, 1.0))]
        if done and more and len(shapes.sets) > 1:
            best = min(done, key=lambda t: self._trials.ratio(t).estimate).candidate
            assert isinstance(best.engine, Buckets)
            own = best.engine
            self._attempt([Single(best.passes, replace(own, buckets=s)) for s in shapes.sets[1:]])

    @cached_property
    def _shapes(self) -> _Shapes:
        """Facts about the search samples that buckets need; a note says so where there are no sets."""
        axes, sizes = self._dimensions()
        outputs, matched = self._outputs(sizes)
        dimensions = tuple(
            Dimension(own, outs) for own, outs in zip(axes, outputs, strict=True) if own
        )
        sets = bucket_sets(sizes, padding=matched)
        if not sets:
            shapes = len(np.unique(sizes, axis=0))
            self._notes.append(
                f"no buckets were tried: samples have {shapes:,} different shapes in {amount(sizes.shape[1], 'dimension')}"
                + (
                    ""
                    if matched
                    else ", and some outputs have sizes that don't follow from an input's size"
                )
            )
        padding = len(np.unique(sizes, axis=0)) > _FEW
        least = tuple(map(int, sizes.min(axis=0))) if padding else ()
        return _Shapes(dimensions, sets, self._pads() if padding else (), padding, least)

    def _dimensions(self) -> tuple[list[tuple[Axis, ...]], Sizes]:
        """Return the axes of each open dimension, and its size for each search sample, `(n, dimensions)`."""
        shapes = sizes_of(self._trials.samples)
        found: list[tuple[list[Axis], Array]] = []
        for spec in self._trials.bench.model.request:
            own = np.array([each[spec.name] for each in shapes], np.int64)
            first = len(spec.shape) - own.shape[1]
            for place in range(own.shape[1]):
                column, axis = own[:, place], Axis(spec.name, place + first)
                if (column == column[0]).all():
                    continue
                for axes, known in found:
                    if np.array_equal(known, column):
                        axes.append(axis)
                        break
                else:
                    found.append(([axis], column))
        return [tuple(axes) for axes, _ in found], np.stack([c for _, c in found], axis=1)

    def _outputs(self, sizes: Sizes) -> tuple[list[tuple[Axis, ...]], bool]:
        """Return the axes of outputs that have each dimension's size, and whether no other one varies."""
        seen: dict[Axis, list[int]] = {}
        places: list[int] = []
        ranks = {spec.name: len(spec.shape) for spec in self._trials.bench.model.outputs}
        end = 0
        for outputs, _ in self._trials.exact_answers:
            places.append(end)
            end += len(next(iter(outputs.values())))
            for name, array in outputs.items():
                extra = array.ndim - ranks.get(name, array.ndim)  # an axis for samples put in front
                for place in range(1, array.ndim):
                    seen.setdefault(Axis(name, place - extra), []).append(array.shape[place])
        found: list[tuple[Axis, ...]] = [() for _ in range(sizes.shape[1])]
        matched = not self._trials.bench.varying
        for axis, column in seen.items():
            if len(column) != len(places) or len(set(column)) == 1:
                continue
            own = [
                number
                for number in range(sizes.shape[1])
                if np.array_equal(sizes[places, number], column)
            ]
            matched &= bool(own)
            if own:
                found[own[0]] += (axis,)
        return found, matched

    def _pads(self) -> tuple[Pad, ...]:
        """Return values to pad with: those named, for a mask that marks what is padding 1, and else 0."""
        samples = self._trials.samples
        pads = list(self._named.values())
        for name in samples.names:
            if name in self._named or "pad" not in name.lower():
                continue
            rows = [samples.inputs([n])[name] for n in range(min(len(samples), _LOOKED_AT))]
            if all(row.dtype.kind in "biu" and not row.any() for row in rows):
                pads.append(Pad(name, 1))
        return tuple(pads)

    def _engines(self) -> list[Engine]:
        """Return engines for the original, those first that take any shape."""
        plain = [
            t.candidate.engine
            for t in self._trials.done.values()
            if not t.candidate.passes and t.candidate.exact and t.candidate.engine.runtimes
        ]
        able = [e for e in plain if not isinstance(e, Buckets) and type(e).__name__ != "Reference"]
        able.sort(key=lambda engine: not engine.reshapes)
        return able[: _ENGINES + 1]

    def _ratio_of(self, engine: Engine) -> float:
        """Return the latency of the original on an engine over the baseline's; infinite where it has none."""
        if engine == self._trials.baseline.engine:
            return 1.0
        trial = self._trials.done[Single((), engine).key]
        timed = trial.measurement is not None and not trial.failure
        return self._trials.ratio(trial).estimate if timed else math.inf


def bucket_sets(sizes: Sizes, *, padding: bool) -> list[tuple[Bucket, ...]]:
    """Return sets of buckets worth trying, that with the fewest first; empty where none is.

    Args:
        sizes: Sizes of the open dimensions of each sample, `(n, dimensions)`.
        padding: Whether requests can be padded at all.
    """
    shapes = np.unique(sizes, axis=0)
    if len(shapes) <= _FEW:
        return [tuple(Bucket(tuple(map(int, row))) for row in shapes)]
    if not padding or sizes.shape[1] != 1:
        return []
    lengths, counts = np.unique(sizes[:, 0], return_counts=True)
    sets = [tuple(Bucket((n,)) for n in chosen(lengths, counts, k)) for k in _COUNTS]
    return [one for one, _ in itertools.groupby(sets)]


def chosen(lengths: Array, counts: Array, most: int) -> tuple[int, ...]:
    """Return at most so many lengths to pad up to, for which the expected work is least.

    The work of a request is its padded length. The last length is the longest, so that all are covered.

    Args:
        lengths: Different lengths, ascending, `(k,)`.
        counts: Number of samples of each length, `(k,)`.
        most: Largest number of lengths to return.
    """
    total = np.concatenate([[0], np.cumsum(counts)])
    # least[j] is the least work of the first j lengths with the buckets so far; the last ends at j - 1.
    least = np.where(np.arange(len(lengths) + 1) == 0, 0.0, np.inf)
    ends: list[Array] = []
    for _ in range(min(most, len(lengths))):
        work = least[None, :-1] + (total[1:, None] - total[None, :-1]) * lengths[:, None]
        work[np.triu_indices(len(lengths), 1)] = np.inf  # a bucket begins no later than it ends
        begins = work.argmin(axis=1)
        ends.append(begins)
        least = np.concatenate([[np.inf], work[np.arange(len(lengths)), begins]])
    found, place = [], len(lengths) - 1
    for begins in reversed(ends):
        found.append(int(lengths[place]))
        place = int(begins[place]) - 1
        if place < 0:
            break
    return tuple(reversed(found))
