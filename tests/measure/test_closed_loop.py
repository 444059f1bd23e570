"""Sessions that each ask again once they are answered."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.errors import CandidateError, InputError
from hasten.measure.closed_loop import Block, Request, drive, stacked

REQUESTS: list[Request] = [{"x": np.array([i])} for i in range(4)]


class Clock:
    """A clock that only a request moves."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.asked: list[int] = []

    def __call__(self) -> int:
        return self.now_ns

    def taking(self, *latencies_ns: int) -> Callable[[Request], None]:
        """A session whose requests take so long, the last of them from then on."""
        left = list(latencies_ns)

        def run(request: Request) -> None:
            self.asked.append(int(request["x"][0]))
            self.now_ns += left.pop(0) if len(left) > 1 else left[0]

        return run


def pace(**changed: int) -> dict[str, Any]:
    return {"warmup_ns": 0, "block_ns": 100, "at_least": 1, "at_most": 1000, **changed}


def test_requests_are_timed_one_by_one_until_the_time_is_up() -> None:
    clock = Clock()
    block = drive([clock.taking(40, 30, 50)], REQUESTS, **pace(), clock_ns=clock)
    assert block == Block((40, 30, 50), 120)
    assert clock.asked == [0, 1, 2]


def test_a_slow_session_still_answers_as_many_as_asked() -> None:
    clock = Clock()
    assert drive([clock.taking(500)], REQUESTS, **pace(at_least=3), clock_ns=clock) == Block(
        (500, 500, 500), 1500
    )


def test_what_warms_up_is_not_timed_and_requests_go_on_from_there() -> None:
    clock = Clock()
    block = drive([clock.taking(900, 900, 60)], REQUESTS, **pace(warmup_ns=1000), clock_ns=clock)
    assert block == Block((60, 60), 120)
    assert clock.asked == [0, 1, 2, 3]


def test_no_warm_up_is_none_at_all() -> None:
    clock = Clock()
    drive([clock.taking(500)], REQUESTS, **pace(), clock_ns=clock)
    assert clock.asked == [0]


def test_each_session_has_a_thread_and_begins_at_another_request() -> None:
    gate, seen = threading.Barrier(2), dict[int, tuple[int, int]]()

    def session(number: int) -> Callable[[Request], None]:
        def run(request: Request) -> None:
            gate.wait(20)  # only two at once pass
            seen.setdefault(number, (threading.get_ident(), int(request["x"][0])))

        return run

    block = drive([session(0), session(1)], REQUESTS, **pace(block_ns=0))
    assert len(block.latency_ns) == 2
    assert {first for _, first in seen.values()} == {0, 2}
    assert len({thread for thread, _ in seen.values()}) == 2


def test_the_first_session_with_enough_answers_ends_the_block_for_all() -> None:
    enough = threading.Event()

    def quick(request: Request) -> None:
        if len(asked) == 3:
            enough.set()
        asked.append(request)

    def slow(request: Request) -> None:
        enough.wait(20)

    asked: list[Request] = []
    block = drive([quick, slow], REQUESTS, **pace(block_ns=10**12, at_most=4))
    assert len(asked) == 4
    assert len(block.latency_ns) > 4


@pytest.mark.parametrize("warmup_ns", [0, 1])
def test_a_session_that_fails_ends_the_others_and_is_the_one_that_is_named(warmup_ns: int) -> None:
    def bad(request: Request) -> None:
        raise CandidateError("it broke")

    def good(request: Request) -> None:
        return None

    with pytest.raises(CandidateError) as error:
        drive(
            [good, bad, good],
            REQUESTS,
            **pace(block_ns=10**12, at_most=10**12, warmup_ns=warmup_ns),
        )
    assert str(error.value) == "it broke"


def test_nothing_is_driven_without_requests() -> None:
    with pytest.raises(InputError) as error:
        drive([lambda request: None], [], **pace())
    assert str(error.value) == "nothing to time: got no requests"


def test_a_batch_stacks_what_the_model_leaves_open_and_nothing_else() -> None:
    samples = {"x": np.arange(6.0).reshape(3, 2), "limit": np.zeros((3, 4))}
    alone = {"x": samples["x"][:1], "limit": samples["limit"][:1]}
    inputs = [TensorSpec("x", "float64", ("batch", 2)), TensorSpec("limit", "float64", (1, 4))]
    made = stacked(samples, alone, inputs)
    assert {name: array.shape for name, array in made.items()} == {"x": (3, 2), "limit": (1, 4)}
    assert np.array_equal(made["x"], samples["x"])
    assert made["x"].flags.c_contiguous


def test_an_open_axis_that_a_sample_has_itself_is_no_batch() -> None:
    samples: dict[str, Any] = {"ids": np.zeros((3, 7), np.int64)}
    alone = {"ids": samples["ids"][0]}
    made = stacked(samples, alone, [TensorSpec("ids", "int64", ("length",))])
    assert made["ids"].shape == (7,)
