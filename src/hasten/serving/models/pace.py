"""Run requests of the server's own in the background, without slowing live requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from hasten.bundle import Loaded
from hasten.core.tensors import Array, Tensors

_LOOKS, _PAUSE_S = 100, 0.001


class BackgroundPace:
    """Runner of the server's own requests, at once or when live requests are hardly delayed.

    Args:
        idle: Function that tells whether no live request waits or runs. Each run waits for that, for
            a tenth of a second at most, and afterwards pauses for as long as it took. None to run
            without waiting.
        clock_ns: Monotonic clock, in nanoseconds.
        sleep: Function that sleeps for a number of seconds.

    Attributes:
        took_ns: Time of the last run, in nanoseconds.
        spent_ns: Total time of all runs, in nanoseconds.
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
        """Whether runs wait for live requests."""
        return self._idle is not None

    def run(self, session: Loaded, request: Tensors) -> dict[str, Array]:
        """Answer a request once live requests allow it.

        Raises:
            CandidateError: the session's `run` failed.
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
        """Return the typical time of a run that was timed several times, in nanoseconds.

        It is the median; beside live requests it is the least, which they disturbed least.
        """
        return max(1.0, float(min(times) if self.patient else np.median(times)))

    def _wait(self) -> None:
        for _ in range(_LOOKS if self._idle is not None else 0):
            if self._idle is not None and self._idle():
                return
            self._sleep(_PAUSE_S)
