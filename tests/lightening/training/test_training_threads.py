"""The number of threads that steps of a training get, on hosts whose clocks are made up."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from hasten.lightening.training.threads import Threads, chosen_threads


class Host:
    """Host on which a step takes a given time with each number of threads.

    Args:
        seconds: Duration of a step, by the number of threads.
        share: Share of its core that a thread gets.
    """

    def __init__(self, seconds: Mapping[int, float], share: float = 1.0) -> None:
        self.seconds, self.share = seconds, share
        self.time_s = self.computed_s = 0.0
        self.used: list[int] = []
        self.threads = Threads(
            seconds, use=self.used.append, now=lambda: self.time_s, computed=lambda: self.computed_s
        )

    def take(self, steps: int) -> list[int]:
        """Take steps, and return the number of threads of each."""
        del self.used[:]
        for _ in range(steps):
            with self.threads.step():
                took = self.seconds[self.used[-1]]
                self.time_s += took
                self.computed_s += took * self.share
        return list(self.used)


def test_on_an_idle_host_all_threads_are_used_if_they_are_faster() -> None:
    host = Host({1: 4.0, 2: 2.5, 4: 2.0})
    assert host.take(8) == [1, 1, 2, 2, 4, 4, 4, 4]
    assert host.threads.settled
    assert host.threads.seconds == 2.0


def test_threads_that_do_not_help_are_given_up() -> None:
    host = Host({1: 1.0, 2: 1.1, 4: 0.5})
    assert host.take(6) == [1, 1, 2, 2, 1, 1]
    assert host.threads.seconds == 1.0


def test_far_slower_threads_get_a_single_try() -> None:
    assert Host({1: 1.4, 2: 25.0}).take(5) == [1, 1, 2, 1, 1]


def test_no_more_threads_are_tried_where_one_has_to_share_its_core() -> None:
    host = Host({1: 1.4, 2: 25.0}, share=0.2)
    assert host.take(40) == [1] * 40


def test_a_host_that_becomes_idle_gets_all_threads_again() -> None:
    host = Host({1: 1.0, 2: 0.6}, share=0.2)
    host.take(10)
    host.share = 1.0
    assert host.take(100)[-1] == 2


def test_a_host_that_becomes_busy_gets_one_thread_again() -> None:
    host = Host({1: 1.0, 2: 0.6})
    assert host.take(5)[-1] == 2
    host.seconds, host.share = {1: 1.4, 2: 25.0}, 0.2
    assert host.take(20)[-1] == 1


def test_a_single_choice_is_settled_at_once() -> None:
    host = Host({3: 1.0})
    assert host.threads.settled
    assert host.take(3) == [3, 3, 3]


@pytest.mark.parametrize("count", [1, 2])
def test_torch_has_its_own_number_of_threads_again(count: int) -> None:
    torch.set_num_threads(count)
    with chosen_threads(torch.device("cpu")) as threads, threads.step():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count
