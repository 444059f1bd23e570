"""Decide which requests run next, in which batch, and which are refused; the clock is handed in.

A request waits for three reasons only: all engines are busy, a request of higher priority goes first,
or the batch curve says that waiting for the next arrival lowers the mean latency. The third wait is
not a fixed delay: it is decided again at each arrival, and has an end.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hasten.serving.models.latencies import Latencies
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.turns import Turns

USUAL_PRIORITY = 2
"""Priority of a request that states none: others can have a higher or a lower one."""
LOWEST_PRIORITY = 64
"""Lowest priority: further ones count as this, so that no client makes levels without end."""
_LOOKS = 16
"""Looks for overtaken requests within the longest allowed wait; each goes through the whole queue."""
ACCEPTED_WAITS = 4
"""Times as long that others may go before a request that belongs to an accepted one, since its refusal wastes work."""
_RATE_WEIGHT = 1 / 16
_FULL = 0.9
"""Share of the capacity; from this load on, batches are expected to be full."""
_STRETCH, _MOST_LATE, _MOST_MARGIN = 0.05, 0.005, 3.0
_BATCH_MATES_NS = 1_000_000
"""Gap below which requests of several connections wait for the loop's turn, to share a batch."""
_TRY_AFTER_NS = 50_000_000
_MOST_GAP_NS = 10e9


_GAIN = 1.02
_LEAST_HOPE = 0.5
"""Fewest arrivals expected within the longest worthwhile wait; with fewer, the mean gain is negative."""


@dataclass(eq=False, slots=True)
class Pending:
    """A request that waits for its answer.

    Attributes:
        rows: Samples in the request.
        key: Key that is equal for requests that can share a batch.
        priority: Priority from 1, the highest, to `LOWEST_PRIORITY`; equal ones go in turn by client, then in order
            of arrival. If the client is named, its priorities order only its own requests.
        deadline_ns: Deadline on the monotonic clock; `math.inf` for none.
        arrived_ns: Time of arrival on the monotonic clock.
        state: "new", "queued", "running", or "done" (answered, refused or dropped).
        queued_ns: Time when the request was accepted, on the monotonic clock.
        order: Level, turn among the requests of all clients at that level, and rank in the order of arrival.
        source: Number of the connection that sent the request; 0 if unknown.
        tried: Whether the request runs although it will probably be late, to find out how fast the
            machine is now.
        client: Client that the request is counted under.
        named: Whether the client is known by a token or a certificate, and others are too.
        accepted: Whether the request belongs to another one that was accepted, so that it isn't refused for its wait,
            unless others have gone before it for far too long.
    """

    rows: int
    key: Hashable
    priority: int
    deadline_ns: float
    arrived_ns: int
    state: str = "new"
    queued_ns: int = 0
    order: tuple[int, int, int] = (0, 0, 0)
    tried: bool = False
    source: int = 0
    client: str = ""
    named: bool = False
    accepted: bool = False


P = TypeVar("P", bound=Pending)


@dataclass(slots=True)
class BatchRun(Generic[P]):
    """Decision to run requests now, as one batch.

    Attributes:
        items: Requests of the batch.
        rows: Total rows of the batch.
    """

    items: list[P]
    rows: int


@dataclass(slots=True)
class Wait:
    """Decision to wait until a time, or until a request arrives or a batch ends.

    Attributes:
        until_ns: Time to decide again, on the monotonic clock.
    """

    until_ns: int


@dataclass(slots=True)
class _Busy:
    rows: int
    end_ns: float


