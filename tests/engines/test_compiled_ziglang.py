"""The compiler of the package ziglang makes the same bytes, where there is no other compiler."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.engines import test_compiled_trees as trees
from tests.engines.test_compiled_bytes import ENDS, ODD, SHAPES, Made
from tests.support import recurrent
from tests.support.plans import PROCESSORS, WITH_AMX, planned
from tests.support.quantized import quantized

from hasten.core.c_compiler import VARIABLE, Compiler
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.compiled import source
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.source import write
from hasten.inputs.models.onnx import load
from hasten.testing import models

pytestmark = pytest.mark.slow
USUAL_PATH = os.environ.get("PATH", "")


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    pytest.importorskip("ziglang", reason="needs the extra compiler")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    found = Compiler.find()
    assert found.command[-2:] == ("ziglang", "cc")
    assert found.version.startswith("clang")
    return found


def mlp(folder: Path) -> Path:
    text = """
        mlp (float[batch, 30] x) => (float[batch, 3] classes) {
            a = Gemm(x, w1, b1)
            b = Relu(a)
            c = Gemm(b, w2, b2)
            d = Tanh(c)
            e = Gemm(d, w3, b3)
            classes = Softmax(e)
        }"""
    shapes = {"w1": (30, 64), "b1": (64,), "w2": (64, 32), "b2": (32,), "w3": (32, 3), "b3": (3,)}
    return models.write(folder / "mlp.onnx", text, shapes)


def forest(folder: Path) -> Path:
    return trees.written(folder / "forest.onnx", "float32", *trees.many_kinds("float32"))


def convolution(folder: Path) -> Path:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 6, 9, 7] x) => (float[n, m, o, p] c) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu (a)
            c = Conv <strides = [2, 2], group = 8> (r, d)
        }"""
    model = quantized(text, {"w": (8, 6, 3, 3), "b": (8,), "d": (8, 1, 3, 3)})
    onnx.save(model, folder / "convolution.onnx")
    return folder / "convolution.onnx"


# Sums of whole numbers, and a forest's, have one order and one way to round.
@pytest.mark.parametrize(
    ("write_model", "equal"),
    [(mlp, False), (forest, True), (recurrent.gru, False), (convolution, True)],
)
def test_models_answer_as_by_the_systems_compiler(
    write_model: Callable[[Path], Path],
    equal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "built").mkdir()
    model, host = load(write_model(tmp_path)), Target.host()
    sample = {
        spec.name: np.zeros([int(size) for size in spec.shape[1:]], spec.dtype)
        for spec in model.inputs
    }
    artifact = CompiledC().build(model.settled_by(sample), host, tmp_path / "built")
    rng, rows = np.random.default_rng(0), 1 if write_model is convolution else 7
    request = {
        name: rng.standard_normal((rows, *array.shape)).astype(array.dtype)
        for name, array in sample.items()
    }

    def answers(kind: str) -> dict[str, Array]:
        with CompiledC().open(artifact, host) as session:
            assert session.properties()["compiler"].startswith(kind)
            return session.run(request)

    made = answers("clang")
    monkeypatch.setenv("PATH", USUAL_PATH)
    if "ziglang" in Compiler.find().command:
        pytest.skip("no compiler of the system to compare with")
    usual = answers(Compiler.find().version)
    for name, array in usual.items():
        if equal:
            np.testing.assert_array_equal(made[name], array)
        else:
            np.testing.assert_allclose(made[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["widest", "sse2", "portable"])
def test_operations_of_bytes_equal_integers(name: str) -> None:
    made = Made(2)
    ends = itertools.cycle(ENDS)
    made.operations = [made.conv(next(ends), **shape) for shape in [*SHAPES, *ODD]]
    target, spelled = PROCESSORS[name]
    made.check(isa=target.isa, spelled=spelled)


def test_threads_and_rows_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    made = Made(3)
    made.operations = [made.conv("residual", **shape) for shape in (*SHAPES[:6], *ODD[:3])]
    made.check(rows=3, threads=3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize(
    ("march", "isa"),
    [
        ("sapphirerapids", " ".join(WITH_AMX.isa)),
        ("icelake_server", "avx2 fma avx512f avx512bw avx512vbmi avx512_vnni"),
        ("cascadelake", "avx2 fma avx512f avx512bw avx512_vnni"),
        ("skylake_avx512", "avx2 fma avx512f avx512bw"),
        ("alderlake", "avx2 fma avx_vnni"),
    ],
)
def test_c_for_a_processor_that_isnt_here_compiles(
    compiler: Compiler, march: str, isa: str, tmp_path: Path
) -> None:
    made = Made(1)
    usual = {"kernel": (3, 3), "pads": (1, 1, 1, 1), "size": (3, 5)}
    made.operations = [
        made.conv("all", channels=(channels, channels), groups=channels, **usual)
        for channels in (144, 24)
    ]
    made.operations.append(made.conv("all", channels=(64, 48), **usual))
    plan, weights = planned(made.operations, made.constants, made.given, made.made)
    target = replace(Target.host(), isa=tuple(isa.split()))
    (tmp_path / "model.c").write_text(write(plan, weights, target).text)
    flags = [f"-march={march}" if flag == "-march=native" else flag for flag in compiler.flags]
    command = [*compiler.command, *flags, "-o", "model.so", "model.c"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
