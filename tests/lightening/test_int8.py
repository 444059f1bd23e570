"""A network that int8 costs too much, taught once more with int8's rounding in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from tests.lightening.conftest import corners, task_for, wide
from tests.support.exports import exported_once
from tests.support.quick import quick_runs

from hasten.core.records import to_record, write_json
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.agreement import Agreement
from hasten.lightening import candidates
from hasten.lightening.given import Given
from hasten.lightening.int8 import QuantizationAware, int8_score
from hasten.lightening.prospects import Prospect
from hasten.lightening.students import StudentNetwork
from hasten.lightening.task import Task
from hasten.lightening.training.loop import Recipe
from hasten.lightening.ways import train_way
from hasten.passes.onnx_files import op_counts
from hasten.passes.static_quantization import StaticQuantization

pytestmark = pytest.mark.seconds


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(autouse=True, scope="module")
def quick_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each task begins with the export of the same network."""
    with exported_once(tmp_path_factory.mktemp("exports")):
        yield


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """To tell four corners apart, with a teacher that gives its answer in a mapping."""

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wide(8)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(x)}

    module = Named()
    known, judged = corners(160, 1), corners(60, 2)
    work = tmp_path / "a"
    work.mkdir()
    training, judging = (ArrayDataset({"x": x}, labels) for x, labels in (known, judged))
    return task_for(
        Given.read(module, training, judging, None, None, work),
        module,
        Recipe(seconds=4, epochs=1, batch=32, rate=1e-2),
        work,
        calibration=50,
    )


def never(share: float, score: float) -> None:
    return None


@pytest.mark.slow
def test_a_student_is_trained_for_int8_as_it_is_deployed(task: Task) -> None:
    """Of a network with branches for training alone: they are merged before int8 is taught."""
    alone = StudentNetwork("mobileone-s0-s8", 1.0, None, 4, (1, 16, 16), by_labels=True)
    first = train_way(task, alone, never)
    assert [spec.name for spec in first.model.outputs] == ["output"]
    taught = train_way(task, QuantizationAware(first), never)
    counts = [op_counts(onnx.load(one.model.path)) for one in (first, taught)]
    assert counts[0]["Conv"] == counts[1]["Conv"]
    assert counts[1]["QuantizeLinear"] > 0
    assert taught.training.steps > 0
    score = int8_score(task, first)
    assert score is not None
    assert 0 < score <= 1


def test_what_learns_from_labels_alone_is_still_compared_with_the_model(task: Task) -> None:
    """Agreement with oneself would always be whole."""
    judged_by = dataclasses.replace(task, metric=Agreement())
    short = dataclasses.replace(judged_by, recipe=dataclasses.replace(task.recipe, rate=1e-6))
    alone = StudentNetwork("resnet10-s8", 0.25, None, 4, (1, 16, 16), by_labels=True)
    student = train_way(short, alone, never)
    assert student.training.score < 0.9
    score = int8_score(short, student)
    assert score is not None
    assert 0 <= score <= 1


def test_a_model_that_only_int8_brings_within_the_budget_is_itself_trained_for_it(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = Prospect(
        *("int8 (ONNX Runtime, per channel, minmax), ONNX Runtime", "int8", 1e5, 1e5, 1e5, 1000),
        OnnxRuntime(),
        (StaticQuantization(),),
    )
    write_json(task.folder / "original.json", {"found": to_record(quantized), "notes": []})
    monkeypatch.setattr(candidates, "int8_score", lambda task, lighter: 0.0)
    (lighter,) = candidates.trained(task, ["pruned"], 1, ())
    assert lighter.way.name == "the model, trained for int8"
    assert lighter.training.steps > 0
    assert op_counts(onnx.load(lighter.model.path))["QuantizeLinear"] > 0
    monkeypatch.setattr(candidates, "int8_score", lambda task, lighter: 1.0)
    (task.folder / "int8-the-model.json").unlink()
    with pytest.raises(InputError, match="let optimize certify that, or give a smaller budget"):
        candidates.trained(task, ["pruned"], 1, ())
