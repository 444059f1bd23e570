"""The queue of one model, under a clock of the tests' own."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.serving.models.latencies import Latencies
from hasten.serving.models.scheduling import BatchRun, Pending, Scheduler, Wait
from hasten.serving.protocol.errors import Kind, ProtocolError

MS = 1_000_000
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


def flat(span_ns: float = MS) -> Latencies:
    """A model whose batches all take the same: batching is free."""
    return Latencies(dict.fromkeys(BATCHES, span_ns), BATCHES)


def steep(span_ns: float = MS) -> Latencies:
    """A model whose batches take as long as their rows one by one: batching gains nothing."""
    return Latencies({rows: rows * span_ns for rows in BATCHES}, BATCHES)


def usual(span_ns: float = MS) -> Latencies:
    """Half of a lone request's time is the call, half the rows."""
    return Latencies({rows: (0.5 + 0.5 * rows) * span_ns for rows in BATCHES}, BATCHES)


def measured(span_ns: float = MS) -> Latencies:
    """An EfficientNet-Lite0 in int8 on two threads, in units of its lone request."""
    ratios = {1: 1.0, 2: 1.93, 3: 2.5, 4: 3.06, 6: 4.56, 8: 6.05, 12: 9.16, 16: 12.3}
    return Latencies({rows: ratio * span_ns for rows, ratio in ratios.items()}, BATCHES)


def item(
    at_ns: int,
    deadline_ns: float = math.inf,
    rows: int = 1,
    priority: int = 1,
    source: int = 0,
) -> Pending:
    return Pending(rows, "x", priority, deadline_ns, at_ns, source=source)


def scheduler(latencies: Latencies, most_wait_ns: float = math.inf) -> Scheduler[Pending]:
    return Scheduler(latencies, most_wait_ns)


@dataclass
class Simulation:
    """A server under a schedule of arrivals, without a clock of its own.

    Attributes:
        queue: Queue under test.
        noise: Most by which a batch takes longer than expected, as a share of that.
        gone: Times at which clients go away, each with the client's request.
        dropped: Requests whose client went away while they were queued.
        harmful: Requests whose whole batch gets no answer.
        most_running: Most batches that ran side by side.
    """

    queue: Scheduler[Pending]
    noise: float = 0.0
    gone: list[tuple[int, Pending]] = field(default_factory=list)
    dropped: list[Pending] = field(default_factory=list)
    harmful: list[Pending] = field(default_factory=list)
    most_running: int = 0
    done: list[tuple[Pending, int]] = field(default_factory=list)
    refused: list[Pending] = field(default_factory=list)
    late: list[Pending] = field(default_factory=list)
    batches: list[list[Pending]] = field(default_factory=list)

    def run(self, arrivals: list[Pending]) -> None:
        events: list[tuple[int, int, str, Any]] = [
            (one.arrived_ns, number, "arrival", one) for number, one in enumerate(arrivals)
        ]
        events += [
            (at, len(events) + number, "gone", one) for number, (at, one) in enumerate(self.gone)
        ]
        heapq.heapify(events)
        count = len(events)
        random = np.random.default_rng(0)
        now_ns = 0
        while events:
            now_ns, _, kind, what = heapq.heappop(events)
            if kind == "arrival":
                if (run := self.queue.take_alone(what, now_ns)) is not None:
                    count += 1
                    heapq.heappush(events, self._begun(run, now_ns, count, random))
                    continue
                try:
                    self.queue.offer(what, now_ns)
                except ProtocolError:
                    self.refused.append(what)
            elif kind == "gone" and what.state != "new":
                if self.queue.drop(what):
                    self.dropped.append(what)
            elif kind == "end":
                number, run, took_ns = what
                self._ended(number, run, took_ns, now_ns)
            self.late += self.queue.hopeless(now_ns)
            while (step := self.queue.next(now_ns)) is not None:
                if isinstance(step, Wait):
                    assert step.until_ns > now_ns
                    count += 1
                    heapq.heappush(events, (step.until_ns, count, "look", None))
                    break
                count += 1
                heapq.heappush(events, self._begun(step, now_ns, count, random))
        self.end_ns = now_ns

    def _ended(self, number: int, run: BatchRun[Pending], took_ns: float, now_ns: int) -> None:
        if len(run.items) > 1 and any(one in self.harmful for one in run.items):
            self.queue.ended(number, None, now_ns)
            self.queue.put_back(run.items)
            return
        self.queue.ended(number, took_ns, now_ns)
        for one in run.items:
            self.queue.judge(one, late=now_ns > one.deadline_ns)
        self.done += [(one, now_ns) for one in run.items]

    def _begun(
        self, run: BatchRun[Pending], now_ns: int, count: int, random: np.random.Generator
    ) -> tuple[int, int, str, Any]:
        """Begin a batch; return its end."""
        number = self.queue.begun(run, now_ns)
        self.most_running = max(self.most_running, len(self.queue._running))
        took_ns = self.queue.latencies.measured_ns(run.rows) * (1 + self.noise * random.random())
        self.batches.append(list(run.items))
        return now_ns + round(took_ns), count, "end", (number, run, took_ns)


