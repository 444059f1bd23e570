"""Trials whose times are known beforehand: the baseline takes 8 ms, and everything else 1 ms."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from hasten.engines.layers import LayerTime
from hasten.measure.latency import Round
from hasten.measure.workbench import Workbench


def steady(entrants: dict[str, Any], *_: Any, first: int = 0, **__: Any) -> Iterator[Round]:
    """Yield rounds in which the baseline takes 8 ms, and everything else 1 ms."""
    for number in itertools.count(first):
        block = {who: 8_000_000 if who.startswith("baseline") else 1_000_000 for who in entrants}
        yield Round(number, {who: (ns,) * 3 for who, ns in block.items()}, {}, True)


@contextlib.contextmanager
def steady_rounds() -> Iterator[None]:
    """Let rounds take the time that `steady` says."""
    with contextlib.ExitStack() as stack:
        for place in ("hasten.optimization.measured.screening", "hasten.measure.race"):
            stack.enter_context(patch(f"{place}.rounds", steady))
        yield


@contextlib.contextmanager
def int8_steps_are_faster() -> Iterator[None]:
    """Let each step of a profile in int8 take half of the time that each other step takes.

    Profiles are made as ever, and only what a clock said is replaced: steps of tiny networks take a
    few microseconds.
    """
    profile = Workbench.profile

    def told(self: Workbench, *args: Any, **settings: Any) -> tuple[LayerTime, ...]:
        steps = profile(self, *args, **settings)
        return tuple(
            replace(
                step, latency_ns=(1000 if step.precision == "i8" else 2000,) * len(step.latency_ns)
            )
            for step in steps
        )

    with patch.object(Workbench, "profile", told):
        yield
