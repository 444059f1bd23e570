"""Operations of numbers of 16 bits equal numpy's integers bit for bit, on many shapes at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.engines.test_compiled_bytes import ISAS, ODD, SHAPES, Made
from tests.support.plans import PROCESSORS, planned

from hasten.engines.compiled import source
from hasten.engines.compiled.operators.int8.conversions16 import Dequantize16, Numbers16, Quantize16
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.operators.int8.numbers16 import (
    HIGHEST,
    LOWEST,
    WORDS,
    Rounding16,
    most_sums,
)
from hasten.engines.compiled.operators.int8.words import Add16, Multiply16, Table16
from hasten.engines.compiled.plan import Operation
from hasten.engines.compiled.tensors import product
from hasten.errors import IntegrityError

FORMS = tuple(
    (given, end)
    for end in ("words", "words sloped", "float", "plain", "all", "sloped")
    for given in ("words", "bytes")
    if given == "words" or end.startswith("words")
)
"""Input, and end, of convolutions that read or write words."""
LARGE: list[dict[str, Any]] = [
    {"channels": (24, 24), "groups": 24, "size": (9, 10), "kernel": (9, 10)},
    {"channels": (64, 64), "groups": 64, "size": (14, 13), "kernel": (9, 7), "pads": (4, 3, 4, 3)},
    {"channels": (64, 64), "groups": 64, "size": (6, 8), "kernel": (2, 2), "strides": (2, 2)},
]  # fmt: skip
"""Depthwise convolutions of many taps, and without pads."""


class MadeOfWords(Made):
    """Operations of words that are being collected for one plan."""

    def words(self, size: int, name: str = "") -> str:
        """Return the name of an input of random words, with the extremes among them."""
        name = name or f"x{len(self.given)}"
        some = self.rng.integers(LOWEST, HIGHEST, 30).tolist()
        self.given[name] = self.rng.choice([LOWEST, HIGHEST, *some], size).astype(np.int16)
        return name

    def rounding16(self) -> Rounding16:
        low = int(self.rng.choice([LOWEST, LOWEST, -20_000]))
        zero = int(self.rng.choice([LOWEST, 0, HIGHEST, int(self.rng.integers(LOWEST, HIGHEST))]))
        return Rounding16(zero, low, int(self.rng.choice([HIGHEST, HIGHEST, 25_000])))

    def conv16(self, given: str, end: str, **shape: Any) -> Conv16:
        """Return a convolution whose input or result are words."""
        plain = {"words": "plain", "words sloped": "sloped"}.get(end, end)
        alone = shape.get("groups", 1) == shape["channels"][0] == shape["channels"][1]
        if alone and end == "all":
            plain = "sloped"
        bare = self.conv(plain, **shape)
        found = Conv16(**vars(bare))
        if given == "words":
            zero = int(
                self.rng.choice([LOWEST, 0, HIGHEST, int(self.rng.integers(LOWEST, HIGHEST))])
            )
            spread = self.constants[bare.scale] / 256
            found = replace(
                found,
                wide=True,
                zero=zero,
                input=self.words(product(bare.size) * bare.channels[0], bare.input),
                scale=self.constant(spread.astype(np.float32)),
                weight=self.constant(small(self.constants[bare.weight])),
            )
        if end.startswith("words"):
            self.made[found.output] = ("int16", self.made[found.output][1])
            scale = self.constants[found.scale] * 256
            found = replace(
                found,
                words=self.rounding16(),
                rounding=None,
                scale=self.constant(scale.astype(np.float32)),
            )
        return found


def small(weight: Any) -> Any:
    """Return weights of which no channel's sum of words exceeds 32 bits."""
    taps = weight.reshape(len(weight), -1).shape[1]
    return weight if taps <= 250 else (weight // (1 + taps // 250)).astype(np.int8)


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.seconds) for n in (1, 2))]
)
def test_convolutions_of_words_equal_those_of_integers(first: int) -> None:
    made = MadeOfWords(first)
    shapes = [*SHAPES, *LARGE]
    forms = itertools.islice(itertools.cycle(FORMS), first, None, 1)
    made.operations = [
        made.conv16(*form, **shape) for form, shape in zip(forms, shapes, strict=False)
    ]
    made.check()


