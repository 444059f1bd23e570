import json
import platform
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="needs Core ML Tools: pip install 'hasten[edge]'")
pytest.importorskip("onnx2coreml", reason="needs onnx2coreml: pip install 'hasten[edge]'")

import coremltools as ct
from tests.devices.edge.edge_models import Digits, FixedShapesTests, device
from tests.support.models import Build, settled

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.coreml import engine as coreml
from hasten.engines.coreml.engine import CoreMl
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.onnx import load
from hasten.optimization.grid import grid
from hasten.testing import models
from hasten.testing.engine_tests import EVERY_MODEL, request_for
from hasten.testing.pass_tests import answers, error_between, samples_of

PHONE = device("coreml")


class TestCoreMl(FixedShapesTests):
    engine = CoreMl()

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_an_exact_engine_agrees_with_the_reference(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        if not self.engine.exact:
            pytest.skip(f"{self.engine} isn't exact")
        model = load(write(tmp_path, batch=1))
        super().test_an_exact_engine_agrees_with_the_reference(
            lambda folder: model.path, target, tmp_path
        )

    def test_the_artifact_stands_alone_in_its_folder(self, target: Target, tmp_path: Path) -> None:
        model = load(models.linear_classifier(tmp_path))
        artifact = self.built(model, target, tmp_path)
        model.path.unlink()
        names = [str(f.relative_to(tmp_path / "built")) for f in (artifact.path, *artifact.files)]
        package = "linear_classifier.mlpackage"
        assert names == [
            f"{package}/Manifest.json",
            f"{package}/Data/com.apple.CoreML/model.mlmodel",
            f"{package}/Data/com.apple.CoreML/weights/weight.bin",
        ]
        assert {f for f in (tmp_path / "built").rglob("*") if f.is_file()} == {
            artifact.path,
            *artifact.files,
        }
        moved = (tmp_path / "built" / package).rename(tmp_path / "winner")  # as a bundle has it
        artifact = replace(
            artifact,
            path=moved / artifact.path.name,
            files=tuple(moved / f.relative_to(artifact.path.parent) for f in artifact.files),
        )
        with self.engine.open(artifact, target) as session:
            assert session.run(request_for(session.inputs))["logits"].shape == (1, 4)


class TestCoreMlInHalfPrecision(TestCoreMl):
    engine = CoreMl("f16")

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        assert list(CoreMl.variants(target)) == [CoreMl(), CoreMl("f16"), CoreMl("f16", "int8")]


def build_in(folder: Path, engine: CoreMl, model: Model) -> Artifact:
    folder.mkdir()
    return engine.build(model, PHONE, folder)


def operations(artifact: Artifact) -> list[Any]:
    """Return a package's operations, by its specification."""
    model = ct.models.MLModel(str(artifact.path.parent), skip_model_load=True)
    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    return list(block.operations)


def made(artifact: Artifact) -> Counter[str]:
    """Count what a package computes, constants apart."""
    return Counter(op.type for op in operations(artifact) if op.type != "const")


def output_types(artifact: Artifact, kind: str) -> set[str]:
    """Return the element types that a package's operations of one kind give."""
    from coremltools.proto.MIL_pb2 import DataType

    return {
        DataType.Name(output.type.tensorType.dataType)
        for op in operations(artifact)
        if op.type == kind
        for output in op.outputs
    }


def test_a_package_holds_the_models_operations_in_its_precision(
    convnet: Model, tmp_path: Path
) -> None:
    exact = build_in(tmp_path / "a", CoreMl(), convnet)
    half = build_in(tmp_path / "b", CoreMl("f16"), convnet)
    products = {"conv": 2, "clip": 1, "add": 1, "relu": 1, "reduce_mean": 1, "linear": 1}
    assert {kind: made(exact)[kind] for kind in products} == products
    assert {kind: made(half)[kind] for kind in products} == products
    assert output_types(exact, "conv") == {"FLOAT32"}
    assert output_types(half, "conv") == {"FLOAT16"}
    assert half.size_bytes < exact.size_bytes


def test_ends_keep_the_models_own_types(tmp_path: Path) -> None:
    model = settled(load(models.two_inputs(tmp_path)))
    artifact = build_in(tmp_path / "a", CoreMl("f16"), model)
    with CoreMl("f16").open(artifact, PHONE) as session:
        outputs = session.run(request_for(session.inputs))
    assert {name: array.dtype.name for name, array in outputs.items()} == {
        "score": "float32",
        "same_ids": "int64",
    }


def test_half_precision_shows_in_the_answers(convnet: Model, tmp_path: Path) -> None:
    data = samples_of(convnet, count=8)
    exact = answers(convnet, data, tmp_path / "a")
    assert error_between(exact, answers(convnet, data, tmp_path / "b", CoreMl())) < 1e-5
    assert 1e-5 < error_between(exact, answers(convnet, data, tmp_path / "c", CoreMl("f16"))) < 0.01


def test_weights_too_small_for_int8_are_told(convnet: Model, tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "a", CoreMl("f16", "int8"), convnet)
    assert str(caught.value) == "nothing to store in int8: no weight has more than 2,048 elements"


def test_digits_are_still_read_from_packages(digits: Digits, tmp_path: Path) -> None:
    data = ArrayDataset({"x": digits.images})
    reads = {"float": answers(digits.model, data, tmp_path / "a", batch=64)["output"].argmax(1)}
    sizes = {}
    for engine in CoreMl.variants(PHONE):
        name = f"{engine.precision}, {engine.weights} weights"
        folder = tmp_path / name
        reads[name] = answers(digits.model, data, folder, engine)["output"].argmax(1)
        sizes[name] = sum(f.stat().st_size for f in folder.rglob("weight.bin"))
    right = {name: float(np.mean(read == digits.labels)) for name, read in reads.items()}
    assert np.all(reads["float"] == reads["f32, float weights"])
    assert min(right.values()) > right["float"] - 0.01
    assert sizes["f16, int8 weights"] < 0.6 * sizes["f16, float weights"]
    assert sizes["f16, float weights"] < 0.6 * sizes["f32, float weights"]


def test_int8_weights_are_multiplied_out(digits: Digits, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "a", CoreMl("f16", "int8"), digits.model)
    assert made(artifact)["constexpr_affine_dequantize"] == 2
    assert output_types(artifact, "constexpr_affine_dequantize") == {"FLOAT16"}


def test_an_operator_that_cannot_be_converted_is_named(build: Build, tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    odd (float[batch, 8] x) => (float[batch, 8] y)
    { [first] r = Relu (x)  [culprit] y = Acosh (r) }
    """
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "a", CoreMl(), build(text))
    assert str(caught.value) == (
        "Core ML's converter can't take the operator Acosh (node 'culprit')"
    )


def test_a_conversion_that_changes_the_answers_is_refused(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx2coreml

    convert, other = onnx2coreml.convert, models.small_cnn(tmp_path)

    def wrong(path: Path, **settings: Any) -> Any:
        import onnx

        proto = onnx.load(path)
        weights = next(t for t in proto.graph.initializer if t.name == "w3")
        array = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
        weights.CopyFrom(onnx.numpy_helper.from_array(array, "w3"))
        return convert(proto, **settings)

    assert other.exists()
    monkeypatch.setattr(onnx2coreml, "convert", wrong)
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "a", CoreMl("f16"), convnet)
    assert str(caught.value) == (
        "Core ML's converter changed the model: 'y' differs from ONNX Runtime's answer"
    )


def test_an_operator_that_cannot_be_computed_here_is_named(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.engines.coreml import program as coreml_program

    known = {k: v for k, v in coreml_program._OPERATORS.items() if k != "clip"}
    monkeypatch.setattr(coreml_program, "_OPERATORS", known)
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "a", CoreMl(), convnet)
    assert str(caught.value) == (
        "Core ML's operator 'clip' (output 'r1') can't be computed on a host without Core ML"
    )


def test_an_open_shape_is_refused(tmp_path: Path) -> None:
    model = load(models.linear_classifier(tmp_path))
    with pytest.raises(CandidateError) as caught:
        build_in(tmp_path / "a", CoreMl(), model)
    assert str(caught.value) == (
        "Core ML's converter takes only fixed shapes: got x: float32[batch, 16]; give a sample "
        "of data to fix it"
    )


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML is here")
def test_core_ml_is_not_pretended_to_where_there_is_none(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "a", CoreMl(), convnet)
    with CoreMl().open(artifact, PHONE) as session:
        assert session.properties() == {"answered_by": "torch"}
    here = replace(PHONE, kind="attached", system="Linux 6.1.0 x86_64")
    with pytest.raises(CandidateError) as caught:
        with CoreMl().open(artifact, here):
            pass
    assert str(caught.value) == "Core ML runs only on macOS; this is Linux 6.1.0 x86_64"


def test_core_ml_predicts_where_it_is(convnet: Model, tmp_path: Path) -> None:
    if platform.system() != "Darwin":
        pytest.skip("Core ML predicts on macOS only")
    data = samples_of(convnet, count=8)
    exact = answers(convnet, data, tmp_path / "a")
    assert error_between(exact, answers(convnet, data, tmp_path / "b", CoreMl("f16"))) < 0.01


def test_a_request_of_other_sizes_is_one_line(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "a", CoreMl(), convnet)
    with CoreMl().open(artifact, PHONE) as session:
        with pytest.raises(CandidateError) as caught:
            session.run({"x": np.zeros((2, 3, 16, 16), np.float32)})
    assert str(caught.value) == "Core ML takes x: float32[1, 3, 16, 16]; got [2, 3, 16, 16]"
    with pytest.raises(CandidateError, match=r"^the session is closed: open the artifact again$"):
        session.run(request_for(artifact.inputs))


def test_a_missing_converter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2coreml", None)
    with pytest.raises(InputError) as caught:
        CoreMl.version()
    assert str(caught.value) == (
        "Core ML Tools aren't installed (import of onnx2coreml halted; None in sys.modules): "
        "pip install 'hasten[edge]'"
    )


def test_a_package_out_of_a_bundle_is_opened_under_the_suffix_that_core_ml_knows(
    convnet: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = build_in(tmp_path / "a", CoreMl(), convnet)
    moved = artifact.path.parent.rename(tmp_path / "winner")
    files = tuple(moved / file.relative_to(artifact.path.parent) for file in artifact.files)
    opened: list[Path] = []
    monkeypatch.setattr(coreml, "_interpreter", opened.append)
    bundled = replace(artifact, path=moved / "Manifest.json", files=files)
    with CoreMl().open(bundled, PHONE):
        assert opened[-1].suffix == ".mlpackage"
        assert (opened[-1] / "Data/com.apple.CoreML/model.mlmodel").exists()
    assert not opened[-1].exists()


def test_a_package_without_weights_is_opened(tmp_path: Path) -> None:
    """Core ML Tools state an empty folder for them."""
    path = models.write(
        tmp_path / "relu.onnx", "relu (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }", {}
    )
    artifact = build_in(tmp_path / "a", CoreMl(), settled(load(path)))
    moved = artifact.path.parent.rename(tmp_path / "winner")
    bundled = replace(
        artifact,
        path=moved / "Manifest.json",
        files=tuple(moved / file.relative_to(artifact.path.parent) for file in artifact.files),
    )
    with CoreMl().open(bundled, PHONE) as session:
        assert session.run({"x": np.array([[-1, 0, 1, 2]], np.float32)})["y"].tolist() == [
            [0, 0, 1, 2]
        ]


@pytest.mark.parametrize(
    "path", ["../../other.mlpackage/Data/com.apple.CoreML/weights", "/etc/passwd", "a\0b"]
)
def test_a_package_that_names_files_outside_itself_is_refused(
    convnet: Model, tmp_path: Path, path: str
) -> None:
    artifact = build_in(tmp_path / "a", CoreMl(), convnet)
    manifest = json.loads(artifact.path.read_text())
    for item in manifest["itemInfoEntries"].values():
        item["path"] = path
    artifact.path.write_text(json.dumps(manifest))
    with pytest.raises(CandidateError) as caught, CoreMl().open(artifact, PHONE):
        pass
    assert str(caught.value) == (
        f"Manifest.json of the Core ML package names {path!r}, which isn't within it"
    )


def test_only_the_size_is_told(convnet: Model, tmp_path: Path) -> None:
    artifact = build_in(tmp_path / "a", CoreMl(), convnet)
    estimate = CoreMl().estimate(artifact, PHONE, tmp_path)
    assert (estimate.source, estimate.rank) == ("none", None)
    assert estimate.figures == {"package_size_bytes": artifact.size_bytes}


def test_no_quantized_onnx_is_offered(convnet: Model) -> None:
    found = grid(convnet, PHONE, engine_names=("coreml",))
    assert {type(step).__name__ for candidate in found for step in candidate.passes} == {"Simplify"}
