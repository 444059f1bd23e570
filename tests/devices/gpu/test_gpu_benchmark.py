"""The benchmark runs over this host in a GPU's place, untimed; each cell and each runtime stands alone."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.measure.candidate import Single
from hasten.measure.race import AGAIN, BASELINE

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def cells(gpu: Any) -> Any:
    """The module of its cells."""
    return importlib.import_module("gpu_cells")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")


@pytest.mark.skipif(find_target("cuda").kind == "attached", reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    assert capsys.readouterr().out == "no NVIDIA GPU here: nothing to time\n"


def test_a_model_that_can_not_be_had_is_a_line_of_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch, "no_such_model", "--device", "host", "--out", str(tmp_path / "out"))
    told = (tmp_path / "out" / "table.md").read_text()
    assert told.startswith("### no_such_model\n\nnot measured: ")
    assert told in capsys.readouterr().out


def test_every_model_of_the_benchmark_is_known(gpu: Any) -> None:
    pytest.importorskip("PIL")
    models: Any = importlib.import_module("models")
    assert set(gpu.SUBJECTS) <= set(models.MODELS)


def test_a_cell_holds_every_runtime_and_what_hasten_chose(cells: Any) -> None:
    chosen = Single((), TorchCuda("graph"))
    found = cells.entrants(chosen)
    assert found[BASELINE] == found[AGAIN] == Single((), TorchCuda())
    assert list(found)[2:] == [
        "torch eager",
        "torch eager, f16",
        "torch.compile, f16",
        "ONNX Runtime CUDA",
        "ONNX Runtime CUDA, f16",
        "TensorRT",
        "TensorRT, f16",
        "TensorRT for RTX",
        "TensorRT for RTX, f16",
        "hasten",
    ]
    assert found["hasten"] == chosen
    assert "hasten" not in cells.entrants(None)


def tiny() -> tuple[Any, ArrayDataset]:
    """Return a small network with data."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 4))
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    return torch.nn.Sequential(*layers).eval(), ArrayDataset({"input": x})


def measured(gpu: Any, target: Target, folder: Path, choice: Any) -> list[str]:
    module, data = tiny()
    found: list[str] = gpu.measure(
        "tiny", module, data, [2], target, folder, pace=gpu.UNTIMED, count=2, choice=choice
    )
    return found


def cells_of(told: list[str]) -> list[list[str]]:
    """Return the cells of a table's rows, without its head."""
    rows = [row for row in told if row.startswith("|")][2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_a_cell_is_run_once_and_a_runtime_that_fails_is_a_line(
    gpu: Any, cells: Any, monkeypatch: pytest.MonkeyPatch, sm80: Target, tmp_path: Path
) -> None:
    few = {
        BASELINE: Single((), TorchCuda()),
        AGAIN: Single((), TorchCuda()),
        "torch eager, f16": Single((), TorchCuda("eager", "f16")),
        "TensorRT": Single((), Tensorrt()),
    }
    monkeypatch.setattr(cells, "entrants", lambda chosen: {**few, "hasten": chosen})
    chosen = gpu.Chosen(Single((), TorchCuda("graph")), "PyTorch, CUDA graph", "certified", (1,))
    told = measured(gpu, sm80, tmp_path / "out", lambda folder: chosen)
    assert told[0] == "### tiny, batches of 2"
    rows = {row[0]: row[1:] for row in cells_of(told)}
    assert list(rows) == [
        "torch.compile",
        "torch.compile again",
        "torch eager, f16",
        "hasten",
        "TensorRT",
    ]
    assert rows["torch.compile"] == [*["untimed"] * 4, "0.0e+00", ""]
    assert 0 < float(rows["torch eager, f16"][4]) < 0.01
    assert rows["hasten"][5] == "PyTorch, CUDA graph; certified, in batches of 1"
    assert rows["TensorRT"][:5] == ["-"] * 5
    assert "isn't" in rows["TensorRT"][5]

    def never(*arguments: Any) -> None:
        raise AssertionError("a cell that is done ran again")

    monkeypatch.setattr(gpu, "cell", never)
    assert measured(gpu, sm80, tmp_path / "out", lambda folder: chosen) == told


def test_without_a_choice_and_without_torch_compile_the_rest_is_compared(
    gpu: Any, cells: Any, monkeypatch: pytest.MonkeyPatch, sm80: Target, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra gpu")
    few = {name: Single((), Tensorrt()) for name in (BASELINE, AGAIN)}
    few["rtx"] = Single((), TensorrtRtx())
    monkeypatch.setattr(cells, "entrants", lambda chosen: few)

    def nothing(folder: Path) -> Any:
        raise CandidateError("no engine to try")

    rows = cells_of(measured(gpu, sm80, tmp_path / "out", nothing))
    assert [row[0] for row in rows] == [
        "rtx",
        "torch eager (baseline)",
        "torch eager (baseline) again",
        "torch.compile",
        "hasten",
    ]
    assert rows[-1][6] == "hasten chose nothing: no engine to try"


def test_a_cell_that_fails_is_a_line_and_the_next_ones_go_on(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, sm80: Target, tmp_path: Path
) -> None:
    def failing(*arguments: Any) -> None:
        raise CandidateError("out of memory")

    monkeypatch.setattr(gpu, "_cell", failing)
    told = gpu.measure(
        "tiny", None, None, [1, 8], sm80, tmp_path, pace=gpu.UNTIMED, count=2, choice=failing
    )
    assert told == [
        line
        for batch in (1, 8)
        for line in (f"### tiny, batches of {batch}", "", "not measured: out of memory", "")
    ]


def test_the_table_tells_times_on_a_gpu_only(gpu: Any, cells: Any) -> None:
    line = cells.Line("TensorRT", "", 1.5e6, 2e6, (2.0, 1.9, 2.1), 1.2e6, 1e-3, {})
    (row,) = cells_of(gpu.table("cell", [line], "no choice", timed=True))[:1]
    assert row == [
        *("TensorRT", "2.00x (1.90 to 2.10)", "1.500 ms", "2.000 ms", "1.200 ms", "1.0e-03", "")
    ]
    assert "ms" not in "".join(gpu.table("cell", [line], "no choice", timed=False))
