"""Another architecture in the model's place: whoever reads its scores reads the model's kind of scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.lightening.conftest import corners, task_for, wide
from torch import nn

from hasten.lightening.given import Given
from hasten.lightening.students import StudentNetwork
from hasten.lightening.training.loop import Recipe
from hasten.lightening.training.objective import Scale, scale_of

pytestmark = pytest.mark.seconds


@pytest.mark.parametrize(
    ("last", "scale"),
    [
        (nn.Identity(), "logits"),
        (nn.Softmax(1), "probabilities"),
        (nn.LogSoftmax(1), "log-probabilities"),
        (nn.Sigmoid(), "sigmoids"),
    ],
)
def test_a_students_scores_have_the_scale_of_the_models(
    tmp_path: Path, last: nn.Module, scale: Scale
) -> None:
    """A threshold of 0.9 on the model's probabilities would mean something else on a student's logits."""
    module = nn.Sequential(wide(8), last)
    read = Given.read(module, corners(100, 1), corners(60, 2), None, None, tmp_path)
    task = task_for(read, module, Recipe(), tmp_path)
    for by_labels in (False, True):
        student = StudentNetwork(
            "resnet10-s8", 0.25, None, 4, (1, 16, 16), by_labels=by_labels
        ).begin(task, 0, None, tmp_path)
        with torch.no_grad():
            assert scale_of(student.eval()(torch.from_numpy(corners(30, 3)[0]))) == scale
