"""Depthwise convolutions of bytes equal numpy's integers bit for bit, whatever the shape and the processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.engines.test_compiled_bytes import ENDS, Made

from hasten.core.target import Target

TARGETS = {"widest": Target.host(), "plain": replace(Target.host(), isa=())}


def _shape(rng: np.random.Generator, channels: int) -> dict[str, Any]:
    """Return a random shape of few pixels."""
    kernel = [int(rng.choice([3, 3, 3, 5, 7, 1, 2])) for _ in range(2)]
    dilations = [int(rng.choice([1, 1, 1, 2, 3])) for _ in range(2)]
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = [int(rng.integers(0, one)) for one in (*reach, *reach)]
    size = [int(rng.integers(max(1, reach[at] - pads[at] - pads[at + 2]), 16)) for at in (0, 1)]
    return {
        "channels": (channels, channels),
        "groups": channels,
        "size": tuple(size),
        "kernel": tuple(kernel),
        "strides": tuple(int(rng.choice([1, 1, 2, 2, 3])) for _ in range(2)),
        "dilations": tuple(dilations),
        "pads": tuple(pads),
    }


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("end", ENDS)
def test_any_depthwise_convolution_equals_that_of_integers(name: str, end: str) -> None:
    made = Made(ENDS.index(end))
    numbers = range(1 + ENDS.index(end), 71, 14)
    made.operations = [made.conv(end, **_shape(made.rng, one)) for one in numbers]
    made.check(target=TARGETS[name])


@pytest.mark.parametrize("name", TARGETS)
def test_large_pictures_are_computed_strip_by_strip(name: str) -> None:
    made = Made(9)
    usual = {"channels": (80, 80), "groups": 80, "kernel": (3, 3), "pads": (1, 1, 1, 1)}
    made.operations = [
        made.conv("plain", size=(29, 75), **usual),
        made.conv("residual", size=(30, 74), strides=(2, 2), **usual),
        made.conv("plain", size=(9, 300), **(usual | {"kernel": (5, 5)})),
        made.conv("plain", size=(40, 40), **(usual | {"pads": (0, 0, 0, 0)})),
    ]
    made.check(target=TARGETS[name])
