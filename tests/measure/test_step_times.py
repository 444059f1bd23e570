"""Profiles taken in a process of their own."""

from pathlib import Path

import pytest
from tests.support.desk import Desk

from hasten.engines.base import Engine
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.reference import Reference
from hasten.errors import CandidateError
from hasten.inputs.data.spool import Spool
from hasten.inputs.models.onnx import load
from hasten.measure.workbench import Bench
from hasten.passes.dynamic_quantization import DynamicQuantization


@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), OpenVino(threads=1)])
def test_a_profile_has_the_steps_that_the_engine_tells_of(
    desk: Desk, spool: Spool, engine: Engine
) -> None:
    artifact = desk.open(engine).artifact
    layers = desk.bench.profile(engine, artifact, spool, requests=25)  # more than there are samples
    here = engine.profile(artifact, desk.bench.target, [spool.inputs([0])])
    products = [layer for layer in layers if layer.kind == "arithmetic"]
    assert [layer.operator for layer in products] == [
        layer.operator for layer in here if layer.kind == "arithmetic"
    ]
    assert {len(layer.latency_ns) for layer in layers} == {25}


def test_nodes_are_called_as_in_the_original(desk: Desk, spool: Spool, tmp_path: Path) -> None:
    desk.bench.original = desk.model.path
    (tmp_path / "int8").mkdir()
    (tmp_path / "built").mkdir()
    int8 = DynamicQuantization()(desk.model, spool, tmp_path / "int8")
    artifact = OnnxRuntime().build(int8, desk.bench.target, tmp_path / "built")
    layers = desk.bench.profile(OnnxRuntime(), artifact, spool, requests=2)
    products = [layer for layer in layers if layer.kind == "arithmetic"]
    assert [(layer.precision, layer.sources) for layer in products] == [("i8", ("logits",))]


@pytest.mark.parametrize("engine", [Null(), Reference()])
def test_an_engine_without_a_profiler_says_so(desk: Desk, spool: Spool, engine: Engine) -> None:
    artifact = desk.open(engine).artifact
    with pytest.raises(CandidateError) as caught:
        desk.bench.profile(engine, artifact, spool)
    name = "null engine" if engine == Null() else "ONNX reference"
    assert str(caught.value) == f"{name} has no profiler"


def test_a_profile_that_takes_too_long_is_ended_and_leaves_nothing(
    desk: Desk, spool: Spool
) -> None:
    artifact = desk.open(OnnxRuntime(threads=1)).artifact
    desk.bench.limit_s = 0.0
    before = sorted(desk.bench.folder.iterdir())
    with pytest.raises(CandidateError) as caught:
        desk.bench.profile(OnnxRuntime(threads=1), artifact, spool)
    assert str(caught.value) == "hung: no answer within 0 s, killed"
    assert sorted(desk.bench.folder.iterdir()) == before


def test_building_ends_with_its_process(desk: Desk, tmp_path: Path) -> None:
    bench = Bench(tmp_path, desk.bench.target)
    artifact = bench.build(OnnxRuntime(), load(desk.model.path), tmp_path / "elsewhere")
    assert artifact.path == tmp_path / "elsewhere" / desk.model.path.name
    assert artifact.path.read_bytes() == desk.model.path.read_bytes()
