import numpy as np
import pytest
from hasten_numpy.within import Within

from hasten.errors import InputError
from hasten.inputs.metrics import parse_metric


def test_a_neighbouring_class_counts_and_one_further_off_does_not() -> None:
    scores = np.eye(4, dtype=np.float32)[[0, 1, 3]]
    found = parse_metric("within:1").score({"y": scores}, {}, np.array([0, 2, 1]))
    assert found.tolist() == [1, 1, 0]


def test_a_distance_is_a_whole_number() -> None:
    with pytest.raises(InputError, match=r"^metric 'within:x': a distance is a whole number"):
        Within.parse("x", "within:x")
