"""Depthwise convolutions of bytes equal numpy's integers bit for bit, whatever the shape and the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.engines.test_compiled_bytes import ENDS, Made
from tests.support.plans import PROCESSORS


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


@pytest.mark.parametrize("name", PROCESSORS)
def test_any_depthwise_convolution_equals_that_of_integers(name: str) -> None:
    made = Made(list(PROCESSORS).index(name))
    numbers = [1, 4, 7, 9, 17, 24, 40, 64, 70]
    made.operations = [
        made.conv(ENDS[at % len(ENDS)], **_shape(made.rng, one)) for at, one in enumerate(numbers)
    ]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


@pytest.mark.parametrize("name", ["widest", "sse2"])
def test_large_pictures_are_computed_strip_by_strip(name: str) -> None:
    made = Made(9)
    usual = {"channels": (80, 80), "groups": 80, "kernel": (3, 3), "pads": (1, 1, 1, 1)}
    made.operations = [
        made.conv("plain", size=(29, 75), **usual),
        made.conv("residual", size=(30, 74), strides=(2, 2), **usual),
        made.conv("plain", size=(9, 300), **(usual | {"kernel": (5, 5)})),
        made.conv("plain", size=(40, 40), **(usual | {"pads": (0, 0, 0, 0)})),
    ]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)
