from pathlib import Path

import numpy as np

from hasten.core.target import Target
from hasten.engines.null import Null
from hasten.inputs.models.onnx import load
from hasten.testing import models
from hasten.testing.engine_tests import EngineTests, request_for


class TestNull(EngineTests):
    engine = Null()
    reads_models = False


def test_zeros_are_never_called_exact() -> None:
    assert not Null().exact


def test_every_answer_is_zero(tmp_path: Path) -> None:
    model, target = load(models.two_inputs(tmp_path)), Target.host()
    (tmp_path / "built").mkdir()
    with Null().open(Null().build(model, target, tmp_path / "built"), target) as session:
        outputs = session.run(request_for(model.inputs, batch=5))
    assert outputs["score"].shape == (5, 8)
    assert outputs["same_ids"].dtype == np.int64
    assert not any(array.any() for array in outputs.values())
