"""The last minute, under a clock of the tests' own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.serving.models.window import SECONDS, Window, quantiles_ns

SECOND = 1_000_000_000
SPANS = st.lists(st.integers(1100, 16 * SECOND), min_size=1, max_size=50)


def window(*requests: tuple[float, int]) -> Window:
    """Requests by the second at which they were answered, and how long they took."""
    made = Window()
    at_s, spans_ns = zip(*requests, strict=True)
    made.add_all(np.array([round(SECOND * at) for at in at_s]), np.array(spans_ns))
    return made


def requests(counted: Window, now_s: float) -> list[int]:
    return [int(count) for count in counted.counts(round(SECOND * now_s)).sum(axis=1)]


def test_each_request_counts_in_the_second_in_which_it_was_answered() -> None:
    counted = window((100.0, 5000), (100.9, 5000), (102.5, 5000))
    assert requests(counted, 103.2)[-4:] == [0, 2, 0, 1]


def test_a_second_that_is_not_over_is_not_shown() -> None:
    counted = window((100.5, 5000))
    assert sum(requests(counted, 100.9)) == 0
    assert sum(requests(counted, 101.0)) == 1


@pytest.mark.parametrize("more_s", [60, 63, 64, 128, 6400])
def test_what_is_a_minute_ago_is_forgotten(more_s: int) -> None:
    counted = window((100.5, 5000))
    assert sum(requests(counted, 160.9)) == 1
    assert sum(requests(counted, 101.0 + more_s)) == 0


def test_a_slot_that_comes_again_begins_at_zero() -> None:
    counted = window((100.5, 5000))
    counted.add_all(np.array([164 * SECOND]), np.array([5000]))  # 64 seconds on: the same memory
    assert sum(requests(counted, 165.0)) == 1
    counted.add_all(np.array([100 * SECOND]), np.array([5000]))  # and what comes late is left out
    assert sum(requests(counted, 165.0)) == 1


def test_hours_of_requests_at_once_leave_the_last_minute() -> None:
    counted = Window()
    at_ns = np.arange(0, 10_000 * SECOND, SECOND)
    counted.add_all(at_ns, np.full(len(at_ns), 5000))
    assert requests(counted, 10_000.0) == [1] * SECONDS


@given(SPANS, st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_those_of_the_spans_within_their_bins(spans: list[int], share: float) -> None:
    counts = window(*((1.0, span) for span in spans)).counts(2 * SECOND)[-1:]
    (found,) = quantiles_ns(counts, share)
    rank = max(1, int(np.ceil(share * len(spans))))
    assert found == pytest.approx(sorted(spans)[rank - 1], rel=0.0225)


def test_of_no_requests_there_is_no_quantile() -> None:
    assert quantiles_ns(Window().counts(1000 * SECOND), 0.5) == [None] * SECONDS


@pytest.mark.parametrize(("span_ns", "shown_ns"), [(0, 1046), (1, 1046), (10**12, 1.68e10)])
def test_spans_beyond_the_bins_count_in_the_outermost(span_ns: int, shown_ns: float) -> None:
    counts = window((1.0, span_ns)).counts(2 * SECOND)[-1:]
    assert quantiles_ns(counts, 0.5)[0] == pytest.approx(shown_ns, rel=0.01)
