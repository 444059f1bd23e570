"""Operations of numbers of 16 bits equal numpy's integers bit for bit, on many shapes at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.engines.test_compiled_bytes import ISAS, ODD, SHAPES, Made

from hasten.engines.compiled import source
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.operators.int8.words import (
    HIGHEST,
    LOWEST,
    WORDS,
    Add16,
    Dequantize16,
    Quantize16,
    Rounding16,
    Table16,
    most_sums,
)
from hasten.engines.compiled.plan import product
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
        some = self.rng.integers(LOWEST, HIGHEST, 30)
        self.given[name] = self.rng.choice([LOWEST, HIGHEST, *some], size).astype(np.int16)
        return name

    def rounding16(self) -> Rounding16:
        low = int(self.rng.choice([LOWEST, LOWEST, -20_000]))
        zero = int(self.rng.choice([LOWEST, 0, HIGHEST, self.rng.integers(LOWEST, HIGHEST)]))
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
            zero = int(self.rng.choice([LOWEST, 0, HIGHEST, self.rng.integers(LOWEST, HIGHEST)]))
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


@pytest.mark.parametrize("first", range(3))
def test_convolutions_of_words_equal_those_of_integers(first: int) -> None:
    made = MadeOfWords(first)
    shapes = [*SHAPES, *LARGE]
    forms = itertools.islice(itertools.cycle(FORMS), first, None, 1)
    made.operations = [
        made.conv16(*form, **shape) for form, shape in zip(forms, shapes, strict=False)
    ]
    made.check()