@dataclass
class Scheduler(Generic[P]):
    """Scheduler of one model's queue.

    Requests of a lower level go first. Those of named clients are all at the usual one, where clients take
    turns, so that none gets ahead of the others by its priorities. Other requests' level is their priority.

    A named client's turns are fixed when its requests are queued. Its most urgent request takes the first of
    them, in exchange for its own, once that turn comes. Of requests with different rows, one may so take a turn
    that was meant for fewer rows. The client's turns stay the same in total, so others lose nothing in the long
    run.

    Args:
        latencies: Expected times of the model's batches.
        most_wait_ns: Longest wait in the queue; a request that would wait longer is refused, whatever
            its deadline.
        sessions: Number of batches that run in parallel.
    """

    latencies: Latencies
    most_wait_ns: float
    sessions: int = 1
    _rows: dict[int, int] = field(default_factory=dict)
    """Level -> number of queued rows."""
    _of: dict[str, int] = field(default_factory=dict)
    """Client -> number of its queued rows."""
    _own: dict[str, dict[int, int]] = field(default_factory=dict)
    """Named client -> priority -> number of its queued rows."""
    _urgent: dict[str, list[tuple[int, int, P]]] = field(default_factory=dict)
    """Named client -> heap of the priority, the rank in the order of arrival, and the request."""
    _turns: dict[int, Turns] = field(default_factory=dict)
    """Level of which rows are queued -> turns of the clients."""
    _latest: int = 0
    """Latest turn that ran: new turns come after it, and so after those of a batch that may yet be put back."""
    _heap: list[tuple[tuple[int, int, int], P]] = field(default_factory=list)
    """Order and request: two requests never have the same order, so they aren't compared."""
    _running: dict[int, _Busy] = field(default_factory=dict)
    _runs: int = 0
    _orders: int = 0
    _gap_ns: float = _MOST_GAP_NS
    _gaps: int = 0
    _last_ns: int | None = None
    _waiting_since_ns: int | None = None
    _ended_ns: int | None = None
    _source: int = 0
    _margins: dict[str, float] = field(default_factory=dict)
    """Named client, or "" for all others -> margin of the predictions for requests that have deadlines."""
    _left: int = 0
    """Number of entries in the heap whose requests are no longer queued, or have another order."""
    _looked_ns: float = -math.inf
    """Time of the latest look for overtaken requests."""

    # -- arrivals

    def offer(self, item: P, now_ns: int) -> None:
        """Queue a request.

        Raises:
            ProtocolError: the request can't be answered by its deadline, or would wait too long; the
                error states when to retry.
        """
        self._note_arrival(now_ns)
        if item.deadline_ns <= now_ns:
            item.state = "done"
            raise ProtocolError(Kind.LATE, "the deadline had passed when the request arrived")
        level = _level(item)
        if self._running or self._rows or item.deadline_ns != math.inf:
            self._admit(item, level, now_ns)
        self._orders += 1
        if item.priority > LOWEST_PRIORITY:
            item.priority = LOWEST_PRIORITY
        turn = self._turns_of(level).next(item.client, item.rows)
        item.order, item.state, item.queued_ns = (level, turn, self._orders), "queued", now_ns
        self._count(item, item.rows)
        self._push(item)

    def take_alone(self, item: P, now_ns: int) -> BatchRun[P] | None:
        """Accept a request that can run at once: the model is idle, and no batch mate is expected.

        Returns:
            The run; None if the request has to be queued with `offer`.
        """
        if self._running or self._rows or item.deadline_ns != math.inf:
            return None
        again = item.source == self._source != 0
        self._source = item.source
        if not again and self.rate_per_ns(now_ns) * _BATCH_MATES_NS > 1:
            return None
        self._note_arrival(now_ns)
        item.state, item.queued_ns = "running", now_ns
        return BatchRun([item], item.rows)

    def _admit(self, item: P, level: int, now_ns: int) -> None:
        """Refuse a request that would be late, or would wait too long.

        Raises:
            ProtocolError: the request is refused.
        """
        ahead = self._ahead(item, level)
        margin = self._margin(item) if self._margins else 1.0
        left_ns = item.deadline_ns - now_ns
        if left_ns == math.inf:  # it can't be late
            wait_ns, own_ns = self._endless_ns(item.rows, ahead, now_ns), 0.0
        else:
            wait_ns, own_ns = self._plan(item.rows, ahead, left_ns, now_ns, margin)
        wait_ns, own_ns = wait_ns * margin, own_ns * margin
        late_ns = wait_ns + own_ns - left_ns
        if late_ns > 0 and not self._lone_try(item, now_ns):
            item.state = "done"
            raise ProtocolError(
                Kind.OVERLOADED,
                f"can't answer in time: it would take {_ms(wait_ns)} of waiting and {_ms(own_ns)} of "
                f"computing, but the deadline is in {_ms(left_ns)}; retry later or allow more",
                retry_s=late_ns / 1e9,
            )
        if wait_ns > self.most_wait_ns and not item.accepted:
            item.state = "done"
            raise ProtocolError(
                Kind.OVERLOADED,
                f"overloaded: the request would wait {_ms(wait_ns)}, but at most "
                f"{_ms(self.most_wait_ns)} are allowed; retry later",
                retry_s=(wait_ns - self.most_wait_ns) / 1e9,
            )

    def wait_of(self, item: Pending, now_ns: int) -> float:
        """Return the expected wait of a request without a deadline that isn't queued, in nanoseconds."""
        ahead = self._ahead(item, _level(item))
        return self._endless_ns(item.rows, ahead, now_ns) * self._margin(item)

    def _endless_ns(self, rows: int, ahead: int, now_ns: int) -> float:
        """Predict how long rows without a deadline wait at the machine's present speed, in nanoseconds."""
        return self._queue_ns(rows, ahead, self.latencies.best, self._busy_ns(now_ns))

    def _ahead(self, item: Pending, level: int) -> int:
        """Return the most rows that go before a new request of a level."""
        ahead = 0
        for each, rows in self._rows.items():
            if each <= level:
                ahead += rows
        own = self._of.get(item.client, 0)
        if self._own:
            for priority, rows in self._own.get(item.client, {}).items():
                if priority > item.priority:
                    ahead, own = ahead - rows, own - rows
        # Before it go at most as many rows of each client as the client's own, with these.
        clients = len(self._of) + (item.client not in self._of)
        return min(ahead, clients * (own + item.rows))

    def learn_from(self, other: Scheduler[P]) -> None:
        """Take over the margins that the scheduler of the replaced model has learned."""
        self._margins = dict(other._margins)

    def judge(self, item: P, *, late: bool) -> None:
        """Adjust the margin of predictions so that about one deadline in 200 is missed.

        The margin covers what predictions leave out, above all other load on the same processors. A named
        client has its own, since it can make its own requests late.

        Args:
            item: Accepted request that had a deadline.
            late: Whether it missed its deadline.
        """
        margin = self._margin(item)
        if late:
            margin = min(margin * (1 + _STRETCH), _MOST_MARGIN)
        else:
            margin = max(margin * (1 - _STRETCH * _MOST_LATE), 1.0)
        self._margins[item.client if item.named else ""] = margin

    def _margin(self, item: Pending) -> float:
        return self._margins.get(item.client if item.named else "", 1.0)

    def _plan(
        self, rows: int, ahead: int, left_ns: float, now_ns: int, margin: float = 1.0
    ) -> tuple[float, float]:
        """Predict how long a request waits, and how long its batch takes, in nanoseconds.

        If requests arrive faster than they are answered, batches will be full, including the
        request's own, since later requests join it.
        """
        latencies = self.latencies
        size = self._size(left_ns, now_ns, margin)
        busy_ns = self._busy_ns(now_ns)
        full = self._is_full(size, now_ns)
        batch = max(rows, size if full and (ahead or busy_ns) else min(size, ahead + rows))
        wait_ns = self._queue_ns(rows, ahead, size, busy_ns)
        return wait_ns, latencies.promised_ns(min(batch, latencies.most))

    def _queue_ns(self, rows: int, ahead: int, size: int, busy_ns: float) -> float:
        """Predict how long a request waits behind others, in batches of a size, in nanoseconds."""
        before = max(0, -(-(ahead + rows) // max(size, rows)) - 1)
        return busy_ns + before * self.latencies.expected_ns(size) / self.sessions

    def _size(self, left_ns: float, now_ns: int, margin: float = 1.0) -> int:
        """Return the batch size of the highest throughput for requests with `left_ns` to answer.

        A request that arrives during one batch meets its deadline in the next one if the rest of the
        running batch and the whole next batch fit into its time. If batches take half of that time,
        this holds for every request. Larger batches can be filled too, if enough requests arrive late
        during the running batch; those that arrive early are then refused.
        """
        latencies = self.latencies
        if left_ns == math.inf or latencies.best == 1:
            return latencies.best
        chosen = latencies.largest(left_ns / 2 / margin)
        rate, best = self.rate_per_ns(now_ns), 0.0
        for size in latencies.sizes:
            took_ns = margin * latencies.promised_ns(size)
            if size > latencies.best or took_ns > left_ns:
                break
            coming = rate * min(took_ns / self.sessions, left_ns - took_ns)
            rows_per_ns = _filled(size, coming) / took_ns
            if size < chosen or rows_per_ns > best * _GAIN:
                chosen, best = max(size, chosen), rows_per_ns
        return chosen

    def _busy_ns(self, now_ns: int) -> float:
        """Return the time until a session is free, in nanoseconds."""
        if len(self._running) < self.sessions:
            return 0.0
        first_ns = math.inf
        for each in self._running.values():
            first_ns = min(first_ns, each.end_ns)
        return max(0.0, first_ns - now_ns)

    def _lone_try(self, item: P, now_ns: int) -> bool:
        """Whether to accept a request although it may be late, since it delays no other request.

        Otherwise a machine that was slow for a while would refuse every request from then on, and
        the scheduler would never learn that the machine is fast again.
        """
        alone = not self._rows and not self._running
        rested = self._ended_ns is None or now_ns - self._ended_ns >= _TRY_AFTER_NS
        latencies, rows = self.latencies, item.rows
        least_ns = min(latencies.measured_ns(rows), latencies.expected_ns(rows))
        item.tried = alone and rested and now_ns + least_ns <= item.deadline_ns
        return item.tried

    def wait_ns(self, now_ns: int) -> float:
        """Return the expected wait of a request that arrives now, in nanoseconds."""
        return self._plan(1, self.queued_rows, math.inf, now_ns)[0]

    def _note_arrival(self, now_ns: int) -> None:
        if self._last_ns is not None:
            gap_ns = min(float(now_ns - self._last_ns), _MOST_GAP_NS)
            self._gaps += 1
            self._gap_ns += max(_RATE_WEIGHT, 1 / self._gaps) * (gap_ns - self._gap_ns)
        self._last_ns = now_ns

    def rate_per_ns(self, now_ns: int) -> float:
        """Return the recent rate of arrivals; it falls during a silence."""
        silent_ns = now_ns - (self._last_ns or now_ns)
        return 1 / max(self._gap_ns, silent_ns, 1.0)

    # -- departures

    def next(self, now_ns: int) -> BatchRun[P] | Wait | None:
        """Decide what to do now; None if there is nothing to do until an arrival or a batch's end.

        Call `hopeless` first: it removes the requests that can no longer meet their deadlines.
        """
        if len(self._running) >= self.sessions or not self._first():
            self._waiting_since_ns = None
            return None
        rows, items = self._choose(now_ns)
        until_ns = self._worth_waiting(rows, items, now_ns)
        if until_ns is not None:
            return Wait(until_ns)
        self._waiting_since_ns = None
        firsts: dict[int, int] = {}
        for item in items:
            level, turn, _ = item.order
            firsts.setdefault(level, turn)
            item.state = "running"
            self._latest = max(self._latest, turn)
        for level, turn in firsts.items():  # a batch may hold requests of several
            self._turns[level].begun(turn)
        self._remove(items)
        return BatchRun(items, rows)

    def _first(self) -> P | None:
        """Bring the request that goes first to the top of the heap, and return it; None if the queue is empty."""
        while self._heap:
            entry = self._heap[0]
            first = entry[1]
            if not _waits(entry):
                heapq.heappop(self._heap)
                self._left -= 1
                continue
            urgent = self._most_urgent(first.client) if first.named else first
            if urgent is first:
                return first
            self._exchange(first, urgent)
        return None

    def _most_urgent(self, client: str) -> P:
        """Return the request that goes first of a named client's in the heap; there must be one."""
        self._tidy(client)
        return self._urgent[client][0][2]

    def _exchange(self, first: P, urgent: P) -> None:
        """Exchange the turns of the request at the top of the heap and of its client's most urgent one."""
        level, turn, rank = first.order
        _, later, urgent_rank = urgent.order
        # A client's turns all differ; were two equal, this would still come to an end.
        urgent.order = level, min(turn, later - 1), urgent_rank
        first.order = level, later, rank
        heapq.heapreplace(self._heap, (first.order, first))
        heapq.heappush(self._heap, (urgent.order, urgent))
        self._leave(1)

    def _push(self, item: P) -> None:
        """Put a queued request into the heap, and into its client's own if that is named."""
        heapq.heappush(self._heap, (item.order, item))
        if item.named:
            self._push_urgent(item)

    def _push_urgent(self, item: P) -> None:
        """Put a queued request into its named client's own heap."""
        urgent = self._urgent.setdefault(item.client, [])
        heapq.heappush(urgent, (item.priority, item.order[2], item))
        self._tidy(item.client)

    def _take_out(self, first: P) -> None:
        """Remove the request that `_first` returned from the heap, and from its client's own."""
        heapq.heappop(self._heap)
        if first.named:
            urgent = self._urgent[first.client]
            # It is there twice if it was put back, or promoted to another client and back.
            while urgent and urgent[0][2] is first:
                heapq.heappop(urgent)

    def _tidy(self, client: str) -> None:
        """Remove outdated entries from a named client's own heap if they are at its top, or too many."""
        urgent = self._urgent[client]
        if len(urgent) > 2 * self._of[client]:
            urgent = self._urgent[client] = sorted({one for one in urgent if _is_of(one, client)})
        while urgent and not _is_of(urgent[0], client):
            heapq.heappop(urgent)

    def _able(self, head: P) -> list[P]:
        """Return the head and those behind it that may join its batch, of no more than a batch needs."""
        most = self.latencies.most
        if not self._own and len(self._heap) <= 4 * most:
            return self._able_of_few(head.key, most)
        taken: list[P] = []
        able: list[P] = []
        rows = 0
        while rows < most and len(taken) < 4 * most and (first := self._first()) is not None:
            self._take_out(first)
            taken.append(first)
            if first.key == head.key:
                able.append(first)
                rows += first.rows
        for item in taken:
            self._push(item)
        return able

    def _able_of_few(self, key: Hashable, most: int) -> list[P]:
        """Return those that may join a batch, out of a short queue without named clients, whose order stays as it is."""
        able: list[P] = []
        rows = 0
        for order, item in sorted(self._heap):
            if item.state == "queued" and item.order is order and item.key == key:
                able.append(item)
                rows += item.rows
                if rows >= most:
                    break
        return able

    def _choose(self, now_ns: int) -> tuple[int, list[P]]:
        """Choose the next batch: the head of the queue and the requests that may join it."""
        head = self._heap[0][1]
        if len(self._heap) == 1:
            return head.rows, [head]
        able = self._able(head) if self.latencies.most > head.rows else [head]
        goal = self._goal(min(self.latencies.most, sum(each.rows for each in able)), now_ns)
        rows, tightest_ns = 0, math.inf
        items: list[P] = []
        for each in able:
            if items and rows + each.rows > goal:
                break
            tightest = min(tightest_ns, each.deadline_ns)
            late = now_ns + self.latencies.promised_ns(rows + each.rows) > tightest
            if items and late and tightest != math.inf:
                break
            tightest_ns = tightest
            rows += each.rows
            items.append(each)
        while len(items) > 1 and rows not in self.latencies.sizes:  # that size isn't warmed up
            rows -= items.pop().rows
        return rows, items

    def _goal(self, rows: int, now_ns: int) -> int:
        """Return how many of `rows` rows to run first: least mean wait, but enough throughput."""
        if rows <= 1:
            return rows
        first = self.latencies.first[rows]
        if first == rows:
            return rows
        # Running small batches first lowers the mean wait only if the queue empties eventually.
        load = self.rate_per_ns(now_ns)
        for size in self.latencies.sizes:
            if first < size <= min(rows, self.latencies.best) and (
                first * self.sessions < 1.2 * load * self.latencies.expected_ns(first)
            ):
                first = size
        return first

    def _worth_waiting(self, rows: int, items: list[P], now_ns: int) -> int | None:
        """Return the time until which to wait for one more arrival; None to run the batch now.

        Let q rows be queued, T(b) be the time of a batch of b rows, and the next row arrive after w.
        If the batch runs now, the q rows are done after T(q), and the newcomer after
        max(T(q) - w, 0) + T(1) from its arrival. If the batch waits, all are done after w + T(q + 1),
        which is T(q + 1) from the newcomer's arrival. The difference of the sums is linear in w. Its
        mean over exponentially distributed w at the present rate decides, with the wait given up at
        w*, where the difference is zero.
        """
        if rows + 1 not in self.latencies.sizes or len(items) < len(self._heap) - self._left:
            return None
        if rows != len(items):  # the calculation assumes requests of one row
            return None
        now_t, next_t = self.latencies.expected_ns(rows), self.latencies.expected_ns(rows + 1)
        gain_ns = rows * now_t + now_t + self.latencies.expected_ns(1) - (rows + 1) * next_t
        limit_ns = gain_ns / (rows + 1)
        if limit_ns <= 0:
            return None
        rate = self.rate_per_ns(now_ns)
        if rate * limit_ns < _LEAST_HOPE:
            return None
        gone = math.exp(-rate * limit_ns)
        mean_ns = (
            gain_ns * (1 - gone)
            - (rows + 1) * (1 / rate - gone * (limit_ns + 1 / rate))
            - rows * limit_ns * gone
        )
        if mean_ns <= 0:
            return None
        since_ns = self._waiting_since_ns
        if since_ns is None:
            since_ns = self._waiting_since_ns = now_ns
        # However often requests arrive, none waits longer for batch mates than a lone batch takes.
        end_ns = min(now_ns + limit_ns, since_ns + self.latencies.expected_ns(1))
        took_ns = self.latencies.promised_ns(rows + 1)
        for each in items:
            if each.deadline_ns != math.inf:
                end_ns = min(end_ns, each.deadline_ns - self._margin(each) * took_ns)
        return math.ceil(end_ns) if end_ns > now_ns else None

    def begun(self, run: BatchRun[P], now_ns: int) -> int:
        """Record that a batch runs; return the number to hand to `ended`."""
        self._runs += 1
        self._running[self._runs] = _Busy(run.rows, now_ns + self.latencies.expected_ns(run.rows))
        return self._runs

    def ended(self, number: int, took_ns: float | None, now_ns: int) -> None:
        """Record that a batch ended, and learn from its time; None if it failed."""
        busy = self._running.pop(number)
        self._ended_ns = now_ns
        if took_ns is not None:
            self.latencies.observe(busy.rows, took_ns)

    def put_back(self, items: list[P]) -> None:
        """Queue the requests of a failed batch again, at their old place; each will run alone."""
        self._forget_left()  # stale entries of these items may still be in the heap
        for item in items:
            item.state, item.key = "queued", object()
            self._turns_of(item.order[0])
            self._count(item, item.rows)
            self._push(item)

    def promote(self, item: P, waiting: Pending) -> None:
        """Let a queued request go as early as another would that waits for its answer, at that one's expense."""
        if item.state != "queued" or _level(waiting) > item.order[0]:
            return
        if item.named and waiting.named and item.client == waiting.client:
            if waiting.priority < item.priority:
                self._count_own(item.client, item.priority, -item.rows)
                item.priority = waiting.priority
                self._count_own(item.client, item.priority, item.rows)
                self._push_urgent(item)
            return
        level, priority = _level(waiting), min(waiting.priority, LOWEST_PRIORITY)
        if level == item.order[0]:
            turn = self._turns[level].next(waiting.client, item.rows)
            self._turns[level].gave_up(waiting.client, item.rows)
            own = self._own.get(waiting.client, {}) if waiting.named else {}
            if turn >= item.order[1] and not any(each > priority for each in own):
                return
        self._count(item, -item.rows)
        item.priority, item.client, item.named = priority, waiting.client, waiting.named
        turn = self._turns_of(level).next(item.client, item.rows)
        item.order = level, turn, item.order[2]
        self._count(item, item.rows)
        self._push(item)
        self._leave(1)

    def _turns_of(self, level: int) -> Turns:
        found = self._turns.get(level)
        if found is None:
            found = self._turns[level] = Turns(self._latest)
        return found

    def _count(self, item: P, rows: int) -> None:
        """Add to the queued rows of a request's level and client; no count stays at 0."""
        level, client = item.order[0], item.client
        of_level, of_client = self._rows, self._of
        of_level[level] = queued = of_level.get(level, 0) + rows
        if not queued:
            del of_level[level]
            self._turns.pop(level, None)
        of_client[client] = queued = of_client.get(client, 0) + rows
        if not queued:
            del of_client[client]
        if item.named:
            self._count_own(client, item.priority, rows)

    def _count_own(self, client: str, priority: int, rows: int) -> None:
        """Add to the queued rows of a named client's priority."""
        own = self._own.setdefault(client, {})
        own[priority] = queued = own.get(priority, 0) + rows
        if not queued:
            del own[priority]
        if not own:
            del self._own[client]
            self._urgent.pop(client, None)
        elif rows < 0:
            self._tidy(client)

    # -- requests that leave without an answer from the model

    def drop(self, item: P) -> bool:
        """Remove a request from the queue; return False if it isn't queued."""
        if item.state != "queued":
            return False
        item.state = "done"
        self._remove([item])
        return True

    def hopeless(self, now_ns: int) -> list[P]:
        """Remove requests that can't meet their deadline, or only by making others miss theirs.

        Under overload a head whose time is nearly up would have to run in a small batch. Small
        batches take longer per row, so the requests behind it would be late too, and soon all batches
        would be small.
        """
        found: list[P] = []
        if len(self._running) >= self.sessions:
            return found
        if len(self._rows) > 1 or any(len(own) > 1 for own in self._own.values()):
            found += self._overtaken(now_ns)
        while (head := self._first()) is not None and not head.tried:
            if head.deadline_ns == math.inf:
                break
            late = now_ns + self.latencies.expected_ns(head.rows) > head.deadline_ns
            if not late and not self._holds_up(head, now_ns):
                break
            self.drop(head)
            found.append(head)
        return found

    def _overtaken(self, now_ns: int) -> list[P]:
        """Remove requests that higher priorities have kept waiting beyond the longest allowed wait."""
        most_ns = self.most_wait_ns
        if now_ns - self._looked_ns < most_ns / _LOOKS:
            return []
        self._looked_ns = now_ns
        found = [
            entry[1]
            for entry in self._heap
            if _waits(entry)
            and now_ns - entry[1].queued_ns > most_ns * (ACCEPTED_WAITS if entry[1].accepted else 1)
        ]
        for each in found:
            self.drop(each)
        return found

    def _holds_up(self, head: P, now_ns: int) -> bool:
        """Whether the head has too little time left for a full batch that could run without it."""
        if self.latencies.best == 1:
            return False
        left_ns = head.deadline_ns - head.arrived_ns
        size = self._size(left_ns, now_ns, self._margin(head))
        tight = now_ns + self.latencies.promised_ns(size) > head.deadline_ns
        enough = self.queued_rows - head.rows >= size > head.rows
        return tight and enough and self._is_full(size, now_ns)

    def _is_full(self, size: int, now_ns: int) -> bool:
        """Whether requests arrive at least nearly as fast as batches of this size answer them."""
        work = self.rate_per_ns(now_ns) * self.latencies.expected_ns(size)
        return work > _FULL * size * self.sessions

    def drain(self) -> list[P]:
        """Remove all queued requests, and return them in order."""
        items: list[P] = []
        while (item := self._first()) is not None:
            self.drop(item)
            items.append(item)
        return items

    def _remove(self, items: list[P]) -> None:
        """Uncount requests that are no longer queued; they stay in the heap until they reach its top."""
        if len(items) == len(self._heap):  # the queue is empty now
            self._heap.clear()
            for counted in (self._rows, self._of, self._own, self._urgent, self._turns):
                counted.clear()
            self._left = 0
            return
        for item in items:
            self._count(item, -item.rows)
        self._leave(len(items))

    def _leave(self, count: int) -> None:
        """Count entries that are left in the heap, and remove them once they are many."""
        self._left += count
        if self._left > 64 and 2 * self._left > len(self._heap):
            self._forget_left()

    def _forget_left(self) -> None:
        """Remove entries from the heap whose requests are no longer queued, or have another order."""
        self._heap = [entry for entry in self._heap if _waits(entry)]
        heapq.heapify(self._heap)
        self._left = 0

    @property
    def queued_rows(self) -> int:
        """Total rows of all queued requests."""
        return sum(self._rows.values())

    @property
    def idle(self) -> bool:
        """Whether no request is queued and no batch runs."""
        return not self._running and not self._rows


def level_of(priority: int, *, named: bool) -> int:
    """Return the level of a request; see `Scheduler`."""
    if named:
        return USUAL_PRIORITY
    return priority if priority < LOWEST_PRIORITY else LOWEST_PRIORITY


def _level(item: Pending) -> int:
    return level_of(item.priority, named=item.named)


def _waits(entry: tuple[tuple[int, int, int], Pending]) -> bool:
    """Whether the request of an entry is queued, in the entry's order."""
    order, item = entry
    return item.state == "queued" and item.order is order


def _is_of(entry: tuple[int, int, Pending], client: str) -> bool:
    """Whether the request of an entry in a named client's own heap is queued, at that priority."""
    priority, _, item = entry
    queued = item.state == "queued" and item.named and item.client == client
    return queued and item.priority == priority


def _filled(size: int, coming: float) -> float:
    """Return the mean number of filled rows in a batch if arrivals are Poisson with mean `coming`."""
    spread = math.sqrt(coming)
    return min(size, coming) - 0.4 * spread * math.exp(-abs(size - coming) / max(spread, 1e-9))


def _ms(span_ns: float) -> str:
    return f"{float(f'{max(0.0, span_ns) / 1e6:.3g}'):g} ms"
