"""What teaches needs its label, and labels that are asked for come too late to teach."""

from __future__ import annotations

import numpy as np
import pytest

import hasten
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.top_k import Top1
from hasten.lightening.given import check_all_labelled

X = np.zeros((4, 2), np.float32)


def test_training_samples_without_a_label_are_refused() -> None:
    check_all_labelled(ArrayDataset({"x": X}, np.arange(4)), Top1())
    check_all_labelled(ArrayDataset({"x": X}), Top1())
    with pytest.raises(InputError) as error:
        check_all_labelled(ArrayDataset({"x": X}, np.array([0, -1, 1, -1])), Top1())
    assert str(error.value) == (
        "2 of 4 training samples have no label: leave them out, or give all samples without "
        "labels, so that only the model teaches"
    )


def test_lighten_asks_for_no_labels() -> None:
    with pytest.raises(InputError) as error:
        hasten.lighten("model.py:net", X, X, budget_s=1.0, ask_labels="page")
    assert str(error.value) == (
        "lighten learns from labels: give them with the data, and leave out ask_labels="
    )
