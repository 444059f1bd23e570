"""What every test of the server begins with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hasten.serving.logs import LOGGER


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what clients of a server in this process set of its log."""
    level, propagate, handlers = LOGGER.level, LOGGER.propagate, LOGGER.handlers[:]
    yield
    LOGGER.setLevel(level)
    LOGGER.propagate, LOGGER.handlers[:] = propagate, handlers
