"""What holds for every test of serving: warm-ups take the time that they need, and figures are of now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hasten.serving.http import page
from hasten.serving.models import opening
from hasten.serving.observation import scrapes


@pytest.fixture(scope="module", autouse=True)
def _warm_ups_are_whole() -> Iterator[None]:
    """Have all batch sizes warmed up in this process, which on a busy host takes longer than it may."""
    with pytest.MonkeyPatch.context() as patched:
        for limit in ("_BUDGET_NS", "_SLOWEST_NS"):
            patched.setattr(opening, limit, 60e9)
        yield


@pytest.fixture(scope="module", autouse=True)
def _figures_are_of_now() -> Iterator[None]:
    """Have each answer of figures tell what was counted before it."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (scrapes, page):
            patched.setattr(module, "_KEPT_NS", 0)
        yield
