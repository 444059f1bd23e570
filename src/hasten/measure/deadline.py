"""The end of a whole command, and what each of its stages may spend of the time until then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias, get_args

Stage: TypeAlias = Literal["prepare", "search", "race", "certify", "figures", "further", "deliver"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages of a command in their order."""
_SEARCHES = 0.5
"""Least share for the search of the time that no stage needs to do anything at all."""
_SLACK, _SLACK_S = 0.1, 5.0


Plan: TypeAlias = Callable[[], Mapping[Stage, "Need"]]


@dataclass(frozen=True)
class Need:
    """Need of a stage, in seconds.

    Attributes:
        least_s: Time without which the stage can do nothing of use.
        wish_s: Time that it takes where there is plenty.
    """

    least_s: float = 0.0
    wish_s: float = 0.0


class Deadline:
    """The moment at which a command has promised to be done; without a limit it never comes.

    One stage spends at a time, from `enter` to the next `enter`. It may spend what is left but for the
    needs of the stages after it (`left_s`). Where the time is too short for all wishes, the search gets
    at least half of what nobody needs, and the others shrink alike. A step that can't be shortened
    runs in a process that is ended when only the least needs of later stages are left (`step_s`).
    Whoever measures how long something takes says so (`saw`); the plan derives the needs from that.

    Args:
        limit_s: Time for the whole command, in seconds; None for no limit.
        began: `time.monotonic()` at the start of the command; now by default.
    """

    def __init__(self, limit_s: float | None = None, began: float | None = None) -> None:
        self.limit_s = limit_s
        self.began = time.monotonic() if began is None else began
        self.stage: Stage = "prepare"
        self._entered = self.began
        self._waited_s = 0.0
        self._plan: Plan = dict
        self._seen: dict[str, float] = {}

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.limit_s is not None

    @property
    def late(self) -> bool:
        """Whether the stage has spent its time."""
        return self.left_s() <= 0

    @property
    def broken(self) -> bool:
        """Whether the limit is exceeded by more than is promised, which is a tenth or 5 s."""
        slack_s = max(_SLACK_S, _SLACK * (self.limit_s or 0.0))
        return self.limit_s is not None and time.monotonic() > self._end + slack_s

    @property
    def elapsed_s(self) -> float:
        """Return the time since the command began, in seconds."""
        return time.monotonic() - self.began

    def enter(self, stage: Stage) -> None:
        """Begin a stage; the one before has spent what it has spent."""
        self.stage, self._entered = stage, time.monotonic()

    def follow(self, plan: Plan) -> None:
        """Let a function say what each stage needs; it is asked again whenever needs matter."""
        self._plan = plan

    def needs(self, stage: Stage) -> Need:
        """Return what a stage needs, as far as it is known."""
        return self._plan().get(stage, Need())

    def saw(self, what: str, took_s: float) -> None:
        """Note how long something took; what comes later weighs as much as all before."""
        known = self._seen.get(what)
        self._seen[what] = took_s if known is None else (known + took_s) / 2

    def seen(self, what: str, unknown_s: float) -> float:
        """Return how long something takes, in seconds; `unknown_s` where it was never seen."""
        return self._seen.get(what, unknown_s)

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Note how long the block takes, unless it fails."""
        began = time.monotonic()
        yield
        self.saw(what, time.monotonic() - began)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Don't count the time of the block: a person is being waited for."""
        began = time.monotonic()
        try:
            yield
        finally:
            waited_s = time.monotonic() - began
            self._waited_s += waited_s
            self._entered += waited_s

    def left_s(self, share: float = 1.0) -> float:
        """Return the time that the stage may still spend, in seconds.

        Args:
            share: Share of the stage's whole time that may be spent.
        """
        if self.limit_s is None:
            return inf
        later = self._later()
        least_s = sum(need.least_s for need in later)
        wished_s = sum(need.wish_s for need in later) - least_s
        own = self.needs(self.stage)
        spare_s = self._end - self._entered - least_s - own.least_s
        part = _SEARCHES if self.stage == "search" else 0.0
        if not part and (extra_s := own.wish_s - own.least_s) > 0:
            part = extra_s / (extra_s + wished_s)
        spends_s = own.least_s + max(spare_s - wished_s, part * spare_s, 0.0)
        own_s = self._entered + share * spends_s - time.monotonic()
        return min(own_s, self._end - least_s - time.monotonic())

    def most_s(self) -> float:
        """Return the time until later stages could do nothing of use any more, in seconds."""
        if self.limit_s is None:
            return inf
        least_s = sum(need.least_s for need in self._later())
        return self._end - least_s - time.monotonic()

    def later_s(self) -> float | None:
        """Return the time that the stages after this one wish for, in seconds; None where unknown."""
        if not self._plan():
            return None
        return sum(need.wish_s for need in self._later())

    def step_s(self, limit_s: float) -> float:
        """Return the longest time of a step in a process of its own, in seconds.

        What must be done in any case, the preparation and the delivery, isn't cut.

        Args:
            limit_s: Longest time of a step where nobody waits.
        """
        if self.stage in ("prepare", "deliver"):
            return limit_s
        cut_s = self.left_s() if self.stage in ("search", "further") else self.most_s()
        return max(0.1, min(limit_s, cut_s))

    @property
    def _end(self) -> float:
        return self.began + self._waited_s + (self.limit_s or 0.0)

    def _later(self) -> list[Need]:
        needs = self._plan()
        return [needs.get(stage, Need()) for stage in STAGES[STAGES.index(self.stage) + 1 :]]
