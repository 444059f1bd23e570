"""Which frames are answered, dropped and missed, on a clock that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import Array
from hasten.serving.streams.frames import Frame, FrameClock, Slot
from hasten.serving.streams.sources import Source
from hasten.serving.streams.tally import Answer, Watched
from hasten.serving.streams.watching import _Run

MS = 1_000_000
PERIOD_NS = 10 * MS


class Street(Source):
    """A camera whose frames come every 10 ms of a clock that stands still unless it is moved.

    It stands in for the capturing thread too: whatever moves the clock puts the frames that came
    meanwhile into the slot, as that thread would.
    """

    name, rate_per_s, size = "street", 100.0, (1, 1)

    def __init__(self, count: int, late_ns: int = 0) -> None:
        super().__init__()
        self.now_ns = 0
        self.late_ns = late_ns
        self.left = list(range(count))
        self.put: Callable[[int, int], None] = lambda number, captured_ns: None
        self.close_slot: Callable[[], None] = lambda: None

    def move(self, ns: int) -> None:
        """Let time pass, and frames come meanwhile; each is decoded `late_ns` after it came."""
        self.now_ns += ns
        while self.left and self.left[0] * PERIOD_NS + self.late_ns <= self.now_ns:
            self.put(self.left[0], self.left.pop(0) * PERIOD_NS)
        if not self.left:
            self.close_slot()

    # What a slot needs of a condition: whoever waits lets time pass until the next frame.
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def notify_all(self) -> None: ...
    def wait(self, timeout: float | None = None) -> None:
        self.move(max(0, self.left[0] * PERIOD_NS + self.late_ns - self.now_ns) if self.left else 0)

    def frames(self, pace: FrameClock) -> Iterator[tuple[Array, int]]:
        raise NotImplementedError

    def close(self) -> None: ...


def watched(
    count: int,
    takes_ms: Sequence[float],
    *,
    deadline_ns: int | None = None,
    late_ns: int = 0,
    drop_late: bool = False,
) -> tuple[Watched, list[Answer]]:
    """Watch frames that come every 10 ms with a model that takes these times in turn."""
    street = Street(count, late_ns)
    slot = Slot(street)
    run = _Run(street, lambda: street.now_ns, PERIOD_NS, deadline_ns, slot)
    answers: list[Answer] = []
    run.tell = (answers.append,)
    run.drop_late = drop_late
    turns = itertools.cycle(takes_ms)

    def put(number: int, captured_ns: int) -> None:
        image = np.zeros((1, 1, 3), np.uint8)
        if slot.put(Frame(run.tally.capture(), image, captured_ns)):
            run.tally.drop()

    def decide(image: Any) -> str:
        street.move(round(next(turns) * MS))
        return "seen"

    street.put, street.close_slot = put, slot.close
    run.answer(decide)
    return run.watched((None, None)), answers


def counts(seen: Watched) -> tuple[int, int, int, int]:
    return seen.captured, seen.answered, seen.dropped, seen.missed


def test_a_model_that_is_fast_enough_answers_every_frame() -> None:
    seen, answers = watched(20, [4])
    assert counts(seen) == (20, 20, 0, 0)
    assert seen.latency_ns == (4 * MS,) * 20
    assert [answer.frame for answer in answers] == list(range(20))


def test_a_slow_model_answers_the_newest_frame_and_drops_those_between() -> None:
    """Frame 0 takes 25 ms, in which 1 and 2 come: 2 is answered, 5 ms after it came."""
    seen, answers = watched(6, [25, 2])
    assert [answer.frame for answer in answers] == [0, 2, 3, 5]
    assert [answer.latency_ns // MS for answer in answers] == [25, 7, 25, 7]
    assert counts(seen) == (6, 4, 2, 2)


def test_latency_counts_from_capture_and_not_from_when_the_model_was_free() -> None:
    seen, _ = watched(2, [16, 1])
    assert seen.latency_ns == (16 * MS, 7 * MS)


@pytest.mark.parametrize(("late_ms", "answered"), [(10, 5), (10.000001, 0)])
def test_a_frame_older_than_one_period_is_never_started(late_ms: float, answered: int) -> None:
    seen, _ = watched(5, [0], late_ns=round(late_ms * MS))
    assert counts(seen)[:3] == (5, answered, 5 - answered)


@pytest.mark.parametrize(("deadline_ms", "missed"), [(None, 0), (8, 0), (7.999999, 5)])
def test_an_answer_is_missed_once_it_comes_after_the_deadline(
    deadline_ms: float | None, missed: int
) -> None:
    deadline_ns = None if deadline_ms is None else round(deadline_ms * MS)
    seen, answers = watched(5, [8], deadline_ns=deadline_ns)
    assert counts(seen) == (5, 5, 0, missed)
    assert sum(answer.missed for answer in answers) == missed
    assert seen.deadline_ns == (deadline_ns or PERIOD_NS)


@pytest.mark.parametrize("deadline_ms", [None, 25])
@pytest.mark.parametrize("takes_ms", [[25, 2], [9, 9, 9, 31], [10, 10.000001], [16], [3, 40], [0]])
def test_no_answer_is_older_than_the_deadline_where_late_ones_are_dropped(
    takes_ms: list[float], deadline_ms: int | None
) -> None:
    deadline_ns = None if deadline_ms is None else deadline_ms * MS
    most_ns = deadline_ns or PERIOD_NS
    seen, answers = watched(200, takes_ms, deadline_ns=deadline_ns, drop_late=True)
    assert max((one.latency_ns for one in answers), default=0) <= most_ns
    assert max(seen.latency_ns, default=0) <= most_ns
    assert (seen.answered, seen.missed) == (len(answers), 0)
    assert seen.answered + seen.dropped == 200
    if 0 not in takes_ms:  # nothing is dropped before it was late, or could be
        assert bool(seen.late) == (max(takes_ms) * MS > most_ns)


def test_a_late_decision_is_told_to_nobody() -> None:
    """Frame 0 takes 25 ms, in which 1 and 2 come; frame 2 and those after it take 2 ms."""
    seen, answers = watched(6, [25, *[2] * 9], drop_late=True)
    assert [answer.frame for answer in answers] == [2, 3, 4, 5]
    assert (counts(seen), seen.late) == ((6, 4, 2, 0), 1)


def test_a_frame_that_cannot_be_in_time_any_more_leaves_the_model_to_the_next_one() -> None:
    """After 25 ms frame 2 is 5 ms old, and 9.5 ms are more than is left: so frame 3 is in time."""
    takes_ms = [9.5, 9.5, 25, *[9.5] * 20]
    seen, answers = watched(20, takes_ms, drop_late=True)
    assert [answer.frame for answer in answers] == [0, 1, *range(5, 20)]
    assert (counts(seen), seen.late) == ((20, 17, 3, 0), 1)


def test_a_model_that_was_slow_for_a_while_is_tried_again() -> None:
    """Each frame is 4 ms old when it is decoded: it is too late for 7 ms, but not for 5."""
    seen, answers = watched(40, [*[7] * 8, *[5] * 40], late_ns=4 * MS, drop_late=True)
    assert answers[-1].frame == 39
    assert seen.answered > 20


def test_every_captured_frame_is_answered_or_dropped() -> None:
    for takes in ([3, 40], [11], [99], [9.5, 10.5, 35], [0]):
        captured, answered, dropped, _ = counts(watched(57, takes)[0])
        assert captured == 57
        assert answered + dropped == 57


def test_quantiles_are_latencies_that_were_measured() -> None:
    seen, _ = watched(100, [1, 2, 3, 4])
    assert (seen.p50_ns, seen.p99_ns, seen.most_ns) == (2 * MS, 4 * MS, 4 * MS)


def test_a_recordings_frames_come_at_its_own_times() -> None:
    now, slept = [1_000], []

    def sleep_s(seconds: float) -> bool:
        slept.append(seconds)
        now[0] += round(seconds * 1e9)
        return False

    pace = FrameClock(lambda: now[0], sleep_s)
    assert pace.arrival_ns(0) == 1_000
    now[0] += 4 * MS  # the frame was decoded and handed over
    assert pace.arrival_ns(10 * MS) == 1_000 + 10 * MS
    assert slept == [0.006]
    now[0] += 25 * MS  # a frame that is asked for too late came when it was due
    assert pace.arrival_ns(20 * MS) == 1_000 + 20 * MS
    assert slept == [0.006]


def test_a_stopped_watch_waits_for_no_frame() -> None:
    pace = FrameClock(lambda: 0, lambda seconds: True)
    assert pace.arrival_ns(0) == 0
    assert pace.arrival_ns(3_600_000 * MS) == 3_600_000 * MS
