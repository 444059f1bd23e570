"""The benchmark runs, untimed: what is said without a GPU, and its table over what isn't on one."""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.inputs.data.arrays import ArrayDataset
from hasten.measure.latency import Pace
from hasten.measure.race import AGAIN, BASELINE

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
QUICK = Pace(warmup_ns=1, block_ns=1, at_least=1, at_most=2, limit_s=60)


@pytest.mark.skipif(find_target("cuda").kind == "attached", reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    assert capsys.readouterr().out == "no NVIDIA GPU here: nothing to time\n"


def test_every_version_stands_beside_torch_compile(
    monkeypatch: pytest.MonkeyPatch, sm80: Target, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu: Any = importlib.import_module("gpu")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(1568, 4)
    )
    x = np.random.default_rng(0).standard_normal((20, 3, 16, 16)).astype(np.float32)
    data = ArrayDataset({"input": x})
    (tmp_path / "exported").mkdir()
    (tmp_path / "work").mkdir()
    model = gpu.with_program(module.eval(), data, tmp_path / "exported")
    found = gpu.compare(model, data, sm80, tmp_path / "work", QUICK, 2)
    assert found.failed == {}
    names = [name for name in found.properties if name not in (BASELINE, AGAIN)]
    assert names == [
        "original, TensorRT for RTX",
        "f16 weights, TensorRT for RTX",
        "int8 (TensorRT, rest in f16), TensorRT for RTX",
        "int8 (TensorRT, rounded by layer, rest in f16), TensorRT for RTX",
        "int8 (TensorRT, rest in f32), TensorRT for RTX",
    ]
    table = gpu.rows(found)
    assert [row.split(" | ")[0] for row in table[2:]] == ["| torch.compile again"] + [
        f"| {name}" for name in names
    ]
    assert {row.count("|") for row in table} == {6}
