"""Estimate the latency of options from measured ones, and choose what to measure next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hasten.lightening.shortlisting.options import Option

_FIRST_GUESS_NS = 25_000.0
"""First guess for a MobileNetV2 with a million multiply-adds, in nanoseconds."""
_SLOPE = 0.7
"""Power of its multiply-adds with which a small network's latency grows; layers cost the rest."""
_STEEPEST = 1.1
_FLATTEST = 0.3
_MOST_LOOKS = 4
"""Largest number of measurements in one family."""
_DOUBT = 1.5
"""Factor on the budget up to which a family's smallest option is tried if none is known to fit."""
_MARGIN = 0.85
"""Share of the budget to aim at in an unmeasured family, as a miss costs another measurement."""


@dataclass
class Estimates:
    """Latencies measured so far, and estimates from them.

    Attributes:
        families: Options by family.
        budget_ns: Longest time that one request may take, in nanoseconds.
        taken: Latencies in nanoseconds by family and option; infinite if no engine can run it.
    """

    families: Mapping[str, Sequence[Option]]
    budget_ns: float
    taken: dict[str, dict[Option, float]] = field(default_factory=dict)
    _looks: Counter[str] = field(default_factory=Counter)

    def learn(self, option: Option, latency_ns: float | None, *, recalled: bool = False) -> None:
        """Record a latency; None if no engine can run the option.

        A latency recalled from an earlier search doesn't count as a measurement of its family.
        """
        family = option.architecture.family
        self._looks[family] += not recalled
        own = self.taken.setdefault(family, {})
        own[option] = math.inf if latency_ns is None else latency_ns

    def predicted_ns(self, option: Option) -> float:
        """Estimate the latency of an option, in nanoseconds."""
        own = self._points(option.architecture.family)
        if own:
            return _scaled(option, own)
        every = [point for family in self.taken for point in self._points(family)]
        usual = [math.log(ns / _guess(one)) for one, ns in every]
        return _guess(option) * (math.exp(sum(usual) / len(usual)) if usual else 1.0)

    def first(self, families: Sequence[str], count: int = 2) -> list[Option]:
        """Return one option of each of `count` families, estimated to be near the budget."""
        chosen = [name for name in families if name in self.families]
        chosen += [name for name in self.families if name not in chosen]
        found = []
        for name in chosen[:count]:
            options = self.families[name]
            fitting = [one for one in options if self.predicted_ns(one) <= self.budget_ns]
            smallest = min(options, key=lambda one: one.madds)
            found.append(max(fitting, key=lambda one: one.promise, default=smallest))
        return found

    def next(self, count: int, worth: float) -> list[Option]:
        """Return the options to measure next, one per family; empty if nothing is to be gained.

        Args:
            count: Largest number of options.
            worth: Least gain, in points of promise, that a family must be expected to make.
        """
        found = [one for name in self.families for one in self._better(name, worth)]
        found.sort(key=lambda one: (one.architecture.family in self.taken, -one.promise))
        if not found and not any(self._fitting(name) for name in self.families):
            return self._fastest(count)
        return found[:count]

    def may_fit(self) -> Option | None:
        """Return the option that was never measured and is estimated to be the fastest, if it would fit."""
        new = [
            one
            for name, options in self.families.items()
            for one in options
            if one not in self.taken.get(name, {})
        ]
        best = min(new, key=self.predicted_ns, default=None)
        return best if best is not None and self.predicted_ns(best) <= self.budget_ns else None

    def _better(self, family: str, worth: float) -> Iterator[Option]:
        """Yield the most promising option expected to fit, if it beats those known to fit."""
        own = self.taken.get(family, {})
        if self._looks[family] >= _MOST_LOOKS:
            return
        budget_ns = self.budget_ns if self._points(family) else _MARGIN * self.budget_ns
        beat = max((one.promise for one in self._fitting(family)), default=-math.inf)
        new = [
            one for one in self.families[family] if one not in own and one.promise >= beat + worth
        ]
        fitting = [one for one in new if self.predicted_ns(one) <= budget_ns]
        if fitting:
            yield max(fitting, key=lambda one: one.promise)
        elif new and beat == -math.inf:
            smallest = min(new, key=self.predicted_ns)
            if self.predicted_ns(smallest) <= _DOUBT * self.budget_ns:
                yield smallest

    def _fastest(self, count: int) -> list[Option]:
        """Return options expected to be faster than all measured ones, for when nothing fits."""
        known = min((ns for name in self.taken for _, ns in self._points(name)), default=math.inf)
        quickest = []
        for name, options in self.families.items():
            new = [one for one in options if one not in self.taken.get(name, {})]
            if new and self._looks[name] < _MOST_LOOKS:
                quickest.append(min(new, key=self.predicted_ns))
        quickest.sort(key=self.predicted_ns)
        return [one for one in quickest if self.predicted_ns(one) < known][:count]

    def _fitting(self, family: str) -> list[Option]:
        return [one for one, ns in self._points(family) if ns <= self.budget_ns]

    def _points(self, family: str) -> list[tuple[Option, float]]:
        own = self.taken.get(family, {})
        return [(one, ns) for one, ns in own.items() if math.isfinite(ns)]


def _guess(option: Option) -> float:
    """Return an option's latency in nanoseconds on the machine of the catalogue's first guesses."""
    return float(option.architecture.heft * _FIRST_GUESS_NS * (option.madds / 1e6) ** _SLOPE)


def _scaled(option: Option, points: Sequence[tuple[Option, float]]) -> float:
    """Extrapolate a latency from the family's nearest measured option, by the slope to the next."""
    ranked = sorted(points, key=lambda point: abs(math.log(option.madds / point[0].madds)))
    (near, near_ns), *rest = ranked
    slope = _SLOPE
    for other, other_ns in rest:
        apart = math.log(other.madds / near.madds)
        if abs(apart) > 0.1:
            slope = min(_STEEPEST, max(_FLATTEST, math.log(other_ns / near_ns) / apart))
            break
    return float(near_ns * (option.madds / near.madds) ** slope)
