"""Take labels that come back by the ids of requests, in any order, and count each answer once.

Labels are counted in the order of the answers, not of their arrival: an answer whose label is late
holds those behind it back, until it comes or too many wait. Otherwise the labels of wrong answers,
which people send first, would raise an alarm that nothing warrants.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError

MOST_OPEN = 1000
"""Audited answers that wait for their label; past them the oldest is given up."""
_MOST_BYTES = 64 << 20
_MOST_DONE = 10_000
"""Counted ids that are remembered, to tell who comes twice."""


@dataclass
class _Open:
    """An audited answer whose label, or whose comparison, is awaited."""

    rows: int = 1
    row: int = 0
    pair: tuple[Tensors, Tensors] | None = None
    label: Any = None

    @property
    def size_bytes(self) -> int:
        """Size of what is kept of it."""
        return sum(array.nbytes for each in self.pair or () for array in each.values())


@dataclass
class LabelCounts:
    """Counts of labels by what became of them.

    Attributes:
        counted: Answers that were counted with their label.
        unknown: Labels for ids that weren't audited, as most aren't, or that were given up.
        twice: Labels that came again.
        contradicting: Labels that came again and said something else; the first one counts.
        unread: Labels that the metric can't read.
        given_up: Audited answers whose label didn't come in time.
    """

    counted: int = 0
    unknown: int = 0
    twice: int = 0
    contradicting: int = 0
    unread: int = 0
    given_up: int = 0


@dataclass
class Labels:
    """The audited answers of one model that wait for their labels; for any thread.

    Attributes:
        loss: Function that returns the score lost on an answer, given its label.
        found: Callback that receives the losses of answers, in the answers' order.
        counts: Counts of labels by what became of them.
        last: Line about the last label that couldn't be used; "" if there was none.
    """

    loss: Callable[[Tensors, Tensors, Array], float]
    found: Callable[[list[float]], None]
    counts: LabelCounts = field(default_factory=LabelCounts)
    last: str = ""
    _open: OrderedDict[str, _Open] = field(default_factory=OrderedDict)
    _done: OrderedDict[str, Any] = field(default_factory=OrderedDict)
    _settled: deque[tuple[str, _Open]] = field(default_factory=deque)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held for moments alone, since the event loop's thread takes it, too."""
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, name: str, rows: int, row: int) -> bool:
        """Begin to wait for the label of an answer that is audited; False if its id is in use.

        Args:
            name: Id of the request.
            rows: Number of rows in the request.
            row: Row that is audited.
        """
        with self._lock:
            if name in self._open or name in self._done:
                return False
            self._open[name] = _Open(rows, row)
            return True

    def audited(self, name: str, outputs: Tensors, exact: Tensors) -> None:
        """Note both models' answers to a request that was announced."""
        with self._lock:
            one = self._open.get(name)
            if one is not None:
                one.pair = (outputs, exact)
                self._bytes += one.size_bytes
                self._settle()
        self._count_settled()

    def drop(self, name: str) -> None:
        """Forget a request whose answer won't be compared."""
        with self._lock:
            if self._forget(name):
                self._settle()
        self._count_settled()

    def label(self, name: str, label: Any) -> str:
        """Take the label of a request; return what became of it: "taken", "waiting", or a count.

        Args:
            name: Id of the request.
            label: Label of its sample as JSON gives it; of several rows a list with one for each.
        """
        with self._lock:
            one = self._open.get(name)
            known = self._done.get(name) if one is None else one.label
            if one is None and name not in self._done:
                return self._count("unknown")
            if known is not None:
                if known == label:
                    return self._count("twice")
                self.last = f"request {name!r:.80} got the label {label!r:.40} after {known!r:.40}"
                return self._count("contradicting")
            assert one is not None
            many = one.rows > 1
            if label is None or (many and not (isinstance(label, list) and len(label) == one.rows)):
                self.last = f"request {name!r:.80} has {one.rows} rows; its label is {label!r:.40}"
                return self._count("unread")
            one.label = label
            self._settle()
            waits = name in self._open
        self._count_settled()
        return "waiting" if waits else "taken"

    @property
    def waiting(self) -> int:
        """Number of audited answers that wait for a label, or behind one that does."""
        return len(self._open)

    def _count(self, name: str) -> str:
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        return name

    def _forget(self, name: str) -> _Open | None:
        one = self._open.pop(name, None)
        if one is not None:
            self._bytes -= one.size_bytes
        return one

    def _settle(self) -> None:
        """Take out the oldest answers, as far as their labels are there; give up what is too much."""
        while self._open:
            name, one = next(iter(self._open.items()))
            whole = one.pair is not None and one.label is not None
            if not whole and len(self._open) <= MOST_OPEN and self._bytes <= _MOST_BYTES:
                break
            self._forget(name)
            if not whole:
                self._count("given_up")
                continue
            self._settled.append((name, one))
            self._done[name] = one.label
            if len(self._done) > _MOST_DONE:
                self._done.popitem(last=False)

    def _count_settled(self) -> None:
        """Score what was taken out, in its order; it may take long, so only others who count wait."""
        with self._counting:
            losses = []
            while self._settled:
                name, one = self._settled.popleft()
                assert one.pair is not None
                try:
                    label = one.label[one.row] if one.rows > 1 else one.label
                    losses.append(self.loss(*one.pair, np.asarray(label)[None]))
                    self._count("counted")
                except (InputError, ValueError, TypeError, IndexError, OverflowError) as error:
                    self.last = f"request {name!r:.80}: {error}"
                    self._count("unread")
            if losses:
                self.found(losses)