@pytest.mark.parametrize(("isa", "spelled"), ISAS.values(), ids=ISAS)
def test_each_instruction_set_gives_the_same_words(isa: tuple[str, ...], *, spelled: bool) -> None:
    made = MadeOfWords(len(isa))
    forms = itertools.cycle(FORMS)
    shapes = [*ODD, SHAPES[4], SHAPES[6], LARGE[0]]
    made.operations = [made.conv16(*next(forms), **shape) for shape in shapes]
    made.check(isa=isa, spelled=spelled)


SIZES = ((1, 1), (1, 70), (49, 16), (9, 33), (130, 3))
"""Pixels and channels."""


def elementwise(made: MadeOfWords, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    """Add operations of words of some sizes."""
    for pixels, channels in sizes:
        size = pixels * channels
        values = (made.rng.standard_normal(size) * 9000).astype(np.float32)
        values[:7] = np.array([np.nan, np.inf, -np.inf, 0.25, 0.75, 3e38, -0.0])[:size]
        made.given[f"f{pixels}x{channels}"] = values
        table = made.constant(made.rng.integers(LOWEST, HIGHEST, WORDS).astype(np.int16))
        zeros = (LOWEST, int(made.rng.integers(LOWEST, HIGHEST)))
        ratios = (float(made.rng.uniform(0.1, 3)), float(made.rng.choice([-2.0, 64.0, 1e-9])))
        words = (made.words(size), made.words(size))
        numbers = made.constant(made.rng.standard_normal(WORDS).astype(np.float32))
        made.operations += [
            Numbers16(words[0], numbers, made.output(size, "float32"), channels, pixels),
            Quantize16(f"f{pixels}x{channels}", made.output(size, "int16"), channels, pixels, 0.5, made.rounding16()),
            Dequantize16(words[0], made.output(size, "float32"), channels, pixels, zeros[1], 0.003),
            Table16(words[0], table, made.output(size, "int16"), size),
            Add16(*words, made.output(size, "int16"), size, zeros, ratios, made.rounding16()),
        ]  # fmt: skip
        for gate in (True, False):
            second = made.words(channels) if gate else words[1]
            ratio = float(made.rng.choice([2.0**-15, 2.0**-2, 1e-9]))
            rest = (made.output(size, "int16"), pixels, channels, gate, zeros, ratio)
            made.operations.append(Multiply16(words[0], second, *rest, made.rounding16()))


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_goes_word_by_word_equals_integers(name: str) -> None:
    made = MadeOfWords(1)
    elementwise(made)
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


def test_threads_give_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = MadeOfWords(7)
    few = {"channels": (12, 300), "size": (3, 2)}  # which threads share by channels, not by rows
    shapes = (SHAPES[0], SHAPES[1], SHAPES[4], SHAPES[6], SHAPES[12], *LARGE, *ODD[:2], few)
    forms = itertools.cycle(FORMS)
    made.operations = [made.conv16(*next(forms), **shape) for shape in shapes]
    elementwise(made)
    made.check(threads=3)


def test_rows_of_a_batch_are_those_of_one_row_of_words() -> None:
    made = MadeOfWords(0)
    forms = itertools.cycle(FORMS)
    made.operations = [made.conv16(*next(forms), **shape) for shape in SHAPES[:8]]
    made.check(rows=3)


@pytest.mark.parametrize("zero", [LOWEST, 0, HIGHEST])
def test_the_largest_sums_are_exact(zero: int) -> None:
    made = MadeOfWords(3)
    far = HIGHEST if zero < 0 else LOWEST
    for shape in (
        {"channels": (255, 9), "size": (1, 1)},
        {"channels": (40, 40), "groups": 40, "size": (15, 17), "kernel": (15, 17)},
    ):
        bare = made.conv16("words", "float", **shape)
        weight = np.tile([127, -128], (bare.channels[1], bare.taps))[:, : bare.taps]
        weight[0], weight[1] = -128, 127
        sums = weight.sum(1) * (far - zero)
        # Together with the bias it is 2^31 - 1, or its negative: intermediate sums wrap.
        bias = np.where(sums > 0, (1 << 31) - 1 - sums, -(1 << 31) + 1 - sums)
        bias[2:] = 12_345
        scale = np.full(len(bias), 0.25, np.float32)
        made.given[bare.input][:] = far
        made.operations.append(
            replace(
                bare,
                zero=zero,
                weight=made.constant(weight.astype(np.int8)),
                bias=made.constant(bias.astype(np.int32)),
                scale=made.constant(scale),
            )
        )
        most = most_sums(weight.astype(np.int8), bias.astype(np.int32), zero)
        assert (np.abs(sums + bias) <= most).all()
        assert (most[:2] == (1 << 31) - 1).all() or not zero
    made.check()


def test_sums_of_words_that_may_exceed_32_bits_are_refused() -> None:
    made = MadeOfWords(4)
    bare = made.conv16("words", "words", channels=(300, 3), size=(1, 1))
    weight = np.full((3, 300), 127, np.int8)  # 300 * 127 * 65535 is above 2^31
    made.operations = [replace(bare, zero=LOWEST, weight=made.constant(weight))]
    with pytest.raises(IntegrityError, match="a sum of products may overflow"):
        made.check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zero": 40_000}, "a zero of 40000"),
        ({"words": Rounding16(0, 5, 4)}, "rounding to 5 to 4"),
        ({"words": Rounding16(0, 0, 1 << 15)}, "rounding to 0 to 32768"),
        ({"wide": False}, "must be 280 x uint8"),
        ({"words": None}, "must be 560 x float32"),
        ({"last": "table"}, "goes through no table"),
    ],
)
def test_a_damaged_convolution_of_words_is_refused(change: dict[str, Any], said: str) -> None:
    made = MadeOfWords(5)
    bare = made.conv16("words", "words", channels=(8, 16), size=(5, 7))
    made.constants["table"] = np.zeros(256, np.uint8)
    made.operations = [replace(bare, **({"zero": 0} | change))]
    with pytest.raises(IntegrityError, match=said):
        made.check()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Quantize16, {"step": 0.0}),
        (Quantize16, {"step": np.nan}),
        (Quantize16, {"step": np.inf}),
        (Quantize16, {"channels": 0, "pixels": 0}),
        (Quantize16, {"rounding": Rounding16(HIGHEST + 1)}),
        (Dequantize16, {"scale": -1.0}),
        (Dequantize16, {"scale": np.nan}),
        (Dequantize16, {"zero": LOWEST - 1}),
        (Numbers16, {"channels": -1, "pixels": -33 * 9}),
        (Numbers16, {"table": "x"}),
        (Table16, {"table": "short"}),
        (Table16, {"size": 2}),
        (Add16, {"ratios": (64.1, 1.0)}),
        (Add16, {"ratios": (1.0, np.nan)}),
        (Add16, {"zeros": (0, HIGHEST + 1)}),
        (Multiply16, {"ratio": 2.0**-1.9}),
        (Multiply16, {"ratio": np.nan}),
        (Multiply16, {"ratio": 0.0}),
        (Multiply16, {"zeros": (LOWEST - 1, 0)}),
    ],
)
def test_damaged_fields_of_what_goes_word_by_word_are_refused(
    kind: type[Operation], change: dict[str, Any]
) -> None:
    made = MadeOfWords(2)
    elementwise(made, [(9, 33)])
    made.words(WORDS, "x")
    made.constants["short"] = np.zeros(WORDS - 1, np.int16)
    found = next(one for one in made.operations if isinstance(one, kind))
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    plan.check(len(weights))
    damaged: Any = found
    damaged = replace(damaged, **change)
    with pytest.raises(IntegrityError, match=r"^the plan is damaged: "):
        replace(plan, operations=(damaged, *plan.operations)).check(len(weights))
