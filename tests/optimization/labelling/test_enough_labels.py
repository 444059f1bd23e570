"""When labels are enough: in exact tests once the limit holds whatever the others are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.certificate.promise import Promise
from hasten.inputs.metrics.top_k import Top1
from hasten.optimization.judge import Ladder
from hasten.optimization.labelling.reading import Reading
from hasten.optimization.sealed import surely_holds

N = 600


def judge(*, binary: bool = True, units: Any = None) -> Any:
    trial = SimpleNamespace()
    sealed = np.arange(N) if units is None else units
    return SimpleNamespace(
        original="x",
        ready=SimpleNamespace(
            parts=SimpleNamespace(unit_sizes=np.unique(sealed, return_counts=True)[1]),
            sealed_units=sealed,
            search_units=np.arange(10),
            promise=Promise(Top1(), max_drop=0.02),
            tested=None,
        ),
        trials=SimpleNamespace(
            binary=binary, done={"a": trial, "b": trial}, drops=lambda _: np.zeros(10)
        ),
    )


def reading(**lost: int) -> Reading:
    scores = {key: np.array([0.0] * count + [1.0] * (N - count)) for key, count in lost.items()}
    return Reading(np.ones(N), scores, np.arange(0), {})


def test_labels_are_enough_once_every_rung_holds_at_its_worst() -> None:
    ladder = Ladder("x", ("a", "b"))
    assert surely_holds(judge(), ladder, reading(a=1, b=3))
    assert not surely_holds(judge(), ladder, reading(a=1, b=20))
    assert not surely_holds(judge(), ladder, reading(a=20, b=1))


def test_a_rung_that_failed_ends_the_ladder_whatever_labels_say() -> None:
    read = reading(a=1)
    failed = Reading(read.original, {**read.scores, "b": "it died"}, read.rows, {})
    assert surely_holds(judge(), Ladder("x", ("a", "b")), failed)


@pytest.mark.parametrize("kind", [{"binary": False}, {"units": np.arange(N) // 2}])
def test_where_betting_judges_labels_are_never_looked_at_half_way(kind: dict[str, Any]) -> None:
    assert not surely_holds(judge(**kind), Ladder("x", ("a",)), reading(a=0))
