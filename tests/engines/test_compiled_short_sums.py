"""Products of bytes whose sums fit in 16 bits, for AVX2 alone, equal numpy's integers bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.test_compiled_bytes import ENDS, ODD, SHAPES, Made
from tests.engines.test_compiled_words import MadeOfWords
from tests.support.plans import PROCESSORS, planned

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled import source
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.quads import grouped
from hasten.engines.compiled.source import write

AVX2 = ("avx2", "fma")
DENSE = [
    shape
    for shape in (*SHAPES, *ODD)
    if shape.get("groups", 1) != shape["channels"][0] and shape["channels"] != (1, 1)
]
EXTREMES = (0, 1, -1, 63, 64, 65, -63, -64, -65, 126, 127, -127, -128)
"""Weights of which two, or four, just fit in 16 bits, times 255, or just don't."""


def narrowed(made: Made, conv: Conv8, most: int) -> Conv8:
    """Return a convolution with other weights, of at most so much, and with the largest and smallest bytes."""
    taps, outs = conv.taps, conv.channels[1]
    weights = made.rng.integers(-most, most + 1, (outs, taps)).astype(np.int8)
    weights[0] = most
    weights[-1] = -most
    given_bytes = made.given[conv.input]
    given_bytes[: len(given_bytes) // 2] = 255
    return replace(conv, weight=made.constant(weights))


def short(made: Made, isa: tuple[str, ...] = AVX2) -> int:
    """Return in how many tiles of the C for a processor sums of bytes have 16 bits."""
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    text = write(plan, weights, replace(Target.host(), isa=isa)).text
    return text.count("const vh each")


@pytest.mark.parametrize("most", [16, pytest.param(32, marks=pytest.mark.seconds), 64])
def test_each_shape_equals_integers(most: int) -> None:
    made = Made(most)
    ends = itertools.cycle(ENDS)
    made.operations = [narrowed(made, made.conv(next(ends), **shape), most) for shape in DENSE]
    assert short(made) >= len(DENSE)
    made.check(isa=AVX2)


def test_results_of_16_bits_equal_integers() -> None:
    made = MadeOfWords(1)
    made.operations = [
        narrowed(made, made.conv16("bytes", "words sloped", **shape), 20) for shape in DENSE[:4]
    ]
    assert short(made)
    made.check(isa=AVX2)


@pytest.mark.parametrize("threads", [2, pytest.param(3, marks=pytest.mark.seconds)])
def test_threads_give_the_same_bytes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(threads)
    few = {"channels": (12, 300), "size": (3, 2)}
    shapes = [*DENSE[:3], few, *DENSE[-3:]]
    made.operations = [narrowed(made, made.conv("residual", **shape), 40) for shape in shapes]
    made.check(isa=AVX2, threads=threads)


def test_rows_of_a_batch_are_those_of_one_row() -> None:
    made = Made(4)
    shapes = (DENSE[0], DENSE[1], {"channels": (48, 40), "size": (5, 5)})
    made.operations = [narrowed(made, made.conv("all", **shape), 30) for shape in shapes]
    made.check(isa=AVX2, rows=3)


def bounded(weights: Array) -> None:
    """Check that no sum that is to have 16 bits can exceed them, whatever the bytes are."""
    quads = grouped(weights)
    found = np.zeros(weights.shape, np.int64)
    np.add.at(found, quads.places, quads.weights.astype(np.int64))
    np.testing.assert_array_equal(found, weights)
    whole = quads.weights.astype(np.int64).reshape(len(quads.places), weights[0].size // 2, 2)
    begin = 0
    for count, size in zip(quads.groups, (3, 2, 1), strict=True):
        part = whole[begin : begin + count * size]
        begin += len(part)
        for sums, most in ((np.maximum(part, 0), 32767), (np.maximum(-part, 0), 32768)):
            each = sums.sum(-1).reshape(count, size, whole.shape[1]).sum(1)
            assert (255 * each <= most).all()
    assert begin == len(whole)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_sum_can_exceed_16_bits(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1 << 30))
    rng = np.random.default_rng(seed)
    shape = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4)), 8, 4)
    share = data.draw(st.sampled_from([0.02, 0.3, 1.0]))
    weights = np.where(rng.random(shape) < share, rng.choice(EXTREMES, shape), 0)
    bounded(weights.astype(np.int8))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        ((64, 64, 0, 0), (0, 0, 1)),  # 255 * 128 fits
        ((64, 65, 0, 0), (0, 0, 2)),  # 255 * 129 doesn't: two have halves, which don't fit together
        ((127, -127, 127, -127), (0, 0, 1)),
        ((127, 0, 0, 127), (0, 0, 1)),
    ],
)
def test_weights_that_just_fit_stay_as_they_are(
    sign: int, weights: tuple[int, ...], groups: tuple[int, ...]
) -> None:
    given_weights = np.zeros((1, 1, 8, 4), np.int8)
    given_weights[0, 0, 3] = np.array(weights) * sign
    assert grouped(given_weights).groups == groups
    bounded(given_weights)


