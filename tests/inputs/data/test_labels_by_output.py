"""Labels of several outputs, in every form of data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.labels_by_output import joined
from hasten.inputs.data.source import open_data
from hasten.inputs.data.spool import write_spool

X = np.arange(6, dtype=np.float32).reshape(3, 2)
CLASSES, BOXES = np.array([2, 0, 1]), np.arange(12.0).reshape(3, 4)
INPUTS = (TensorSpec("x", "float32", ("n", 2)),)


def forms(folder: Path) -> dict[str, Any]:
    """The same data in each form that holds labels of several outputs."""
    labels = {"logits": CLASSES, "boxes": BOXES}
    named = {f"labels@{name}": array for name, array in labels.items()}
    np.savez(folder / "whole.npz", x=X, **named)  # type: ignore[arg-type]
    np.savez_compressed(folder / "packed.npz", x=X, **named)  # type: ignore[arg-type]
    each = [(x, {"logits": c, "boxes": b}) for x, c, b in zip(X, CLASSES, BOXES, strict=True)]
    return {
        "npz": folder / "whole.npz",
        "compressed": folder / "packed.npz",
        "mapping": {"x": X, **named},
        "tuple": (X, labels),
        "samples": each,
    }


@pytest.mark.parametrize("form", ["npz", "compressed", "mapping", "tuple", "samples"])
def test_labels_of_several_outputs_are_fields_in_every_form(tmp_path: Path, form: str) -> None:
    data = open_data(forms(tmp_path)[form], INPUTS)
    kept = write_spool(data, tmp_path / "spool")
    for dataset in (data, kept):
        assert dataset.names == ("x",)
        assert dataset.labels is not None
        assert dataset.labels["logits"].tolist() == CLASSES.tolist()
        assert dataset.labels["boxes"].tolist() == BOXES.tolist()


def test_an_input_of_the_model_may_have_such_a_name() -> None:
    data = open_data({"labels@x": X}, (TensorSpec("labels@x", "float32", ("n", 2)),))
    assert (data.names, data.labels) == (("labels@x",), None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "the labels are an empty mapping: give an array for each output"),
        (
            {"a": np.zeros(3), "b": np.zeros(2)},
            "labels of several outputs have one row for each sample; got 3 of 'a', 2 of 'b'",
        ),
        (
            {"a": np.array([None, None])},
            "labels of 'a': object [2]; give numbers or text, one row for each sample",
        ),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(
    labels: Mapping[str, Array], message: str
) -> None:
    with pytest.raises(InputError) as error:
        joined(labels)
    assert str(error.value) == message


def test_a_sample_without_labels_among_others_is_refused() -> None:
    samples = [(X[0], {"logits": 1}), (X[1], None)]
    with pytest.raises(InputError) as error:
        open_data(samples, INPUTS)
    assert str(error.value) == (
        "a sample has no label, but labels of several outputs can't be missing: give every "
        "sample the labels of all outputs"
    )
