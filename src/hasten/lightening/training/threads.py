"""Choose the number of threads that torch trains with, by timing steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch

_TRIES = 2
_FAR_SLOWER = 2.0
"""Factor on the time of a step above which one try is enough to reject a number of threads."""
_ALONE = 0.75
"""Share of a core below which a single thread shares its core with other programs."""
_REST = 30.0
"""Time between two trials, as a multiple of the duration of the last one."""


class Threads:
    """Number of threads for the steps of a training.

    The threads of one operation wait for each other. If other programs use the cores, each
    operation waits until all its threads have had a turn. On two cores with a load average of 20, a
    step of a small network took 1.4 s with one thread and 25 s with two.

    A trial starts with the smallest number and goes on to the next one as long as steps get faster.
    It stops at one thread if that thread already has to share its core. Trials are repeated, since
    the load of a host changes.

    Attributes:
        count: Number of threads for the next step.
        seconds: Shortest time of a step in the current trial or the last one, in seconds.
        settled: Whether the trial has ended.

    Args:
        choices: Numbers of threads to choose from.
        use: Function that sets the number of threads.
        now: Clock in seconds.
        computed: Clock of the process's own computing time in seconds.
    """

    def __init__(
        self,
        choices: Iterable[int],
        *,
        use: Callable[[int], None] = torch.set_num_threads,
        now: Callable[[], float] = time.monotonic,
        computed: Callable[[], float] = time.process_time,
    ) -> None:
        self._choices = sorted({max(1, count) for count in choices})
        self._use, self._now, self._computed = use, now, computed
        self._begin()

    def _begin(self) -> None:
        self.count, self.settled = self._choices[0], len(self._choices) == 1
        self.seconds, self._share, self._tries = math.inf, 0.0, 0
        self._before, self._next = math.inf, math.inf
        self._began = self._now()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Run a step with the chosen number of threads, and learn from its duration."""
        if self.settled and self._now() >= self._next:
            self._begin()
        self._use(self.count)
        began, computed = self._now(), self._computed()
        yield
        took = self._now() - began
        self.seconds = min(self.seconds, took)
        if not self.settled:
            share = (self._computed() - computed) / took if took > 0 else 1.0
            self._learn(took, share)

    def _learn(self, took: float, share: float) -> None:
        """Take another step with this number of threads, go on to the next number, or settle."""
        self._share, self._tries = max(self._share, share), self._tries + 1
        if self._tries < _TRIES and took < _FAR_SLOWER * self._before:
            return
        place = self._choices.index(self.count)
        if self.seconds >= self._before:
            self._settle(self._choices[place - 1], self._before)
        elif self.count == self._choices[-1] or (self.count == 1 and self._share < _ALONE):
            self._settle(self.count, self.seconds)
        else:
            self.count, self._before = self._choices[place + 1], self.seconds
            self.seconds, self._tries = math.inf, 0

    def _settle(self, count: int, seconds: float) -> None:
        self.count, self.seconds, self.settled = count, seconds, True
        self._next = self._now() + _REST * (self._now() - self._began)


@contextlib.contextmanager
def chosen_threads(device: torch.device) -> Iterator[Threads]:
    """Choose among one thread, half of torch's and all of them; on a GPU, all.

    Torch has its own number of threads again afterwards.
    """
    most = torch.get_num_threads()
    try:
        yield Threads((1, most // 2, most) if device.type == "cpu" else (most,))
    finally:
        torch.set_num_threads(most)
