"""NaN in requests of what a pass made: it is refused wherever rounding would make an ordinary number of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.models import Build

from hasten.core.cache_folder import CacheFolder
from hasten.core.model import Model
from hasten.core.records import file_digest
from hasten.engines.base import Engine
from hasten.engines.compile_cache import CompileCache
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime, OnnxRuntimeSettled
from hasten.errors import BeyondRange
from hasten.passes.base import Pass
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.litert_quantization import LitertQuantization
from hasten.passes.simplify import Simplify
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import host, samples_of

PRODUCTS = """
<ir_version: 10, opset_import: ["": 20]>
products (float[batch, 32] x) => (float[batch, 8] y)
<float[32, 32] w, float[32, 8] v>
{ p = MatMul (x, w)  r = Relu (p)  same = Identity (r)  y = MatMul (same, v) }
"""
REPLACED = """
<ir_version: 10, opset_import: ["": 20]>
replaced (float[batch, 32] x) => (float[batch, 8] y)
<float none = {0.5}, float[32, 8] v>
{ missing = IsNaN (x)  there = Where (missing, none, x)  y = MatMul (there, v) }
"""
ATTENTION = """
<ir_version: 10, opset_import: ["": 20]>
attention (float[batch, 32] x) => (float[batch, 8] y)
<float none = {0}, float[32, 32] w, float[32, 8] v>
{ p = MatMul (x, w)  s = Softmax (p)  masked = IsNaN (s)  there = Where (masked, none, s)  y = MatMul (there, v) }
"""
BOTH = [StaticQuantization(), DynamicQuantization()]


def request() -> dict[str, np.ndarray]:
    given = np.random.default_rng(0).standard_normal((2, 32), np.float32)
    given[1, 5] = np.nan
    return {"x": given}


def made(pass_: Pass, model: Model, folder: Path) -> Model:
    folder.mkdir()
    return pass_(model, samples_of(model), folder)


@pytest.mark.parametrize("engine", [OnnxRuntime(), OnnxRuntimeSettled()], ids=str)
@pytest.mark.parametrize("pass_", BOTH, ids=lambda one: type(one).__name__)
def test_int8_refuses_nan_that_it_would_hide(
    pass_: Pass, engine: Engine, build: Build, tmp_path: Path
) -> None:
    quantized = made(pass_, build(PRODUCTS, "products"), tmp_path / "made")
    (tmp_path / "built").mkdir()
    artifact = engine.build(quantized, host(), tmp_path / "built")
    cache = CompileCache(
        CacheFolder(tmp_path / "cache"), {artifact.path: file_digest(artifact.path)}
    )
    for _ in range(2):  # what the cache keeps refuses it too
        with engine.open_cached(artifact, host(), cache) as session:
            with pytest.raises(BeyondRange) as error:
                session.run(request())
            assert str(error.value) == (
                "In int8, ONNX Runtime makes ordinary numbers of NaN, and the input 'x' has one: replace it before the "
                "call, or use another engine"
            )
            assert np.isfinite(session.run({"x": request()["x"][:1]})["y"]).all()
    assert cache.found


def test_litert_refuses_nan_that_it_would_hide(build: Build, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ai_edge_quantizer")
    model = build(PRODUCTS, "products")
    (tmp_path / "float").mkdir()
    (tmp_path / "built").mkdir()
    with LiteRt().open(LiteRt().build(model, host(), tmp_path / "float"), host()) as session:
        assert np.isnan(session.run(request())["y"][1]).all()
    quantized = made(LitertQuantization(), model, tmp_path / "made")
    with LiteRt().open(LiteRt().build(quantized, host(), tmp_path / "built"), host()) as session:
        with pytest.raises(BeyondRange, match="In int8, LiteRT makes ordinary numbers of NaN"):
            session.run(request())


def test_a_model_that_replaces_nan_of_an_attention_doesnt_look_for_that_of_a_request(
    build: Build, tmp_path: Path
) -> None:
    quantized = made(StaticQuantization(), build(ATTENTION, "attention"), tmp_path / "made")
    (tmp_path / "built").mkdir()
    engine = OnnxRuntime()
    with engine.open(engine.build(quantized, host(), tmp_path / "built"), host()) as session:
        with pytest.raises(BeyondRange, match="has one: replace it before the call"):
            session.run(request())


@pytest.mark.parametrize("pass_", BOTH, ids=lambda one: type(one).__name__)
def test_a_model_that_replaces_nan_itself_may_have_it(
    pass_: Pass, build: Build, tmp_path: Path
) -> None:
    quantized = made(pass_, build(REPLACED, "replaced"), tmp_path / "made")
    (tmp_path / "built").mkdir()
    engine = OnnxRuntime()
    with engine.open(engine.build(quantized, host(), tmp_path / "built"), host()) as session:
        assert np.isfinite(session.run(request())["y"]).all()


def test_a_model_that_comes_in_int8_answers_nan_as_it_does(build: Build, tmp_path: Path) -> None:
    quantized = made(StaticQuantization(), build(PRODUCTS, "products"), tmp_path / "made")
    import onnx

    proto = onnx.load(quantized.path)
    del proto.metadata_props[:]  # as anybody's file is
    onnx.save(proto, tmp_path / "own.onnx")
    simpler = made(Simplify(), replace(quantized, path=tmp_path / "own.onnx"), tmp_path / "simpler")
    (tmp_path / "built").mkdir()
    engine = OnnxRuntime()
    with engine.open(engine.build(simpler, host(), tmp_path / "built"), host()) as session:
        assert np.isfinite(session.run(request())["y"]).all()