@pytest.mark.parametrize(
    ("last", "groups"), [(63, (1, 0, 0)), (64, (1, 0, 0)), (65, (0, 1, 1)), (127, (0, 1, 1))]
)
def test_quads_are_a_group_where_all_just_fit(last: int, groups: tuple[int, ...]) -> None:
    weights = np.zeros((3, 2, 8, 4), np.int8)
    weights[0, 1, 5], weights[1, 1, 5] = (32, 0, -64, -32), (0, 32, 0, -32)
    weights[2, 1, 5] = (last, 0, 0, 0)
    assert grouped(weights).groups == groups
    bounded(weights)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weight", [32, 33, 64, 65, 127])
def test_sums_of_the_largest_bytes_are_exact(weight: int, sign: int) -> None:
    made = Made(0)
    conv = made.conv("float", channels=(64, 40), size=(5, 7))
    made.given[conv.input][:] = 255
    weights = np.zeros((40, 64), np.int8)
    weights[::8] = sign * weight
    weights[7, ::2] = sign * weight
    weights[21, ::5] = -128
    made.operations = [replace(conv, weight=made.constant(weights))]
    assert bool(short(made)) == (weight < 65)
    made.check(isa=AVX2)


@pytest.mark.parametrize("channels", [(12, 12), (12, 24), (18, 36), (40, 20), (60, 60)])
def test_groups_that_are_joined_otherwise_equal_integers(channels: tuple[int, int]) -> None:
    made = Made(6)
    shapes: list[dict[str, Any]] = [
        {"channels": channels, "groups": groups, "size": (5, 6), "kernel": kernel}
        for groups in (2, 3, 4, 5, 6)
        for kernel in ((1, 1), (3, 3))
        if not (channels[0] % groups or channels[1] % groups)
    ]
    made.operations = [narrowed(made, made.conv("plain", **shape), 30) for shape in shapes]
    made.check(isa=AVX2)


def test_a_large_weight_here_and_there_is_halved() -> None:
    made = Made(5)
    conv = narrowed(made, made.conv("plain", channels=(96, 48), size=(6, 6)), 20)
    made.constants[conv.weight][1, ::17] = 127
    made.constants[conv.weight][9, 40:42] = -128
    made.operations = [conv]
    made.given[conv.input][:] = 255
    assert short(made)
    made.check(isa=AVX2)


def test_layers_of_large_weights_are_calculated_otherwise() -> None:
    made = Made(0)
    made.operations = [made.conv("plain", channels=(96, 48), size=(6, 6))]
    assert not short(made)


def test_other_processors_calculate_otherwise() -> None:
    made = Made(0)
    made.operations = [narrowed(made, made.conv("plain", channels=(96, 48), size=(6, 6)), 20)]
    assert short(made)
    others = {name: target for name, (target, spelled) in PROCESSORS.items() if not spelled}
    assert not any(short(made, target.isa) for target in others.values())
