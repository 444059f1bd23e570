"""What is derived of raw latencies, and how it is said."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.records import from_record, to_record
from hasten.evaluation.loadtest.result import LoadTestResult, Offered, result_of, slices
from hasten.evaluation.loadtest.schedule import Schedule
from hasten.evaluation.loadtest.traffic import CONNECTION, UNSENT, Fate, Traffic
from hasten.evaluation.loadtest.words import in_words

MS = 1_000_000
BEGIN = 7_000 * MS
"""Of the schedule, on the traffic's clock."""
OK = Fate("ok", "200")
REFUSED = Fate("refused", "503")


def offered(deadline_ns: int | None = None) -> Offered:
    return Offered(
        url="http://127.0.0.1:8000",
        model="m",
        version="",
        rate_per_s=100.0,
        duration_s=1.0,
        warmup_s=0.1,
        arrivals="constant",
        deadline_ns=deadline_ns,
        batch=1,
        encoding="binary",
        payload="random numbers",
        connections=4,
        grace_s=10.0,
        seed=0,
    )


def result(
    fates: dict[int, Fate | None],
    latency_ns: dict[int, int] | None = None,
    *,
    deadline_ns: int | None = None,
    lag_ns: int = 0,
    waited: int = 0,
    messages: dict[Fate, str] | None = None,
) -> LoadTestResult:
    """A second of 100 requests behind 10 of a warm-up, all answered after 1 ms but for those given."""
    plan = Schedule(tuple(10 * MS * i for i in range(110)), 100 * MS, 1000 * MS)
    traffic = Traffic([BEGIN + due for due in plan.due_ns], lambda _: None, lanes=1)
    for turn in range(110):
        fate = fates.get(turn, OK)
        traffic.fates[turn] = fate
        if fate not in (None, UNSENT):
            after_ns = (latency_ns or {}).get(turn, MS)
            traffic.ended_ns[turn] = BEGIN + plan.due_ns[turn] + after_ns
        traffic.lag_ns[turn] = lag_ns
    traffic.waited[: 10 + waited] = b"\1" * (10 + waited)  # those of the warm-up all did
    traffic.messages = messages or {}
    traffic.stop()
    return result_of(offered(deadline_ns), plan, traffic, BEGIN + 9000 * MS)


def counts(found: LoadTestResult) -> dict[tuple[str, str], int]:
    return {(one.kind, one.status): one.count for one in found.outcomes}


def test_the_warm_up_isnt_counted() -> None:
    found = result(dict.fromkeys(range(10), REFUSED))
    assert found.requests == 100
    assert counts(found) == {("ok", "200"): 100}
    assert len(found.latency_ns) == len(found.due_ns) == len(found.lag_ns) == 100
    assert found.due_ns[:2] == (0, 10 * MS)


def test_what_is_answered_after_the_deadline_is_late_and_no_goodput() -> None:
    slow = {20: 21 * MS, 21: 20 * MS, 22: 500 * MS}
    found = result({23: Fate("late", "504")}, slow, deadline_ns=20 * MS)
    assert counts(found) == {("ok", "200"): 97, ("late", "200"): 2, ("late", "504"): 1}
    assert found.goodput_per_s == 97.0
    assert sorted(found.latency_ns)[-3:] == [20 * MS, 21 * MS, 500 * MS]


def test_without_a_deadline_nothing_is_late_and_there_is_no_goodput() -> None:
    found = result({}, {20: 5000 * MS})
    assert counts(found) == {("ok", "200"): 100}
    assert found.goodput_per_s is None


def test_what_is_answered_after_the_window_isnt_in_its_rate() -> None:
    # Those due in the last 200 ms, and two before, took 200 ms.
    found = result({}, dict.fromkeys(range(88, 110), 200 * MS))
    assert found.answered_per_s == 80.0
    assert found.elapsed_ns == 990 * MS + 200 * MS


def test_an_answer_to_the_warm_up_that_comes_within_the_window_is_in_its_rate() -> None:
    assert result({}, {9: 50 * MS}).answered_per_s == 101.0


def test_the_mean_and_the_quantiles_are_of_right_answers_alone() -> None:
    found = result({30: REFUSED, 31: CONNECTION, 32: None}, {30: 900 * MS, 33: 3 * MS})
    assert len(found.latency_ns) == 97
    assert found.mean_ns == pytest.approx((96 * 1 + 3) / 97 * MS)
    assert found.p50 is not None
    assert found.p50.value_ns == MS
    assert found.elapsed_ns == 9000 * MS - 100 * MS  # waiting for number 32


def test_where_nothing_is_right_there_are_no_latencies() -> None:
    found = result(dict.fromkeys(range(110), REFUSED))
    assert (found.p50, found.p99, found.mean_ns, found.latency_ns) == (None, None, None, ())
    assert found.answered_per_s == 0.0


