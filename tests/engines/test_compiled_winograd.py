"""3x3 convolutions of bytes by Winograd's algorithm equal numpy's integers bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.engines.test_compiled_bytes import ENDS, ISAS, Made
from tests.engines.test_compiled_words import MadeOfWords
from tests.support.plans import planned

from hasten.core.target import Target
from hasten.engines.compiled import source
from hasten.engines.compiled.source import write

USUAL: dict[str, Any] = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
SHAPES: list[dict[str, Any]] = [
    {"channels": (32, 64), "size": (16, 16), **USUAL},
    {"channels": (64, 40), "size": (15, 20), **USUAL},
    {"channels": (32, 72), "size": (12, 31), **USUAL},
    {"channels": (64, 130), "size": (34, 10), "kernel": (3, 3)},
    {"channels": (32, 33), "size": (26, 26), "kernel": (3, 3), "pads": (0, 2, 2, 0)},
    {"channels": (96, 48), "size": (3, 116), "kernel": (3, 3), "pads": (1, 1, 2, 1)},
]
"""Maps of whole and of cut tiles, in one chunk and in several, with each number of vectors in a block."""
AVX2, AVX512 = ("avx2", "fma"), ("avx2", "fma", "avx512f", "avx512bw")


def tiled(made: Made, isa: tuple[str, ...] = AVX2) -> bool:
    """Whether the C for a processor calculates tiles of 4 x 4 results."""
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    return "from_points" in write(plan, weights, replace(Target.host(), isa=isa)).text


@pytest.mark.parametrize(
    "first",
    [pytest.param(n, marks=pytest.mark.seconds if n % 3 else ()) for n in range(len(ENDS))],
)
def test_each_shape_with_some_end_equals_integers(first: int) -> None:
    made = Made(first)
    ends = itertools.islice(itertools.cycle(ENDS), first, None)
    made.operations = [made.conv(end, **shape) for end, shape in zip(ends, SHAPES, strict=False)]
    made.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_tiled(shape: dict[str, Any]) -> None:
    made = Made(0)
    made.operations = [made.conv("plain", **shape)]
    assert tiled(made)
    assert tiled(made, AVX512)


@pytest.mark.parametrize(("isa", "spelled"), ISAS.values(), ids=ISAS)
def test_each_instruction_set_gives_the_same_bytes(isa: tuple[str, ...], *, spelled: bool) -> None:
    made = Made(len(isa))
    made.operations = [made.conv(end, **SHAPES[at]) for at, end in ((1, "all"), (2, "float"))]
    made.check(isa=isa, spelled=spelled)


def test_results_of_16_bits_equal_integers() -> None:
    made = MadeOfWords(1)
    made.operations = [made.conv16("bytes", "words sloped", **shape) for shape in SHAPES[1:3]]
    assert tiled(made)
    made.check()


@pytest.mark.parametrize("threads", [2, pytest.param(3, marks=pytest.mark.seconds)])
def test_threads_give_the_same_bytes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(threads)
    made.operations = [made.conv("residual", **shape) for shape in SHAPES]
    made.check(threads=threads)


def test_rows_of_a_batch_are_those_of_one_row() -> None:
    made = Made(4)
    made.operations = [made.conv("all", **SHAPES[0]), made.conv("table", **SHAPES[2])]
    made.check(rows=3)


@pytest.mark.parametrize(
    ("taps", "weight", "held"), [(1036, 127, True), (1037, 127, False), (1028, -128, True)]
)
def test_sums_of_26_bits_are_exact_and_larger_ones_are_calculated_otherwise(
    taps: int, weight: int, *, held: bool
) -> None:
    made = Made(0)
    made.operations = [made.conv("float", channels=(128, 32), size=(16, 16), **USUAL)]
    given, constant = made.operations[0].reads[:2]
    made.given[given][:] = 255
    weights = np.zeros((32, 128 * 9), np.int8)
    weights[5, :taps] = weight
    weights[6, :taps:2] = -weight // 2
    made.constants[constant] = weights
    assert tiled(made) == held
    made.check()


@pytest.mark.parametrize(
    "shape",
    [
        {"channels": (32, 32), "size": (13, 13), **USUAL},  # a third of the tiles would be nothing
        {"channels": (32, 32), "size": (8, 24), **USUAL},  # few tiles
        {"channels": (512, 256), "size": (16, 16), **USUAL},  # many weights
        {"channels": (32, 32), "size": (4, 260), **USUAL},  # many tiles in a row
        {"channels": (32, 32), "size": (16, 16), **USUAL, "kernel": (3, 1)},
        {"channels": (32, 32), "size": (16, 16), **USUAL, "strides": (2, 2)},
        {"channels": (32, 32), "size": (16, 16), **USUAL, "dilations": (2, 2), "pads": (2, 2, 2, 2)},
        {"channels": (64, 64), "groups": 2, "size": (16, 16), **USUAL},
        {"channels": (24, 64), "size": (16, 16), **USUAL},
        {"channels": (64, 31), "size": (16, 16), **USUAL},
    ],
)  # fmt: skip
def test_other_shapes_are_calculated_otherwise(shape: dict[str, Any]) -> None:
    made = Made(0)
    made.operations = [made.conv("plain", **shape)]
    assert not tiled(made, AVX512)
    assert not tiled(made, ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "amx_int8"))


@pytest.mark.parametrize(
    "isa", [(), ("asimddp",), (*AVX512, "avx512_vnni", "amx_tile", "amx_int8")]
)
def test_other_processors_calculate_otherwise(isa: tuple[str, ...]) -> None:
    made = Made(0)
    made.operations = [made.conv("plain", **SHAPES[0])]
    assert not tiled(made, isa)
