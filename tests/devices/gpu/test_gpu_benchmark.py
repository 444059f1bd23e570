"""The benchmark runs over this host in a GPU's place, untimed; each cell and each runtime stands alone."""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.at_hand import at_hand
from tests.support.bundles import built, stated
from tests.support.forked_workers import forked_workers

from hasten.bundle import load, write
from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.cuda.torch import TorchCuda
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.models.source import load_model
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


def test_no_model_is_judged_so_loosely_that_anything_passes(gpu: Any) -> None:
    pytest.importorskip("PIL")
    models: Any = importlib.import_module("models")
    for name in gpu.SUBJECTS:
        subject = gpu.judged(models.MODELS[name], models.MODELS["mobilenet_v2"].data)
        assert subject.max_drop <= 0.05, name


def test_a_random_network_is_judged_by_answers_that_differ_among_photographs(gpu: Any) -> None:
    for package in ("PIL", "timm"):
        pytest.importorskip(package)
    if find_spec("skimage") is None:  # of which only files are read
        pytest.skip("scikit-image isn't installed")
    models: Any = importlib.import_module("models")
    torch = pytest.importorskip("torch")
    photographs = models.MODELS["mobilenet_v2"].data
    subject = gpu.judged(models.MODELS["resnet50_224px"], photographs)
    network = subject.module(Path())
    x = torch.from_numpy(photographs().inputs(range(1000, 1008))["x"])
    with torch.inference_mode():
        answers = network(x).numpy()
    directions = answers / np.linalg.norm(answers, axis=1, keepdims=True)
    cosines = (directions @ directions.T)[np.triu_indices(len(x), 1)]
    assert np.median(cosines) < 0.5  # 0.94 as the network is drawn
    assert isinstance(subject.metric, Embedding)
    assert subject.metric.tolerance >= 0.98


def test_a_random_network_without_classes_is_refused(gpu: Any) -> None:
    with pytest.raises(InputError, match="nothing can judge it"):
        gpu.told_apart(object(), ArrayDataset({"x": np.zeros((2, 1), np.float32)}))


def test_a_cell_holds_every_runtime_at_its_fastest_and_what_hasten_chose(cells: Any) -> None:
    chosen = Single((), TorchCuda("graph"))
    found = cells.entrants(chosen)
    assert found[BASELINE] == found[AGAIN] == Single((), TorchCuda())
    assert list(found)[2:] == [
        "hasten",
        "torch eager",
        "torch eager, TF32",
        "torch eager, f16",
        "torch.compile, TF32",
        "torch.compile, f16",
        "torch.compile by timing",
        "torch.compile by timing, TF32",
        "torch.compile by timing, f16",
        "ONNX Runtime CUDA",
        "ONNX Runtime CUDA, TF32",
        "ONNX Runtime CUDA, f16",
        "ONNX Runtime CUDA graph",
        "ONNX Runtime CUDA graph, TF32",
        "ONNX Runtime CUDA graph, f16",
        "TensorRT",
        "TensorRT, TF32",
        "TensorRT, f16",
        "TensorRT for RTX",
        "TensorRT for RTX, TF32",
        "TensorRT for RTX, f16",
        "bare torch eager",
        "bare torch.compile",
        "bare ONNX Runtime",
    ]
    assert found["hasten"] == chosen
    assert "hasten" not in cells.entrants(None)


def test_what_is_called_tf32_has_it_and_what_is_not_has_not(cells: Any) -> None:
    for name, candidate in cells.entrants(None).items():
        engine = candidate.engine
        if not name.startswith("bare"):
            has = getattr(engine, "precision", "") == "tf32" or getattr(engine, "tf32", False)
            assert has == name.endswith("TF32"), name


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
    with forked_workers(), at_hand("torch", "torch._dynamo", "onnxruntime"):
        found: list[str] = gpu.measure(
            "tiny", module, data, [2], target, folder, pace=gpu.UNTIMED, count=2, choice=choice
        )
    return found


