"""Signals that inputs drift from those that a model was certified on: hints, and no proof of anything.

They are taken from the audited answers alone, on the monitor's thread, so that requests pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.ranges import ValueRange
from hasten.core.tensors import Tensors

_RECENT = 200
"""Number of audited answers over which a recent mean is taken: each newer one weighs 1/200."""


@dataclass
class Recent:
    """Mean of all numbers, and of the recent ones.

    Attributes:
        n: Number of numbers.
        mean: Mean of all.
        recent: Mean that newer ones weigh more in.
    """

    n: int = 0
    mean: float = 0.0
    recent: float = 0.0

    def add(self, value: float) -> None:
        """Take in one more number."""
        self.n += 1
        self.mean += (value - self.mean) / self.n
        self.recent += (value - self.recent) / min(self.n, _RECENT)


class Drift:
    """Signals of one served model.

    Args:
        ranges: Ranges that inputs are held against; none where the bundle has none.
        shares: Function that returns what the engine counts: name -> (answers of the kind, all).

    Attributes:
        margin: Distance of the highest class score to the next one; no number without class scores.
        outside: Share of answers with an input value outside the range of the samples that the bundle was
            made with.
    """

    def __init__(
        self,
        ranges: Sequence[ValueRange],
        shares: Callable[[], Mapping[str, tuple[int, int]]],
    ) -> None:
        self._shares = shares
        self._first = dict(shares())
        self._ranges = tuple(ranges)
        self.margin, self.outside = Recent(), Recent()

    def look(self, inputs: Tensors, outputs: Tensors) -> None:
        """Take in one audited answer."""
        if self._ranges:
            self.outside.add(float(any(one.leaves(inputs[one.input]) for one in self._ranges)))
        for array in outputs.values():
            if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f":
                scores = np.partition(array.astype(np.float64), (-2, -1), axis=1)
                margin = float((scores[:, -1] - scores[:, -2]).mean())
                if np.isfinite(margin):
                    self.margin.add(margin)
                break

    @property
    def asked_again(self) -> tuple[int, int] | None:
        """Answers that a cascade's large model had to compute, of all since the start; None if there is no cascade."""
        name = "asked again"
        now = self._shares().get(name)
        if now is None:
            return None
        first = self._first.get(name, (0, 0))
        return max(0, now[0] - first[0]), max(0, now[1] - first[1])
