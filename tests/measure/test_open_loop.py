"""The load generator, on a clock that only requests and waiting move."""

from collections.abc import Callable

import numpy as np
import pytest

from hasten.errors import CandidateError
from hasten.measure.closed_loop import Request
from hasten.measure.open_loop import arrivals, serve, take
from hasten.measure.scenario import Offer, Scenario

REQUESTS: list[Request] = [{"x": np.array([i])} for i in range(3)]


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0
        self.asked: list[int] = []

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, wait_s: float) -> None:
        self.now_ns += round(1e9 * wait_s)

    def session(self, *latencies_ns: int) -> Callable[[Request], None]:
        left = list(latencies_ns)

        def run(request: Request) -> None:
            self.asked.append(int(request["x"][0]))
            self.now_ns += left.pop(0)

        return run


def served(due_ns: list[int], *latencies_ns: int) -> tuple[tuple[int, ...], int, list[int]]:
    clock = Clock()
    block = serve(
        [clock.session(*latencies_ns)], REQUESTS, due_ns, clock_ns=clock, sleep_s=clock.sleep
    )
    return block.latency_ns, block.elapsed_ns, clock.asked


def test_a_free_session_waits_until_a_request_is_due() -> None:
    assert served([100, 300, 700], 10, 20, 30) == ((10, 20, 30), 730, [0, 1, 2])


def test_latency_counts_from_when_a_request_was_due_not_from_when_it_was_taken() -> None:
    # The first stalls for 500; the second was due meanwhile, and waited.
    assert served([100, 300, 700], 500, 20, 30)[0] == (500, 320, 30)


def test_all_at_once_are_answered_one_after_another() -> None:
    assert served([0, 0, 0, 0], 10, 10, 10, 10) == ((10, 20, 30, 40), 40, [0, 1, 2, 0])


def test_a_sleep_that_ends_too_early_goes_on() -> None:
    clock = Clock()

    def impatient(wait_s: float) -> None:
        clock.now_ns += max(1, round(1e9 * wait_s) // 2)

    block = serve([clock.session(10)], REQUESTS, [1000], clock_ns=clock, sleep_s=impatient)
    assert block.latency_ns == (10,)


def test_two_sessions_answer_in_turns_and_every_request_once() -> None:
    seen: list[int] = []
    sessions = [lambda request: seen.append(int(request["x"][0]))] * 2
    block = serve(sessions, REQUESTS, [0] * 30)
    assert len(block.latency_ns) == 30
    assert sorted(seen) == sorted([0, 1, 2] * 10)


def test_a_session_that_fails_is_named() -> None:
    def bad(request: Request) -> None:
        raise CandidateError("it broke")

    with pytest.raises(CandidateError) as error:
        serve([bad], REQUESTS, [0])
    assert str(error.value) == "it broke"


def test_arrivals_are_a_poisson_process_and_the_same_for_one_seed() -> None:
    offer = Offer("server", 1, 100.0, 200.0, seed=3)
    due = arrivals(offer)
    assert len(due) == 20_000
    gaps = np.diff(due) / 1e9
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(
        gaps.mean(), rel=0.05
    )  # as an exponential distribution has it
    assert abs(float(np.corrcoef(gaps[1:], gaps[:-1])[0, 1])) < 0.03
    assert arrivals(offer) == due
    assert arrivals(Offer("server", 1, 100.0, 200.0, seed=4)) != due


def test_offline_all_are_due_at_once() -> None:
    assert arrivals(Offer("offline", 3, 0.0, 1.0)) == [0, 0, 0]


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_each_scenario_asks_as_many_as_it_was_told(scenario: Scenario) -> None:
    offer = Offer(scenario, 50, 0.0, 5000.0, bound_ns=10**10 if scenario == "server" else 0)
    found = take(offer, [lambda request: None] * 2, REQUESTS)
    assert found.offer == offer
    assert found.requests == len(found.latency_ns) == 50
    assert found.throughput_per_s > 0
