"""Convolutions and pools with any padding, stride and dilation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hasten.errors import CandidateError

Check = Callable[..., str]
SIZES = st.tuples(st.integers(5, 9), st.integers(5, 9))
KERNELS = st.tuples(st.integers(1, 4), st.integers(1, 4))
STRIDES = st.tuples(st.integers(1, 3), st.integers(1, 3))


def padding(kernel: tuple[int, int]) -> st.SearchStrategy[list[int]]:
    """Less than the kernel on each side."""
    return st.tuples(*(st.integers(0, kernel[i % 2] - 1) for i in range(4))).map(list)


def refusal(check: Check, text: str) -> str | None:
    """Compare, and return why it can't be converted."""
    try:
        check(text)
    except CandidateError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def anew(compared: Check) -> Check:
    """Compare in a folder of its own, as hypothesis asks again and again."""

    def check(text: str, **constants: object) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return compared(Path(folder), text, **constants)

    return check


@given(
    st.data(),
    SIZES,
    KERNELS,
    STRIDES,
    st.integers(1, 2),
    st.sampled_from(["1", "2", "depth", "4x"]),
)
@settings(max_examples=40)
def test_convolutions(
    anew: Check,
    data: st.DataObject,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: int,
    kind: str,
) -> None:
    pads = data.draw(padding(kernel))
    group, filters = {"1": (1, 3), "2": (2, 6), "depth": (4, 4), "4x": (4, 8)}[kind]
    reach = [(k - 1) * dilation + 1 for k in kernel]
    assume(all(size[i] + pads[i] + pads[i + 2] >= reach[i] for i in range(2)))
    said = anew(
        f"case (float[batch, 4, {size[0]}, {size[1]}] x) => (y) {{ c = Conv<group={group}, "
        f"pads={pads}, strides={list(stride)}, dilations=[{dilation}, {dilation}]>(x, k, b) "
        "y = Relu(c) }",
        k=(filters, 4 // group, *kernel),
        b=(filters,),
    )
    part, _, whole, _ = said.split()
    assert part == whole


@given(st.data(), SIZES, KERNELS, STRIDES, st.integers(0, 1))
@settings(max_examples=30)
def test_maxima(
    anew: Check,
    data: st.DataObject,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    ceil: int,
) -> None:
    pads = data.draw(padding(kernel))
    text = (
        f"case (float[batch, 4, {size[0]}, {size[1]}] x) => (y) {{ y = MaxPool<kernel_shape="
        f"{list(kernel)}, pads={pads}, strides={list(stride)}, ceil_mode={ceil}>(x) }}"
    )
    if (said := refusal(anew, text)) is not None:
        assert "its padding" in said
        wide = [2 * max(pads[i], pads[i + 2]) > kernel[i] for i in range(2)]
        assert any(wide) or ceil


@given(st.data(), SIZES, KERNELS, STRIDES, st.integers(0, 1))
@settings(max_examples=30)
def test_means(
    anew: Check,
    data: st.DataObject,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    counted: int,
) -> None:
    pads = data.draw(padding(kernel))
    text = (
        f"case (float[batch, 4, {size[0]}, {size[1]}] x) => (y) {{ y = AveragePool<kernel_shape="
        f"{list(kernel)}, pads={pads}, strides={list(stride)}, count_include_pad={counted}>(x) }}"
    )
    if (said := refusal(anew, text)) is not None:
        assert "its padding" in said
        assert not counted


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_by_name(anew: Check, auto: str, stride: int) -> None:
    anew(
        f'case (float[batch, 4, 8, 7] x) => (y) {{ y = Conv<auto_pad="{auto}", '
        f"strides=[{stride}, {stride}]>(x, k) }}",
        k=(3, 4, 3, 2),
    )


def test_a_padding_that_is_same_is_not_written(anew: Check) -> None:
    def operators(size: int) -> int:
        said = anew(
            f"case (float[batch, 4, {size}, {size}] x) => (y) {{ "
            "y = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(x, k) }",
            k=np.ones((3, 4, 3, 3), np.float32),
        )
        return int(said.split()[2])

    assert operators(9) + 1 == operators(8)
