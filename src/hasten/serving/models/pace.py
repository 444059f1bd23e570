"""When the engine of a model that isn't served yet may work, while others are."""

from __future__ import annotations

import time
from collections.abc import Callable

from hasten.bundle import Loaded
from hasten.tensors import Array, Tensors

_LOOKS, _PAUSE_S = 100, 0.001


class Pace:
    """Runs requests of the server's own, now or when live ones are hardly held up.

    Args:
        idle: Whether no live request waits or runs: each run waits for that, a tenth of a second at
            most, and for as long as it took after it; None for at once.
        clock_ns: Monotonic clock, in nanoseconds.

    Attributes:
        took_ns: The last run.
    """

    def __init__(
        self,
        idle: Callable[[], bool] | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._idle, self.clock_ns = idle, clock_ns
        self.took_ns = 0

    @property
    def patient(self) -> bool:
        """Whether there is anybody to wait for."""
        return self._idle is not None

    def run(self, session: Loaded, request: Tensors) -> dict[str, Array]:
        """Answer a request.

        Raises:
            CandidateError: as of the session's `run`.
        """
        self._wait()
        began_ns = self.clock_ns()
        answers = session.run(request)
        self.took_ns = self.clock_ns() - began_ns
        if self._idle is not None:
            time.sleep(self.took_ns / 1e9)
        return answers

    def _wait(self) -> None:
        for _ in range(_LOOKS if self._idle is not None else 0):
            if self._idle is not None and self._idle():
                return
            time.sleep(_PAUSE_S)
