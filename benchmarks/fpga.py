"""Two small networks on real data, to be made for an FPGA by one command each.

    hasten optimize benchmarks/fpga.py:cancer --data benchmarks/fpga.py:cancer_test \\
        --training benchmarks/fpga.py:cancer_training --target fpga:ecp5 --budget 150ns --max-drop 3%

    hasten optimize benchmarks/fpga.py:digits --data benchmarks/fpga.py:digits_test \\
        --training benchmarks/fpga.py:digits_training --target fpga:ecp5 --budget 150ns --max-drop 3%

Both are trained when they are asked for, in seconds: 30-32-16-2 on scikit-learn's breast-cancer data, and
two convolutions on its digits of 8 x 8. What came out stands in docs/targets/fpga.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own pieces

from tests.support import tasks

from hasten.core.tensors import Array

Labelled = tuple[dict[str, Array], Array]


def cancer() -> Any:
    """The perceptron, trained."""
    return tasks.perceptron()


def cancer_training() -> Labelled:
    """The 284 samples that it was trained on."""
    return _named(tasks.cancer()[0])


def cancer_test() -> Labelled:
    """The other 285."""
    return _named(tasks.cancer()[1])


def digits() -> Any:
    """The small CNN, trained."""
    return tasks.small_cnn()


def digits_training() -> Labelled:
    """The 898 samples that it was trained on."""
    return _named(tasks.digits()[0])


def digits_test() -> Labelled:
    """The other 899."""
    return _named(tasks.digits()[1])


def _named(data: tuple[Array, Array]) -> Labelled:
    x, y = data
    return {"input": x}, y