def test_it_is_a_record_that_reads_back() -> None:
    found = result({30: REFUSED, 40: None}, deadline_ns=20 * MS, messages={REFUSED: "full"})
    assert from_record(LoadTestResult, json.loads(json.dumps(to_record(found)))) == found


def test_all_well_is_four_lines() -> None:
    assert in_words(result({})) == [
        "http://127.0.0.1:8000, model m: 100 requests a second evenly spaced for 1 s, "
        "random numbers, binary",
        "answered 100 a second",
        "latency from when a request was due: p50 1 ms (1 to 1), p90 1 ms (1 to 1), p99 not established, mean 1 ms",
        "100 requests: 100 ok",
    ]


def test_every_outcome_and_what_spoils_the_figures_is_said() -> None:
    fates = {
        11: Fate("late", "504"),
        12: REFUSED,
        13: REFUSED,
        14: Fate("error", "400"),
        15: Fate("broken", "200"),
        16: CONNECTION,
        17: None,
        18: UNSENT,
    }
    found = result(
        fates,
        {20: 30 * MS},
        deadline_ns=20 * MS,
        lag_ns=2 * MS,
        waited=3,
        messages={
            Fate("late", "504"): "20 ms are over",
            REFUSED: "the queue is full",
            Fate("error", "400"): "no such input",
            Fate("broken", "200"): "the output 'y' is missing",
            CONNECTION: "no connection: Connection refused",
        },
    )
    said = in_words(found)
    assert said[1] == "answered 92 a second; goodput 91 a second within 20 ms (91% of the requests)"
    assert said[3:] == [
        "100 requests: 91 ok; 1 late (answered after 20 ms); 1 late (504: 20 ms are over); "
        "2 refused (503: the queue is full); 1 of status 400 (no such input); "
        "1 answered wrongly (the output 'y' is missing); "
        "1 lost (no connection: Connection refused); 1 unanswered 10 s after the last was due; "
        "1 not sent, because too many others were unanswered",
        "note: the generator itself was late (p99 2 ms), so the server looks slower than it is: "
        "lower the rate, or give the generator a core of its own",
        "note: the server refused 2 requests, since it was overloaded: lower --rate, or give the server "
        "more cores",
        "note: 3 requests found all 4 connections busy and waited; their latency includes the wait",
        "note: the latencies cover only the 92 answered requests",
    ]


def test_where_nothing_is_right_that_is_said() -> None:
    found = result(dict.fromkeys(range(110), REFUSED))
    assert in_words(found)[2] == "latency: no request got a right answer"
    assert in_words(found)[-1] == (
        "note: the server refused 100 requests, since it was overloaded: lower --rate, or give the server "
        "more cores"
    )


def test_where_nothing_is_answered_the_side_to_blame_is_named() -> None:
    found = result(dict.fromkeys(range(110)))
    assert in_words(found)[-1] == (
        "note: the server answered nothing within 10 s, although requests were sent in time. See whether it "
        "answers at all with --rate 1, then raise the rate, or wait longer with --grace"
    )
    late = dataclasses.replace(found, lag_p99_ns=2500.0 * MS)
    assert in_words(late)[-1] == (
        "note: this client couldn't keep up with 100 requests a second: it sent them 2500 ms late (p99), so "
        "nothing is known of the server. Lower --rate, or run the load test on a machine with free cores"
    )


def test_a_p99_is_claimed_with_its_interval_where_enough_requests_establish_it() -> None:
    due_ns = tuple(MS * i for i in range(10_000))
    plan = Schedule(due_ns, 0, 10_000 * MS)
    traffic = Traffic([BEGIN + due for due in due_ns], lambda _: None, lanes=1)
    for turn in range(10_000):
        traffic.fates[turn] = OK
        traffic.ended_ns[turn] = BEGIN + due_ns[turn] + MS + turn * 7919 % 10_000 * 100
    traffic.stop()
    found = result_of(offered(), plan, traffic, BEGIN)
    assert found.p99 is not None
    assert found.p99.high_ns is not None
    assert found.p99.low_ns < found.p99.value_ns < found.p99.high_ns
    assert "p99 1.99 ms (" in in_words(found)[2]


def test_a_server_that_takes_no_raw_bytes_is_told_what_to_do() -> None:
    found = result(dict.fromkeys(range(110), Fate("error", "500")))
    assert in_words(found)[-1] == (
        "note: tensors were sent as raw bytes, which some servers don't accept: try --json-tensors"
    )


@given(st.integers(1, 5000))
def test_slices_hold_every_latency_once_in_order_and_are_as_many_as_a_p99_takes(count: int) -> None:
    rounds = slices(range(count))
    assert [latency for number in sorted(rounds) for latency in rounds[number]] == [*range(count)]
    assert all(rounds.values())
    assert len(rounds) == count if count < 1000 else 500 <= len(rounds) < 1000
