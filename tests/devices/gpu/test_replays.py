"""The check of captured graphs: two different requests, with the graph and without it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hasten.core.tensors import Array, Tensors
from hasten.engines.cuda.replays import answers_another, other


def doubled(inputs: Tensors) -> Mapping[str, Array]:
    return {"y": inputs["x"] * 2}


class Replaying:
    """What runs as it is twice, is captured at the third run, and then answers so.

    Args:
        stale: Whether the graph answers the request of its capture, whatever is asked.
    """

    def __init__(self, *, stale: bool) -> None:
        self.stale, self.runs = stale, 0

    def __call__(self, inputs: Tensors) -> Mapping[str, Array]:
        self.runs += 1
        if self.runs <= 3 or not self.stale:
            self.captured = doubled(inputs)
        return self.captured


@pytest.mark.parametrize("x", [np.zeros((1, 3), np.float32), np.arange(6, dtype=np.int64)])
def test_only_a_graph_that_answers_the_request_of_its_capture_is_refused(x: Array) -> None:
    assert not answers_another({"x": x}, doubled, Replaying(stale=False))
    assert answers_another({"x": x}, doubled, Replaying(stale=True))


def test_kernels_that_sum_in_another_order_are_no_other_answer() -> None:
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    noisy = lambda inputs: {"y": inputs["x"] * 2 + np.float32(1e-4)}  # noqa: E731
    assert not answers_another({"x": x}, doubled, noisy)
    undefined = lambda inputs: {"y": np.where(inputs["x"] > 0, np.nan, inputs["x"])}  # noqa: E731
    assert not answers_another({"x": x}, undefined, undefined)


@given(
    arrays.arrays(
        st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_the_other_request_differs_in_its_values_alone(array: Array) -> None:
    before = array.tobytes()
    changed = other(array)
    assert (changed.shape, changed.dtype) == (array.shape, array.dtype)
    assert array.tobytes() == before
    assert array.size == 0 or changed.tobytes() != before
    assert changed.flags.c_contiguous
