"""Boosted trees as comparisons and choices: answers as ONNX Runtime gives them, but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.support import tasks

from hasten.core.devices import find_target
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.engines.fpga import program, toolchain
from hasten.engines.fpga.engine import Fpga
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.passes.fixed_point import FixedPoint

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")
skl2onnx = pytest.importorskip("skl2onnx", reason="needs skl2onnx, which writes trees as ONNX")


def written(estimator: Any, x: Array, path: Path) -> Model:
    """Write a scikit-learn model as ONNX, batch 1."""
    types = [("x", skl2onnx.common.data_types.FloatTensorType([1, x.shape[1]]))]
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "classes_") else None
    onnx.save(
        skl2onnx.convert_sklearn(estimator, "m", types, target_opset=17, options=options), path
    )
    return load(path).settled_by({"x": x[0]})


def compared(
    estimator: Any, x: Array, held_out: Array, folder: Path, bits: int = 16
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return ONNX Runtime's answers to what is held out, and the program's, and its cost."""
    model = written(estimator, x, folder / "model.onnx")
    (folder / "fixed").mkdir()
    made = FixedPoint(bits, bits, bits)(model, ArrayDataset({"x": x}), folder / "fixed")
    loaded = program.load(made.path)
    found = loaded.ports.decode(loaded.answers(loaded.ports.encode({"x": held_out})), made.outputs)
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(None, {"x": row[None]}) for row in held_out]
    wanted = {n: np.concatenate([row[i] for row in rows]) for i, n in enumerate(names)}
    return wanted, found


def test_boosted_trees_of_two_classes_answer_alike(tmp_path: Path) -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    (x, y), (held_out, _) = tasks.cancer()
    forest = GradientBoostingClassifier(n_estimators=20, max_depth=3, random_state=0).fit(x, y)
    wanted, found = compared(forest, x, held_out, tmp_path)
    assert (wanted["label"] == found["label"]).mean() > 0.99
    close = np.abs(wanted["probabilities"] - found["probabilities"]).max(axis=1) < 1e-2
    assert close.mean() > 0.98  # a feature on the other side of a threshold changes a tree's answer


def test_a_random_forest_of_ten_classes_answers_alike(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    (x, y), (held_out, _) = tasks.digits()
    x, held_out = x.reshape(len(x), -1), held_out.reshape(len(held_out), -1)
    forest = RandomForestClassifier(n_estimators=5, max_depth=5, random_state=0).fit(x, y)
    wanted, found = compared(forest, x, held_out, tmp_path, bits=12)
    assert (wanted["label"] == found["label"]).mean() > 0.98


def test_a_regression_by_trees_answers_alike(tmp_path: Path) -> None:
    from sklearn.ensemble import GradientBoostingRegressor

    (x, y), (held_out, _) = tasks.cancer()
    forest = GradientBoostingRegressor(n_estimators=20, max_depth=3, random_state=0).fit(x, y)
    wanted, found = compared(forest, x, held_out, tmp_path)
    (name,) = wanted
    assert np.median(np.abs(wanted[name] - found[name])) < 1e-3


@pytest.mark.skipif(toolchain.find("verilator") is None, reason="needs Debian's verilator")
def test_rtl_of_trees_that_read_few_features_answers_as_its_program_does(tmp_path: Path) -> None:
    from sklearn.ensemble import GradientBoostingClassifier

    (x, y), (held_out, _) = tasks.cancer()
    forest = GradientBoostingClassifier(n_estimators=4, max_depth=2, random_state=0).fit(x, y)
    model = written(forest, x, tmp_path / "model.onnx")
    for name in ("fixed", "rtl"):
        (tmp_path / name).mkdir()
    fixed = FixedPoint(5, 5, 5)(model, ArrayDataset({"x": x}), tmp_path / "fixed")
    target = find_target("fpga:ecp5-25k")
    design = Fpga(2.0).build(fixed, target, tmp_path / "rtl")
    loaded = program.load(fixed.path)
    wanted = loaded.ports.decode(
        loaded.answers(loaded.ports.encode({"x": held_out})), fixed.outputs
    )
    with Fpga(2.0).open(design, target) as simulated:
        found = simulated.run({"x": held_out})
    assert len(np.unique(wanted["label"])) == 2
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
