"""Take labels that come back by the ids of requests, in any order, and count each answer once.

Labels are counted in the order of the answers, not of their arrival: an answer whose label is late
holds those behind it back, until it comes or too many wait. Otherwise the labels of wrong answers,
which people send first, would raise an alarm that nothing warrants.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.serving.wire.json_labels import LabelOf, label_array

MOST_OPEN = 1000
"""Audited answers that wait for their label; past them the oldest is given up."""
_MOST_BYTES = 64 << 20
_MOST_DONE = 10_000
"""Counted answers that are remembered, to tell whose label comes twice."""
_DIGEST_BYTES = 16
_SHOWN = 80
"""Characters of an id in messages."""
_LONGEST_LINE = 400


class _Done(NamedTuple):
    """An answer whose label came: its row, and the label's digest."""

    rows: int
    row: int
    digest: bytes


@dataclass
class _Open:
    """An audited answer whose label, or whose comparison, is awaited."""

    name: str
    rows: int = 1
    row: int = 0
    pair: tuple[Tensors, Tensors] | None = None
    label: Array | None = None
    digest: bytes = b""

    @property
    def size_bytes(self) -> int:
        """Size of what is kept of it."""
        size = 0 if self.label is None else self.label.nbytes
        return size + sum(array.nbytes for each in self.pair or () for array in each.values())


@dataclass
class LabelCounts:
    """Counts of labels by what became of them.

    Attributes:
        counted: Answers that were counted with their label.
        unknown: Labels for ids that weren't audited, as most aren't, that were given up, or that were another
            client's.
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
    _open: OrderedDict[bytes, _Open] = field(default_factory=OrderedDict)
    _done: OrderedDict[bytes, _Done] = field(default_factory=OrderedDict)
    _settled: deque[_Open] = field(default_factory=deque)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held for moments alone, since the event loop's thread takes it, too."""
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, client: str, name: str, rows: int, row: int) -> bytes:
        """Begin to wait for the label of an answer that is audited.

        Args:
            client: Name of the client that asked; "" where clients aren't told apart.
            name: Id of the request.
            rows: Number of rows in the request.
            row: Row that is audited.

        Returns:
            Key of the answer; b"" if the client has used the id before.
        """
        key = _key(client, name)
        with self._lock:
            if key in self._open or key in self._done:
                return b""
            self._open[key] = _Open(name[:_SHOWN], rows, row)
            return key

    def audited(self, key: bytes, outputs: Tensors, exact: Tensors) -> None:
        """Note both models' answers to a request that was announced; not for the event loop's thread."""
        with self._lock:
            one = self._open.get(key)
            if one is not None:
                one.pair = (outputs, exact)
                self._bytes += one.size_bytes - (0 if one.label is None else one.label.nbytes)
                self._settle()
        self._count_settled()

    def drop(self, key: bytes) -> None:
        """Forget a request whose answer won't be compared; not for the event loop's thread."""
        with self._lock:
            if self._forget(key):
                self._settle()
        self._count_settled()

    def take(self, client: str, given: Iterable[LabelOf]) -> dict[str, int]:
        """Take labels of requests; not for the event loop's thread.

        Args:
            client: Name of the client that sends them; "" where clients aren't told apart.
            given: Labels with the ids of the requests.

        Returns:
            How many came to what: "taken", "waiting", or a field of `LabelCounts`.
        """
        became: Counter[str] = Counter()
        try:
            for one in given:
                became[self._take(_key(client, one.id), one)] += 1
        finally:
            self._count_settled()
        return dict(became)

    @property
    def waiting(self) -> int:
        """Number of audited answers that wait for a label, or behind one that does."""
        return len(self._open)

    def _take(self, key: bytes, given: LabelOf) -> str:
        with self._lock:
            known = self._open.get(key) or self._done.get(key)
            if known is None:
                return self._count("unknown")
        try:  # without the lock: it takes long where a label is long
            label = label_array(given, known.rows, known.row)
        except InputError as error:
            with self._lock:
                return self._count("unread", f"request {given.id[:_SHOWN]!r}: {error}")
        digest = _digest(label)
        with self._lock:
            one = self._open.get(key)
            first = one or self._done.get(key)
            if first is None:
                return self._count("unknown")
            if first.digest == digest:
                return self._count("twice")
            if one is None or one.digest:
                name = given.id[:_SHOWN]
                said = f"request {name!r} got another label after the first one: {given.shown}"
                return self._count("contradicting", said)
            one.label, one.digest = label, digest
            self._bytes += label.nbytes
            self._settle()
            return "waiting" if key in self._open else "taken"

    def _count(self, name: str, last: str = "") -> str:
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        if last:
            self.last = last[:_LONGEST_LINE]
        return name

    def _forget(self, key: bytes) -> _Open | None:
        one = self._open.pop(key, None)
        if one is not None:
            self._bytes -= one.size_bytes
        return one

    def _settle(self) -> None:
        """Take out the oldest answers, as far as their labels are there; give up what is too much."""
        while self._open:
            key, one = next(iter(self._open.items()))
            whole = one.pair is not None and one.label is not None
            if not whole and len(self._open) <= MOST_OPEN and self._bytes <= _MOST_BYTES:
                break
            self._forget(key)
            if not whole:
                self._count("given_up")
                continue
            self._settled.append(one)
            self._done[key] = _Done(one.rows, one.row, one.digest)
            if len(self._done) > _MOST_DONE:
                self._done.popitem(last=False)

    def _count_settled(self) -> None:
        """Score what was taken out, in its order; it may take long, so only others who count wait."""
        with self._counting:
            losses = []
            try:
                while self._settled:
                    one = self._settled.popleft()
                    try:
                        losses.append(self._lost(one))
                        became = "counted", ""
                    except Exception as error:  # what else was scored is evidence all the same
                        became = "unread", f"request {one.name!r}: {error}"
                    with self._lock:
                        self._count(*became)
            finally:
                if losses:
                    self.found(losses)

    def _lost(self, one: _Open) -> float:
        assert one.pair is not None
        assert one.label is not None
        lost = float(self.loss(*one.pair, one.label))
        if not -1 <= lost <= 1:
            raise InputError(f"the metric says that {lost:g} is lost, which isn't between -1 and 1")
        return lost


def _key(client: str, name: str) -> bytes:
    """Return what a request is known by: its client and its id, however long they are."""
    whole = f"{len(client)}:{client}{name}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(whole, digest_size=_DIGEST_BYTES).digest()


def _digest(label: Array) -> bytes:
    """Return the digest of a label, which is equal for equal numbers of all types."""
    plain = label if label.dtype.kind == "U" else label.astype(np.float64)
    digest = hashlib.blake2b(f"{plain.dtype}{plain.shape}".encode(), digest_size=_DIGEST_BYTES)
    digest.update(plain.tobytes())
    return digest.digest()