def bundled(folder: Path, sizes: list[int]) -> Path:
    """Write a bundle of the small network for this host, with its answers doubled; certified at batch sizes."""
    module, data = tiny()
    last = module[-1]
    last.weight.data *= 2
    last.bias.data *= 2
    (folder / "exported").mkdir(parents=True)
    model = load_model(
        module, lambda _: {"input": data.inputs([0])["input"][0]}, folder / "exported"
    )
    winner = built(folder, model.path, OnnxRuntime(threads=1))
    write(folder / "b", stated(winner, None, certificate={"batch_sizes": sizes}), {})
    return folder / "b"


def cells_of(told: list[str]) -> list[list[str]]:
    """Return the cells of a table's rows, without its head."""
    rows = [row for row in told if row.startswith("|")][2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_a_cell_is_run_once_and_a_runtime_that_fails_is_a_line(
    gpu: Any, cells: Any, monkeypatch: pytest.MonkeyPatch, sm80: Target, tmp_path: Path
) -> None:
    engines: Any = importlib.import_module("gpu_engines")
    few = {
        BASELINE: Single((), TorchCuda()),
        AGAIN: Single((), TorchCuda()),
        "torch eager, f16": Single((), TorchCuda("eager", "f16")),
        "TensorRT": Single((), Tensorrt()),
        "bare torch eager": Single((), engines.BareTorch()),
        "bare torch.compile": Single((), engines.BareTorch(compiled=True)),
        "bare ONNX Runtime": Single((), engines.BareOnnxRuntime()),
    }
    monkeypatch.setattr(cells, "entrants", lambda chosen: {**few, "hasten": chosen})
    chosen = gpu.Chosen(bundled(tmp_path, [1, 2]), "f16 weights, TensorRT", "certified")
    told = measured(gpu, sm80, tmp_path / "out", lambda folder: chosen)
    assert told[0] == "### tiny, batches of 2"
    rows = {row[0]: row[1:] for row in cells_of(told)}
    assert list(rows) == [
        "torch.compile",
        "torch.compile again",
        "torch eager, f16",
        "bare torch eager",
        "bare torch.compile",
        "bare ONNX Runtime",
        "hasten",
        "TensorRT",
    ]
    assert rows["torch.compile"] == [*["untimed"] * 6, "0.0e+00", ""]
    assert 0 < float(rows["torch eager, f16"][6]) < 0.01
    for name in ("bare torch eager", "bare torch.compile", "bare ONNX Runtime"):
        assert float(rows[name][6]) < 1e-5, rows[name]
    assert rows["hasten"][7] == "f16 weights, TensorRT; certified"
    assert rows["TensorRT"][:7] == ["-"] * 7
    assert "isn't" in rows["TensorRT"][7]

    def never(*arguments: Any) -> None:
        raise AssertionError("a cell that is done ran again")

    monkeypatch.setattr(gpu, "cell", never)
    assert measured(gpu, sm80, tmp_path / "out", lambda folder: chosen) == told


@pytest.mark.parametrize(
    ("sizes", "parts"), [([1, 2], ""), ([1], "; in parts: 2 of 1"), ([1, 4], "; in parts: 2 of 1")]
)
def test_the_bundle_itself_answers_and_only_in_batches_that_its_certificate_covers(
    gpu: Any,
    cells: Any,
    monkeypatch: pytest.MonkeyPatch,
    sm80: Target,
    tmp_path: Path,
    sizes: list[int],
    parts: str,
) -> None:
    few = {name: Single((), TorchCuda("eager")) for name in (BASELINE, AGAIN)}
    monkeypatch.setattr(cells, "entrants", lambda chosen: {**few, "hasten": chosen})
    chosen = gpu.Chosen(bundled(tmp_path, sizes), "ONNX Runtime", "certified")
    rows = cells_of(measured(gpu, sm80, tmp_path / "out", lambda folder: chosen))
    assert rows[-1][0] == "hasten"
    assert float(rows[-1][7]) == pytest.approx(1)  # the bundle's answers are twice the module's
    assert rows[-1][8] == f"ONNX Runtime; certified{parts}"


@pytest.mark.parametrize(
    ("batch", "times"),
    [
        (2, {"stream_ns": "1000", "host_ns": "3000", "gpu_power_w": "70"}),
        (4, {"stream_ns": "2000", "host_ns": "6000", "gpu_power_w": "70"}),
        (3, {}),
    ],
)
def test_a_batch_in_parts_takes_the_time_of_all_parts(
    cells: Any, tmp_path: Path, batch: int, times: dict[str, str]
) -> None:
    engines: Any = importlib.import_module("gpu_engines")

    class Clocked:
        def device_times(self) -> dict[str, str]:
            return {"stream_ns": "1000", "host_ns": "3000", "gpu_power_w": "70"}

    spec = TensorSpec("input", "float32", (batch, 3, 8, 8))
    artifact = Artifact(tmp_path, (spec,), (), (spec,))
    with load(bundled(tmp_path, [1, 2])) as loaded:
        session = engines._BundledSession(artifact, loaded)
        session._session = Clocked()  # as on a GPU
        assert session.device_times() == times


def test_a_bundle_that_takes_other_batches_only_is_a_reason(cells: Any, tmp_path: Path) -> None:
    engines: Any = importlib.import_module("gpu_engines")
    spec = TensorSpec("input", "float32", (3, 3, 8, 8))
    with load(bundled(tmp_path, [1, 2])) as loaded:
        loaded._keeps = (2,)
        with pytest.raises(CandidateError, match="the bundle takes batches of 2, not 3"):
            engines._BundledSession(Artifact(tmp_path, (spec,), (), (spec,)), loaded)


def test_a_module_that_can_not_be_pickled_leaves_only_its_bare_lines_out(
    cells: Any, sm80: Target, tmp_path: Path
) -> None:
    engines: Any = importlib.import_module("gpu_engines")
    module, data = tiny()

    class Local(type(module)):  # type: ignore[misc]
        """Class that no other process finds."""

    local = Local(*module)
    model, _ = cells.batched(local, data, 2, tmp_path)
    assert model.program.exists()
    with pytest.raises(CandidateError, match="the module can't be pickled"):
        engines.BareTorch().build(model, sm80, tmp_path)


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
    assert rows[-1][8] == "hasten chose nothing: no engine to try"


def test_a_cell_without_a_choice_stands_for_none_that_has_one(
    gpu: Any, cells: Any, monkeypatch: pytest.MonkeyPatch, sm80: Target, tmp_path: Path
) -> None:
    raced: list[tuple[bool, str]] = []

    def race(
        module: Any, data: Any, batch: int, chosen: Any, target: Any, place: Path, *_: Any
    ) -> Any:
        raced.append((chosen is not None, place.name))
        names = ("bare torch eager", *(("hasten",) if chosen else ()))
        return [cells.Line(name, "it was raced") for name in names]

    def nothing(folder: Path) -> Any:
        raise CandidateError("the GPU's memory is full")

    def chosen(folder: Path) -> Any:
        return gpu.Chosen(tmp_path / "b", "ONNX Runtime", "certified")

    monkeypatch.setattr(gpu, "_cell", race)
    for choice in (nothing, nothing, chosen, chosen, nothing):
        told = measured(gpu, sm80, tmp_path / "out", choice)
    (without, with_one) = raced  # each once
    assert (without[0], with_one[0]) == (False, True)
    assert without[1] != with_one[1]  # so that no race goes on with the other's rounds
    assert [(row[0], row[-1]) for row in cells_of(told)] == [
        ("bare torch eager", "it was raced"),
        ("hasten", "it was raced"),
    ]


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
    line = cells.Line("TensorRT", "", 1.5e6, 2e6, (2.0, 1.9, 2.1), 1.2e6, 1.485e6, 1e-3, {})
    (row,) = cells_of(gpu.table("cell", [line], "no choice", timed=True))[:1]
    assert row == [
        *("TensorRT", "2.00x (1.90 to 2.10)", "1.500 ms", "2.000 ms"),
        *("1.485 ms", "15 us", "1.200 ms", "1.0e-03", ""),
    ]
    assert "ms" not in "".join(gpu.table("cell", [line], "no choice", timed=False))


def test_the_table_has_no_time_that_nobody_measured(gpu: Any, cells: Any) -> None:
    line = cells.Line("bare torch eager", "", 1.5e6, 2e6, (2.0, 1.9, 2.1), off=1e-3)
    (row,) = cells_of(gpu.table("cell", [line], "no choice", timed=True))[:1]
    assert row[4:7] == ["-", "-", "-"]
