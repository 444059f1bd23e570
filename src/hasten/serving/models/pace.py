"""When the engine of a model that isn't served yet may work, while others are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from hasten.bundle import Loaded
from hasten.core.tensors import Array, Tensors

_LOOKS, _PAUSE_S = 100, 0.001


class BackgroundPace:
    """Runs requests of the server's own, now or when live ones are hardly held up.

    Args:
        idle: Whether no live request waits or runs: each run waits for that, a tenth of a second at
            most, and for as long as it took after it; None for at once.
        clock_ns: Monotonic clock, in nanoseconds.
        sleep: For seconds.

    Attributes:
        took_ns: The last run.
        spent_ns: All runs together.
    """

    def __init__(
        self,
        idle: Callable[[], bool] | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._idle, self._clock_ns, self._sleep = idle, clock_ns, sleep
        self.took_ns = self.spent_ns = 0

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
        began_ns = self._clock_ns()
        answers = session.run(request)
        self.took_ns = self._clock_ns() - began_ns
        self.spent_ns += self.took_ns
        if self._idle is not None:
            self._sleep(self.took_ns / 1e9)
        return answers

    def typical_ns(self, times: Sequence[int]) -> float:
        """What a run takes that was timed several times.

        The median; beside live requests the least, which they disturbed least.
        """
        return max(1.0, float(min(times) if self.patient else np.median(times)))

    def _wait(self) -> None:
        for _ in range(_LOOKS if self._idle is not None else 0):
            if self._idle is not None and self._idle():
                return
            self._sleep(_PAUSE_S)
