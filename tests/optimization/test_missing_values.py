"""Data with missing values for an ONNX file of trees, as other exporters write it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.support.quick import quick_runs

import hasten
from hasten.errors import InputError
from hasten.inputs.pipeline.config import from_yaml
from hasten.testing import models


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a file with one split, for which a missing value counts as small."""
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["rows"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        nodes_treeids=[0] * 3,
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0] * 3,
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.0] * 3,
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[1, 0, 0],
        class_treeids=[0] * 4,
        class_nodeids=[1, 1, 2, 2],
        class_ids=[0, 1] * 2,
        class_weights=[0.75, 0.25, 0.125, 0.875],
        classlabels_int64s=[0, 1],
    )
    graph = helper.make_graph(
        [node],
        "tree",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "tree.onnx")
    return tmp_path / "tree.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3)).astype(np.float32)
    rows[::7, 0] = np.nan
    np.savez(tmp_path / "rows.npz", rows=rows, labels=(rows[:, 0] > 0).astype(np.int64))
    return tmp_path / "rows.npz"


def refused(model: Path, data: Path) -> str:
    with pytest.raises(InputError) as error:
        hasten.optimize(model, data, out=data.with_name("b.hasten"), engines=["onnxruntime"])
    return str(error.value)


def test_missing_values_for_trees_are_refused_with_what_lets_them_through(
    tree: Path, data: Path
) -> None:
    assert refused(tree, data) == (
        "input 'rows': sample 0 has NaN or Inf; repair it or leave it out; if NaN stands for a "
        "missing value, which this model may take, give a pipeline of the step row, which "
        'names the columns, with missing="nan"'
    )


def test_a_model_that_fills_missing_values_itself_is_told_what_lets_them_through(
    tmp_path: Path, data: Path
) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    filling (float[n, 3] rows) => (float[n, 3] y)
    <float[1, 3] means = {0.5, 0.25, 0.125}>
    { absent = IsNaN(rows)  y = Where(absent, means, rows) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "filling.onnx")
    assert refused(tmp_path / "filling.onnx", data).endswith(
        "leave it out; if NaN stands for a missing value, which this model may take, give a "
        'pipeline of the step row, which names the columns, with missing="nan"'
    )


def test_nan_for_any_other_model_is_refused_as_before(tmp_path: Path) -> None:
    x = np.full((400, 16), np.nan, np.float32)
    np.savez(tmp_path / "x.npz", x=x, labels=np.zeros(400, np.int64))
    assert refused(models.linear_classifier(tmp_path), tmp_path / "x.npz") == (
        "input 'x': sample 0 has NaN or Inf; repair it or leave it out"
    )


def test_a_pipeline_of_rows_lets_missing_values_through_from_the_run_to_the_bundle(
    tree: Path, data: Path
) -> None:
    stated = tree.with_name("rows.yaml")
    stated.write_text("before:\n  - row: {columns: [a, b, c], missing: nan}\n")
    bundle = data.with_name("b.hasten")
    with quick_runs(races=False):
        hasten.optimize(
            tree,
            data,
            out=bundle,
            engines=["onnxruntime"],
            passes=[],
            pipeline=from_yaml(stated),
        )
    with hasten.load(bundle) as model:
        answer = model(np.full((1, 3), np.nan, np.float32))
    assert answer["probabilities"].tolist() == [[0.75, 0.25]]
    assert hasten.certify(bundle, data).judgement.lost == 0
