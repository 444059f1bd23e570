"""Ranges of a run's data are read some samples at a time, whatever their size or shape."""

import numpy as np

from hasten.core.ranges import ValueRange, ranges_of
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.ragged import RaggedDataset
from hasten.optimization.ready import _parts


def test_samples_that_differ_in_shape_have_one_range() -> None:
    data = RaggedDataset({"x": [np.arange(3), np.arange(7), np.array([9, 2])]})
    assert ranges_of(_parts(data)) == (ValueRange("x", (0.0,), (9.0,)),)


def test_large_samples_are_read_in_small_parts_that_hold_them_all() -> None:
    pictures = ArrayDataset({"x": np.zeros((40, 3, 640, 640), np.uint8)})
    sizes = [len(part["x"]) for part in _parts(pictures)]
    assert sum(sizes) == 40
    assert max(sizes) * 3 * 640 * 640 <= 16 << 20
