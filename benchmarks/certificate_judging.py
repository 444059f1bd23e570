"""The judging of a run, as simulations call it: the real functions, without what decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
from certificate_rivals import ALPHA, quick_certifies
from numpy.typing import NDArray

from hasten.certificate import draws, verdict
from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_ladder, last_certified
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard
from hasten.inputs.metrics.top_k import Top1

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Settings = Mapping[str, Any]


@contextmanager
def deciding_alone() -> Iterator[None]:
    """Leave out what is shown beside a verdict and decides nothing, and keep tests of counts."""
    with ExitStack() as stack:
        for module, name, stand_in in (
            (draws, "paired_certifies", quick_certifies),
            (draws, "paired_upper_bound", lambda *_: 1.0),
            (draws, "betting_upper_bound", lambda *_: 1.0),
            (verdict, "refuted", lambda *_: False),
            (verdict, "draws_needed", lambda *_: None),
        ):
            stack.enter_context(patch.object(module, name, stand_in))
        yield


def shipped(
    original: Floats,
    rungs: Mapping[str, Floats],
    limit: float,
    *,
    guard: Guard = "net",
    units: Ints | None = None,
    binary: bool = True,
    prior: BettingPrior | None = None,
) -> str | None:
    """Return the rung that a run would ship of a frozen ladder; None where none is certified."""
    promise = Promise(Top1(), guard, limit, 1 - ALPHA)
    alone = np.arange(len(original)) if units is None else units
    priors = {} if prior is None else dict.fromkeys(rungs, prior)
    judged = judge_ladder(original, tuple(rungs), rungs, alone, priors, promise, binary=binary)
    passed = last_certified(judged)
    return passed[0] if passed else None


def settings(**axes: tuple[Any, ...]) -> tuple[Settings, ...]:
    """Return all combinations of the values of some settings."""
    return tuple(dict(zip(axes, one, strict=True)) for one in product(*axes.values()))


def flipped(rng: np.random.Generator, n: int, lost: float, gained: float) -> tuple[Floats, Floats]:
    """Draw 0/1 scores of an original and a candidate with given chances of a loss and a gain."""
    number = rng.random(n)
    candidate = np.where(number < lost, 0.0, 1.0)
    original = np.where((number >= lost) & (number < lost + gained), 0.0, 1.0)
    return original, candidate
