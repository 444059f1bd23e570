"""Fixed-point formats: pure, and checked by exact arithmetic."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engines.fpga.formats import Format, format_for, rounded_weights


def one(signed: int, integer: int, fraction: int) -> Format:
    return Format(np.array([signed]), np.array([integer]), np.array([fraction]))


def test_halves_are_rounded_up_and_what_is_beyond_becomes_the_last_number() -> None:
    form = one(1, 1, 1)  # -2, -1.5, ... 1.5
    values = np.array([[-9.0], [-0.75], [-0.25], [0.24], [0.25], [1.9], [9.0]])
    assert form.rounded(values)[:, 0].tolist() == [-2, -0.5, 0, 0, 0.5, 1.5, 1.5]


def test_a_format_without_bits_is_zero() -> None:
    assert one(0, -3, 3).rounded(np.array([[5.0]])).tolist() == [[0.0]]
    assert one(0, -3, 3).bits == 0


@given(
    st.floats(-1e4, 1e4, width=32),
    st.floats(0, 1e4, width=32),
    st.integers(2, 16),
)
def test_a_format_reaches_over_its_range_and_has_its_bits(
    low: float, span: float, bits: int
) -> None:
    high = low + span
    form = format_for(np.array([low]), np.array([high]), bits, alike=False)
    assert form.bits == bits
    step = 2.0 ** -float(form.fraction[0])
    for value in (low, high):
        assert abs(form.rounded(np.array([[value]]))[0, 0] - value) <= step


def test_alike_elements_share_a_step_and_narrower_ranges_take_fewer_bits() -> None:
    form = format_for(np.array([0.0, 0.0]), np.array([0.9, 7.0]), 8, alike=True)
    assert form.fraction.tolist() == [5, 5]
    assert (form.signed + form.integer + form.fraction).tolist() == [5, 8]


@settings(max_examples=50)
@given(st.integers(2, 12), st.integers(0, 99))
def test_rounded_weights_are_multiples_of_a_power_of_two_within_their_bits(
    bits: int, seed: int
) -> None:
    weights = np.random.default_rng(seed).standard_normal((5, 3)) * np.array([1e-3, 1, 40])
    rounded = rounded_weights(weights, bits, 1)
    for column, exact in zip(rounded.T, weights.T, strict=True):
        steps = [s for s in range(-40, 20) if (column / 2.0**s == np.round(column / 2.0**s)).all()]
        step = 2.0 ** max(steps)
        assert np.abs(column / step).max() <= 2 ** (bits - 1)
        assert np.abs(column - exact).max() <= np.abs(exact).max() / 2 ** (bits - 2)
