"""Files whose classifiers give one mapping for each row, as skl2onnx and CatBoost write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import hasten
from hasten.bundle.folder import read as read_manifest
from hasten.core.tensors import TensorSpec
from hasten.inputs.models.onnx import load
from hasten.inputs.models.source import load_model
from hasten.inputs.models.zip_maps import note_of_maps, without_maps

TEXT = """
<ir_version: 8, opset_import: ["" : 13, "ai.onnx.ml" : 2]>
scored (float[n, 2] x) => (int64[n] label, float[n, 3] scores)
<float[2, 3] w = {1, -1, 0, 0, 2, -2}>
{
  made = MatMul (x, w)
  scores = Softmax (made)
  label = ArgMax <axis: int = 1, keepdims: int = 0> (made)
}
"""
CLASSES = ["bad", "fair", "good"]


def written(path: Path) -> Path:
    """Write a classifier with a ZipMap."""
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.node.append(
        helper.make_node(
            "ZipMap", ["scores"], ["mapped"], domain="ai.onnx.ml", classlabels_strings=CLASSES
        )
    )
    del proto.graph.output[1]
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    proto.graph.output.append(
        helper.make_value_info("mapped", helper.make_sequence_type_proto(kind))
    )
    onnx.save(proto, path)
    return path


def test_a_mapping_for_each_row_becomes_a_tensor_with_its_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx")
    model = load_model(str(path), None, tmp_path)
    assert model.path == tmp_path / "tensors" / "model.onnx"
    assert model.outputs[1] == TensorSpec("mapped", "float32", ("?", 3))
    x = np.random.default_rng(0).standard_normal((4, 2), np.float32)
    label, mapped = onnxruntime.InferenceSession(path).run(None, {"x": x})
    mine = onnxruntime.InferenceSession(model.path).run(None, {"x": x})
    assert (mine[0] == label).all()
    assert [dict(zip(CLASSES, row, strict=True)) for row in mine[1].tolist()] == mapped
    onnx.checker.check_model(onnx.load(model.path))


def test_classes_that_are_numbers_come_in_their_order() -> None:
    proto = onnx.load_from_string(onnx.parser.parse_model(TEXT).SerializeToString())
    proto.graph.node.append(
        helper.make_node(
            "ZipMap", ["scores"], ["mapped"], domain="ai.onnx.ml", classlabels_int64s=[2, 0, 1]
        )
    )
    proto.graph.output.append(helper.make_tensor_value_info("mapped", TensorProto.FLOAT, None))
    assert without_maps(proto) == {"mapped": ("0", "1", "2")}
    x = np.random.default_rng(0).standard_normal((4, 2), np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    _, scores, mapped = session.run(None, {"x": x})
    np.testing.assert_array_equal(mapped, scores[:, [1, 2, 0]])


def test_a_file_of_classical_operators_alone_gets_an_operator_set_for_the_copy() -> None:
    proto = onnx.load_from_string(onnx.parser.parse_model(TEXT).SerializeToString())
    del proto.graph.node[:]
    proto.graph.node.append(
        helper.make_node(
            "ZipMap", ["x"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[3, 5]
        )
    )
    proto.opset_import[0].domain = "ai.onnx.ml"
    del proto.opset_import[1]
    assert without_maps(proto) == {"scores": ("3", "5")}
    assert [(one.domain, one.version) for one in proto.opset_import][1:] == [("", 9)]


def test_mappings_that_other_nodes_read_stay() -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.node.append(
        helper.make_node("ZipMap", ["scores"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[1])
    )
    proto.graph.node.append(helper.make_node("SequenceLength", ["map"], ["count"]))
    before = proto.SerializeToString()
    assert without_maps(proto) == {}
    assert proto.SerializeToString() == before


def test_mappings_that_a_branch_reads_stay() -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.node.append(
        helper.make_node("ZipMap", ["scores"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[1])
    )
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    branch = helper.make_graph(
        [helper.make_node("SequenceLength", ["map"], ["count"])], "branch", [], [count]
    )
    proto.graph.node.append(
        helper.make_node("If", ["known"], ["found"], then_branch=branch, else_branch=branch)
    )
    before = proto.SerializeToString()
    assert without_maps(proto) == {}
    assert proto.SerializeToString() == before


def test_an_operator_of_the_users_own_called_zip_map_stays(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 13, "mine" : 1]>
        negated (float[n, 2] x) => (float[n, 2] y) { y = mine.ZipMap (x) }
        <domain: "mine", opset_import: ["" : 13]>
        ZipMap (given) => (made) { made = Neg (given) }
        """
    )
    onnx.save(proto, tmp_path / "model.onnx")
    model = load_model(str(tmp_path / "model.onnx"), None, tmp_path)
    x = np.array([[1, -2]], np.float32)
    assert onnxruntime.InferenceSession(model.path).run(None, {"x": x})[0].tolist() == [[-1, 2]]


def test_a_file_is_read_again_into_the_same_folder_when_its_weights_lie_beside_it(
    tmp_path: Path,
) -> None:
    folder, workdir = tmp_path / "given", tmp_path / "work"
    folder.mkdir()
    workdir.mkdir()
    proto = onnx.load(written(tmp_path / "model.onnx"))
    weights = np.array([[1, -1, 0], [0, 2, -2]], np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    path = folder / "model.onnx"
    for factor in (1, 1, 2):  # as a resumed run reads it, and one after an export
        proto.graph.initializer[0].raw_data = (factor * weights).tobytes()
        (folder / "weights.bin").unlink(missing_ok=True)
        onnx.save(
            onnx.load_from_string(proto.SerializeToString()),
            path,
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        load_model(str(path), None, workdir)
        model = load_model(str(path), None, workdir)
        tensor = onnx.load(model.path).graph.initializer[0]
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), factor * weights)


def test_a_note_names_the_classes_in_the_order_of_the_columns() -> None:
    assert note_of_maps({"mapped": ("bad", "fair")}) == [
        "The file gives mapped as one mapping for each row (ZipMap). hasten makes a tensor of it with 2 columns, "
        "one for each class: bad, fair."
    ]


@pytest.mark.seconds
def test_a_run_takes_such_a_file_and_says_what_it_made(tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((300, 2), np.float32)
    labels = onnxruntime.InferenceSession(path).run(["label"], {"x": x})[0]
    result = hasten.optimize(
        path, (x, labels), effort="quick", time_limit_s=10, out=tmp_path / "out.hasten"
    )
    assert read_manifest(tmp_path / "out.hasten").source_sha256 == load(path).sha256
    assert any("one for each class: bad, fair, good" in note for note in result.notes)
    with hasten.load(tmp_path / "out.hasten") as loaded:
        answer = loaded({"x": x[:5]})
    assert answer["mapped"].shape == (5, 3)
    assert (answer["mapped"].argmax(axis=1) == labels[:5]).all()