def poisson(rate_per_s: float, count: int, deadline_ns: float = math.inf) -> list[Pending]:
    gaps = np.random.default_rng(1).exponential(1e9 / rate_per_s, count)
    return [item(round(at), round(at) + deadline_ns) for at in np.cumsum(gaps)]


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 20 * MS),
        st.one_of(st.just(math.inf), st.integers(0, 40 * MS)),
        st.integers(1, 5),
        st.integers(1, 3),
        st.integers(0, 2),
        st.one_of(st.none(), st.integers(0, 10 * MS)),
        st.booleans(),
    ),
    max_size=60,
)
CURVES = st.sampled_from([flat, steep, usual, measured])
Arrival = tuple[int, float, int, int, int, int | None, bool]


@given(ARRIVALS, CURVES, st.floats(0, 2), st.sampled_from([math.inf, 3.0 * MS]), st.integers(1, 3))
def test_every_request_is_answered_once_or_refused_and_order_is_kept(
    arrivals: list[Arrival],
    curve: Callable[[], Latencies],
    noise: float,
    most_wait_ns: float,
    sessions: int,
) -> None:
    """Whatever comes, with whatever deadline, from wherever, and whoever of them goes away."""
    items, gone, harmful = [], [], []
    for at, left, rows, priority, source, leaves, harms in sorted(arrivals, key=lambda x: x[0]):
        items.append(item(at, at + left, rows, priority, source))
        if harms:
            harmful.append(items[-1])
        if leaves is not None:
            gone.append((at + leaves, items[-1]))
    queue: Scheduler[Pending] = Scheduler(curve(), most_wait_ns, sessions)
    simulation = Simulation(queue, noise, gone, harmful=harmful)
    simulation.run(items)
    ended = [one for one, _ in simulation.done]
    ended += simulation.refused + simulation.late + simulation.dropped
    assert sorted(map(id, ended)) == sorted(map(id, items))
    assert queue.idle
    assert queue.queued_rows == 0
    assert simulation.most_running <= sessions
    for batch in simulation.batches:
        assert [(one.priority, one.order) for one in batch] == sorted(
            (one.priority, one.order) for one in batch
        )
        assert len(batch) == 1 or sum(one.rows for one in batch) in BATCHES
    for one, _ in simulation.done:
        assert one.state == "running"


