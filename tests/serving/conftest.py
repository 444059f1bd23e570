"""What holds for every test of serving: a warm-up takes the time that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hasten.serving.models import opening


@pytest.fixture(scope="module", autouse=True)
def _warm_ups_are_whole() -> Iterator[None]:
    """Have all batch sizes warmed up in this process, which on a busy host takes longer than it may."""
    with pytest.MonkeyPatch.context() as patched:
        for limit in ("_BUDGET_NS", "_SLOWEST_NS"):
            patched.setattr(opening, limit, 60e9)
        yield