@given(ARRIVALS, CURVES)
def test_whoever_is_taken_in_is_in_time_where_batches_take_what_they_are_said_to(
    arrivals: list[Arrival], curve: Callable[[], Latencies]
) -> None:
    items = [item(at, at + left, rows) for at, left, rows, *_ in arrivals]
    items.sort(key=lambda one: one.arrived_ns)
    simulation = Simulation(scheduler(curve()))
    simulation.run(items)
    for one, end_ns in simulation.done:
        assert end_ns <= one.deadline_ns + 1
    # Batches are made up anew with each arrival, so a few are found out late to be hopeless; but
    # never is one dropped that came alone.
    assert all(one not in simulation.late for one in items[:1])


def test_an_idle_server_begins_at_once() -> None:
    queue = scheduler(flat())
    queue.offer(item(0), 0)
    step = queue.next(0)
    assert isinstance(step, BatchRun)
    assert step.rows == 1


def test_a_lone_client_never_waits_for_others() -> None:
    queue, now_ns = scheduler(flat()), 0
    for _ in range(200):  # one request after another, as fast as they are answered
        queue.offer(item(now_ns), now_ns)
        step = queue.next(now_ns)
        assert isinstance(step, BatchRun)
        number = queue.begun(step, now_ns)
        now_ns += MS
        queue.ended(number, MS, now_ns)
        now_ns += MS // 10


def test_waiting_pays_where_batches_are_free_and_requests_come_thick() -> None:
    queue = scheduler(flat())
    for number in range(100):
        at_ns = number * MS // 10  # ten arrivals in the time of a batch
        queue._note_arrival(at_ns)
    now_ns = 100 * MS // 10
    queue.offer(item(now_ns), now_ns)
    step = queue.next(now_ns)
    assert isinstance(step, Wait)
    assert now_ns < step.until_ns <= now_ns + MS


def test_nobody_waits_for_others_where_batches_gain_nothing() -> None:
    queue = scheduler(steep())
    for number in range(100):
        queue._note_arrival(number * MS // 10)
    queue.offer(item(10 * MS), 10 * MS)
    assert isinstance(queue.next(10 * MS), BatchRun)


def test_a_wait_ends_by_itself_though_others_keep_coming() -> None:
    queue = scheduler(flat())
    now_ns = 0
    for _ in range(100):
        queue._note_arrival(now_ns)
        now_ns += MS // 50
    first_ns = now_ns
    queue.offer(item(now_ns), now_ns)
    while not isinstance(queue.next(now_ns), BatchRun):
        now_ns += MS // 100
        queue.offer(item(now_ns), now_ns)
    assert now_ns - first_ns <= MS


def test_a_wait_never_goes_past_a_deadline() -> None:
    queue = scheduler(flat())
    for number in range(100):
        queue._note_arrival(number * MS // 10)
    now_ns = 10 * MS
    queue.offer(item(now_ns, now_ns + 1.05 * MS), now_ns)
    step = queue.next(now_ns)
    assert step is not None
    assert isinstance(step, BatchRun) or step.until_ns + MS <= now_ns + 1.05 * MS + 1


def test_waiting_lowers_the_mean_latency_where_it_happens() -> None:
    """The formula's own claim, against a server that never waits."""

    class Eager(Scheduler[Pending]):
        def _worth_waiting(self, rows: int, items: list[Pending], now_ns: int) -> int | None:
            return None

    def mean_ns(queue: Scheduler[Pending], rate_per_s: float) -> float:
        simulation = Simulation(queue)
        simulation.run(poisson(rate_per_s, 4000))
        return float(np.mean([end - one.arrived_ns for one, end in simulation.done]))

    for rate_per_s in (200, 1000, 3000, 6000):
        patient = mean_ns(scheduler(flat()), rate_per_s)
        eager = mean_ns(Eager(flat(), math.inf), rate_per_s)
        assert patient <= 1.02 * eager, rate_per_s


def test_small_batches_go_first_only_while_the_queue_ends() -> None:
    """Steep curves run one by one; under a load that this can't carry, what carries it."""
    half = usual()
    assert half.first[1:4] == [1, 2, 2]
    assert steep().first[1:9] == [1] * 8
    assert flat().first[1:9] == [1, 2, 3, 4, 4, 6, 6, 8]


def test_a_request_that_cant_be_in_time_is_refused_at_once() -> None:
    queue = scheduler(steep())
    queue.offer(item(0), 0)
    step = queue.next(0)
    assert isinstance(step, BatchRun)
    queue.begun(step, 0)
    for _ in range(3):
        queue.offer(item(0, 10 * MS), 0)
    with pytest.raises(ProtocolError) as caught:
        queue.offer(item(0, 3 * MS), 0)
    assert caught.value.kind is Kind.OVERLOADED
    assert str(caught.value) == (
        "can't answer in time: it would take 4 ms of waiting and 1 ms of computing, but the deadline "
        "is in 3 ms; retry later or allow more"
    )
    assert caught.value.retry_s == pytest.approx(0.002)


def test_the_queue_is_bounded_by_the_wait_and_not_by_a_count() -> None:
    queue = scheduler(steep(), 10 * MS)
    for _ in range(11):
        queue.offer(item(0), 0)
    with pytest.raises(
        ProtocolError, match="overloaded: the request would wait 11 ms, but at most 10 ms are"
    ):
        queue.offer(item(0), 0)
    quick = scheduler(steep(MS / 10), 10 * MS)
    for _ in range(100):
        quick.offer(item(0), 0)


def test_a_higher_priority_goes_first_and_waits_only_for_its_equals() -> None:
    queue = scheduler(steep())
    for _ in range(8):
        queue.offer(item(0, 20 * MS, priority=2), 0)
    urgent = item(0, 2 * MS, priority=1)
    queue.offer(urgent, 0)
    step = queue.next(0)
    assert isinstance(step, BatchRun)
    assert step.items == [urgent]
    with pytest.raises(ProtocolError):
        queue.offer(item(0, 5 * MS, priority=2), 0)


def test_who_is_promoted_goes_with_its_new_equals() -> None:
    queue = scheduler(steep())
    first, second, third = (item(0, priority=priority) for priority in (2, 3, 3))
    for one in (first, second, third):
        queue.offer(one, 0)
    queue.promote(third, item(0, priority=1))
    queue.promote(second, item(0, priority=5))  # nobody is put behind
    order = []
    while (step := queue.next(0)) is not None:
        assert isinstance(step, BatchRun)
        order += step.items
        queue.ended(queue.begun(step, 0), MS, 0)
    assert order == [third, first, second]
    queue.promote(second, item(0, priority=1))
    assert queue.queued_rows == 0


class Seen(Pending):
    """A request that counts how often any such request is looked at."""

    looks = 0

    @property
    def state(self) -> str:
        Seen.looks += 1
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state


@pytest.mark.parametrize(
    ("named", "clients"), [(False, 3), (True, 3), (True, 1)], ids=["unnamed", "named", "one named"]
)
@pytest.mark.parametrize("promoted", [False, True], ids=["asked", "promoted"])
@pytest.mark.parametrize("curve", [flat, steep])
def test_a_look_at_a_long_queue_goes_through_few_of_its_requests(
    curve: Callable[[float], Latencies], promoted: bool, named: bool, clients: int
) -> None:
    """Whatever priorities they have, and however many of them wait."""
    queue = scheduler(curve(MS / 100), 1000 * MS)

    def asked(now_ns: int) -> Seen:
        priority = now_ns * 7919 % 100_003 + 1
        client = f"{now_ns % clients}"
        return Seen(1, "x", priority, math.inf, now_ns, client=client, named=named)

    waiting = [asked(number) for number in range(16_000)]
    for one in waiting:
        queue.offer(one, 0)
    queue.hopeless(0)
    Seen.looks = 0
    for number in range(1, 201):
        now_ns = number * MS
        if promoted:
            queue.promote(waiting[-number], asked(now_ns))
        else:
            queue.offer(asked(now_ns), now_ns)
        assert not queue.hopeless(now_ns)
        run = queue.next(now_ns)
        assert isinstance(run, BatchRun)
        queue.ended(queue.begun(run, now_ns), queue.latencies.measured_ns(run.rows), now_ns)
    assert Seen.looks < 200 * 200


def test_an_accepted_request_is_refused_once_others_have_gone_before_it_for_far_too_long() -> None:
    """It might wait for ever otherwise, while others keep the model busy; and its client with it."""
    queue = scheduler(flat(MS), 1000 * MS)
    low = Pending(1, "another batch", 64, math.inf, 0, accepted=True)
    queue.offer(low, 0)
    left: dict[int, list[Pending]] = {}
    for second in range(1, 60):
        now_ns = second * 1000 * MS
        queue.offer(Pending(1, "x", 1, math.inf, now_ns), now_ns)
        if found := queue.hopeless(now_ns):
            left[second] = found
        run = queue.next(now_ns)
        assert isinstance(run, BatchRun)
        assert low not in run.items
        queue.ended(queue.begun(run, now_ns), queue.latencies.measured_ns(run.rows), now_ns)
    ((second, found),) = left.items()
    assert (found, second > 2) == ([low], True)


def named(
    client: str, priority: int, at_ns: int = 0, left_ns: float = math.inf, rows: int = 1
) -> Pending:
    """A request of a client that is known by name."""
    return Pending(rows, "x", priority, at_ns + left_ns, at_ns, client=client, named=True)


@pytest.mark.parametrize("count", [1000, 5000])
@pytest.mark.parametrize("others", [0, 5000])
def test_no_urgent_request_of_a_named_client_is_late_behind_a_long_queue(
    count: int, others: int
) -> None:
    """Neither its own, nor another's, of many priorities."""
    bulk = [named("one", 3) for _ in range(count)]
    flood = [named("two", number * 7 % 64 + 1) for number in range(others)]
    urgent = [named("one", 1, number * 10 * MS, 20 * MS) for number in range(1, 41)]
    simulation = Simulation(scheduler(Latencies({1: MS})))
    simulation.run([*bulk, *flood, *urgent])
    ends = {id(one): end_ns for one, end_ns in simulation.done}
    assert len(ends) == count + others + 40
    assert all(ends[id(one)] <= one.deadline_ns for one in urgent)


def test_an_urgent_request_goes_first_as_soon_as_a_long_queue_is_gone() -> None:
    queue = scheduler(steep())
    for number in range(1000):
        queue.offer(named("one", number % 5 + 1), 0)
    assert isinstance(queue.next(0), BatchRun)
    queue.drain()
    usual, urgent = named("one", 2), named("one", 1)
    queue.offer(usual, 0)
    queue.offer(urgent, 0)
    run = queue.next(0)
    assert isinstance(run, BatchRun)
    assert run.items == [urgent]


def test_whatever_rows_a_named_clients_requests_have_others_get_as_many() -> None:
    """Its most urgent ones are the largest, and take turns that were meant for one row."""
    queue = scheduler(steep())
    for _ in range(40):
        queue.offer(named("one", 3), 0)
        queue.offer(named("two", 2), 0)
    for _ in range(5):
        queue.offer(named("one", 1, rows=8), 0)
    for _ in range(40):
        queue.offer(named("two", 2), 0)
    rows, order = {"one": 0, "two": 0}, []
    while isinstance(run := queue.next(0), BatchRun):
        queue.ended(queue.begun(run, 0), MS, 0)
        for one in run.items:
            rows[one.client] += one.rows
            order.append(one.priority)
            assert abs(rows["one"] - rows["two"]) <= 5 * 8
    assert rows == {"one": 80, "two": 80}
    assert [one for one in order if one != 2] == [1] * 5 + [3] * 40


def test_who_was_in_a_failed_batch_keeps_its_place_before_later_ones() -> None:
    queue = scheduler(flat())
    for _ in range(100):
        queue.offer(item(0), 0)
    while isinstance(run := queue.next(0), BatchRun) and queue.queued_rows:
        queue.ended(queue.begun(run, 0), MS, 0)
    assert isinstance(run, BatchRun)
    assert len(run.items) > 1
    later = [item(0) for _ in range(50)]
    for one in later:
        one.client = "later"
        queue.offer(one, 0)
    queue.put_back(run.items)
    for one in run.items:
        again = queue.next(0)
        assert isinstance(again, BatchRun)
        assert again.items == [one]


def by_definition(waiting: list[Pending]) -> list[tuple[tuple[int, int], Pending]]:
    """Sort queued requests, each with its level and turn: a named client's take its turns by priority, then arrival."""
    order = [(one.order, one) for one in waiting if not one.named]
    for client in {one.client for one in waiting if one.named}:
        own = [one for one in waiting if one.named and one.client == client]
        turns = sorted(one.order[:2] for one in own)
        own.sort(key=lambda one: (one.priority, one.order[2]))
        order += [((*turn, one.order[2]), one) for turn, one in zip(turns, own, strict=True)]
    return [(rank[:2], one) for rank, one in sorted(order, key=lambda entry: entry[0])]


def check_entries(queue: Scheduler[Pending], waiting: list[Pending]) -> None:
    """Each queued request has one entry of its own, and one in its named client's; the others are counted."""
    valid = [one for order, one in queue._heap if one.state == "queued" and one.order is order]
    assert sorted(map(id, valid)) == sorted(map(id, waiting))
    assert queue._left == len(queue._heap) - len(valid)
    assert queue.queued_rows == sum(one.rows for one in waiting)
    clients = {one.client for one in waiting if one.named}
    assert set(queue._urgent) == set(queue._own) == clients
    for client in clients:
        own = [one for one in waiting if one.named and one.client == client]
        entries = {(one.priority, one.order[2], id(one)) for one in own}
        found = [(priority, rank, id(one)) for priority, rank, one in queue._urgent[client]]
        assert entries <= set(found)
        assert len(found) <= 2 * sum(one.rows for one in own)


def any_steps(random: np.random.Generator) -> list[tuple[str, int, str, int]]:
    """What happens, to which of the queued requests, by which client, at which priority."""
    kinds = ["offer", "look", "drop", "promote", "fail"]
    shares = [1.0, *random.random(4)]
    return [
        (
            str(random.choice(kinds, p=np.array(shares) / sum(shares))),
            int(random.integers(100)),
            str(random.choice(["one", "two", "three", "", "a"])),
            int(random.integers(1, 6)),
        )
        for _ in range(random.integers(1, 100))
    ]


@pytest.mark.parametrize("curve", [flat, steep, usual])
@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_to_requests_they_go_in_order(
    seed: int, curve: Callable[[], Latencies]
) -> None:
    """Against a sort of all at each look; of two clients' equal turns, either may be first."""
    queue = scheduler(curve())
    waiting: list[Pending] = []

    def look() -> BatchRun[Pending] | None:
        expected, now_ns = by_definition(waiting), 0
        run = queue.next(0)
        if isinstance(run, Wait):
            run = queue.next(now_ns := 10**12)
        if run is None:
            assert not waiting
            return None
        assert isinstance(run, BatchRun)
        turns = [(turn, one) for turn, one in expected if one.key == run.items[0].key]
        assert run.items[0].order[:2] == expected[0][0]
        assert [one.order[:2] for one in run.items] == [turn for turn, _ in turns[: len(run.items)]]
        for client in {one.client for one in run.items}:
            own = [one for one in run.items if one.client == client]
            assert own == [one for _, one in turns if one.client == client][: len(own)]
        for one in run.items:
            waiting.remove(one)
        queue.ended(queue.begun(run, now_ns), MS, now_ns)
        return run

    for kind, number, client, priority in any_steps(np.random.default_rng(seed)):
        one = Pending(1, "x", priority, math.inf, 0, client=client, named=len(client) > 1)
        other = waiting[number % len(waiting)] if waiting else None
        if kind == "offer":
            queue.offer(one, 0)
            waiting.append(one)
        elif kind == "drop" and other:
            assert queue.drop(other)
            waiting.remove(other)
        elif kind == "promote" and other:
            queue.promote(other, one)
        elif kind == "look":
            look()
        elif kind == "fail" and (run := look()) is not None:
            queue.offer(one, 0)
            queue.put_back(run.items)
            waiting += [one, *run.items]
        check_entries(queue, waiting)
    while look() is not None:
        check_entries(queue, waiting)
    assert queue.idle
    assert not queue._heap
    assert not queue._urgent
    assert queue._left == 0


def test_a_queue_that_is_emptied_is_returned_in_order() -> None:
    queue = scheduler(steep())
    items = [named("one", priority) for priority in (3, 1, 2, 1)]
    for one in items:
        queue.offer(one, 0)
    assert queue.drain() == [items[1], items[3], items[2], items[0]]
    assert not queue._heap
    assert not queue._urgent
    assert queue._left == 0


def test_dropped_requests_of_a_named_client_leave_little_behind_an_urgent_one() -> None:
    queue = scheduler(steep())
    urgent = named("one", 1)
    queue.offer(urgent, 0)
    for _ in range(1000):
        queue.offer(one := named("one", 2), 0)
        queue.drop(one)
    assert len(queue._urgent["one"]) < 10
    run = queue.next(0)
    assert isinstance(run, BatchRun)
    assert run.items == [urgent]


def test_answered_requests_of_a_named_client_arent_kept_while_others_wait() -> None:
    queue = scheduler(steep())
    for _ in range(1000):
        queue.offer(named("one", 2), 0)
    while queue.queued_rows > 400:
        queue.next(0)
    assert len(queue._urgent["one"]) <= 401


def test_priorities_beyond_the_lowest_are_the_lowest() -> None:
    queue = scheduler(steep())
    items = [item(0, priority=priority) for priority in (10**9, 65, 64, 63)]
    for one in items:
        queue.offer(one, 0)
    queue.promote(items[1], item(0, priority=70))
    order = []
    while isinstance(step := queue.next(0), BatchRun):
        order += step.items
        queue.ended(queue.begun(step, 0), MS, 0)
    assert order == [items[3], *items[:3]]


def test_only_requests_of_one_shape_share_a_batch() -> None:
    queue = scheduler(flat())
    keys = ["a", "b", "a", "b"]
    items = [Pending(1, key, 1, math.inf, 0) for key in keys]
    for one in items:
        queue.offer(one, 0)
    step = queue.next(0)
    assert isinstance(step, BatchRun)
    assert step.items == [items[0], items[2]]


def test_a_dropped_request_leaves_no_trace() -> None:
    queue = scheduler(steep())
    items = [item(0) for _ in range(300)]
    for one in items:
        queue.offer(one, 0)
    for one in items[1:]:
        assert queue.drop(one)
    assert not queue.drop(items[1])
    assert queue.queued_rows == 1
    assert len(queue._heap) < 200
    step = queue.next(0)
    assert isinstance(step, BatchRun)
    assert step.items == [items[0]]
    assert queue.next(0) is None or not queue.queued_rows


def test_a_machine_that_is_faster_than_the_curve_is_found_out() -> None:
    """By the curve nobody is in time, but a batch was seen that took a tenth of it."""
    latencies = flat(40 * MS)
    latencies.observe(1, 4 * MS)
    queue, answered = scheduler(latencies), 0
    for now_ns in range(0, 100 * 60 * MS, 60 * MS):
        queue.offer(item(now_ns, now_ns + 15 * MS), now_ns)
        step = queue.next(now_ns)
        assert isinstance(step, BatchRun)
        queue.ended(queue.begun(step, now_ns), 4 * MS, now_ns)
        answered += 1
    assert answered == 100


def test_a_stall_is_forgotten_once_requests_are_quick_again() -> None:
    """A machine that was slow for a while doesn't refuse everything from then on."""
    latencies = flat()
    queue, now_ns, answered = scheduler(latencies), 0, 0
    for _ in range(70):
        latencies.observe(1, 40 * MS)
    for _ in range(400):
        now_ns += 60 * MS
        one = item(now_ns, now_ns + 15 * MS)
        try:
            queue.offer(one, now_ns)
        except ProtocolError:
            continue
        queue.hopeless(now_ns)
        step = queue.next(now_ns)
        if isinstance(step, BatchRun):
            number = queue.begun(step, now_ns)
            queue.ended(number, MS, now_ns)
            answered += 1
    assert answered > 200


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize(
    ("curve", "times", "share"),
    [
        (usual, 20, 0.95),
        (usual, 10, 0.85),
        (usual, 5, 0.7),
        (measured, 20, 0.92),
        (measured, 10, 0.9),
        (measured, 5, 0.75),
        (steep, 5, 0.95),
    ],
)
def test_at_twice_the_capacity_goodput_stays_and_what_is_taken_in_is_in_time(
    curve: Callable[[], Latencies], times: float, share: float, sessions: int
) -> None:
    """With so many times a lone request's time; the less there is, the smaller batches must be."""
    latencies = curve()
    capacity_per_s = sessions * latencies.capacity_per_s
    simulation = Simulation(Scheduler(latencies, math.inf, sessions), noise=0.3)
    requests = poisson(2 * capacity_per_s, 6_000, times * MS)
    simulation.run(requests)
    in_time = sum(end <= one.deadline_ns for one, end in simulation.done)
    assert in_time >= 0.99 * len(simulation.done)
    # Batches take 15% longer than the curve says, in the mean.
    assert in_time / (simulation.end_ns / 1e9) >= share * capacity_per_s / 1.15


@pytest.mark.parametrize(
    ("left", "per_ms", "size"),
    [(20, 0.1, 8), (5, 0.1, 3), (4.9, 0.1, 2), (5, 6, 4), (1.5, 6, 1), (1000, 6, 8)],
)
def test_how_large_batches_are_follows_from_the_time_that_is_left_and_who_comes(
    left: float, per_ms: float, size: int
) -> None:
    """Half of the time is for the batch before; more only where enough come late in that one."""
    queue = scheduler(measured())
    for at in range(100):
        queue._note_arrival(round(at * MS / per_ms))
    assert queue._size(left * MS, round(99 * MS / per_ms)) == size


def test_a_model_that_no_warm_up_timed_is_admitted_by_what_its_first_batches_took() -> None:
    queue = scheduler(Latencies({1: 10 * MS}, guessed=True), most_wait_ns=1000 * MS)
    now_ns = 0

    def run(took_ns: int) -> None:
        nonlocal now_ns
        queue.offer(item(now_ns), now_ns)
        got = queue.next(now_ns)
        assert isinstance(got, BatchRun)
        number = queue.begun(got, now_ns)
        now_ns += took_ns
        queue.ended(number, took_ns, now_ns)

    def admitted() -> int:
        for count in range(1000):
            try:
                queue.offer(item(now_ns), now_ns)
            except ProtocolError:
                return count
        return 1000

    run(5000 * MS)  # with a compilation
    assert queue.latencies.expected_ns(1) == 5000 * MS
    run(400 * MS)
    assert queue.latencies.expected_ns(1) == 400 * MS
    run(600 * MS)
    assert 400 * MS < queue.latencies.expected_ns(1) < 600 * MS
    assert 1 <= admitted() <= 4
