"""The benchmarks run once, untimed: what they print is made, not judged."""

import importlib
import json
import runpy
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from tests.support.exports import exported_once
from tests.support.models import COLOUR, COLOURS
from tests.support.quick import quick_runs
from tests.support.servers import bundle_of
from torch import nn

from hasten.core.telemetry import telemetry_off
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.requests import random_requests
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.models import torch as frontend
from hasten.inputs.models.source import load_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.measure.candidate import Single
from hasten.measure.race import BASELINE, Standings
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import op_counts
from hasten.passes.silence import silenced
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing import models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import one of the benchmarks' modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.seconds
def test_the_overhead_of_a_loaded_bundle_is_printed(
    exact_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead.py", str(exact_bundle)])
    runpy.run_path(str(BENCHMARKS / "overhead.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"{exact_bundle.name}: load(...)(x) adds ")


def test_what_surrounds_the_network_is_printed_over_the_fastest_full_decode(
    load: Load, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("simplejpeg")
    benchmark = load("request_path")
    pipeline = Pipeline(image_pipeline(8).steps, (TopK(1, COLOURS, softmax=False),))
    model = models.write(tmp_path / "colour.onnx", COLOUR, {})
    photos = tmp_path / "photos"
    benchmark.pictures(photos, 3)

    found = benchmark.surrounding(
        bundle_of(tmp_path, model, pipeline=pipeline), photos, count=2, turns=2
    )

    said = capsys.readouterr().out
    table = {
        line.split("  ")[0]: line.split() for line in said.strip().split("\n\n")[0].splitlines()
    }
    # libjpeg-turbo, set as hasten sets it, gives Pillow's pixels; its fast form doesn't.
    assert table["simplejpeg, as hasten calls it"][-1] == "0"
    assert int(table["simplejpeg, fast transform and upsampling"][-1]) > 0
    assert said.count("what surrounds the network over the fastest full decode") == 2
    ratio = found["what surrounds the network over the fastest full decode"]["of all"]
    assert ratio["low"] <= ratio["estimate"] <= ratio["high"]
    assert found["p50_ms"]["what surrounds the network"] > 0


def test_a_chain_is_told_over_the_sum_of_its_models_at_the_same_clients(load: Load) -> None:
    benchmark = load("chains")
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.5, 2.0, (20, 1))  # what slows a round slows all that ran in it

    def of(call_ms: float, slow_ms: float) -> Any:
        calls = np.full((20, 50), call_ms)
        calls[:, 0] = slow_ms
        return benchmark.Times(noise[:, 0] * call_ms, noise * calls)

    times = {"chain": of(8.0, 90.0), "detector": of(4.0, 20.0), "reader": of(6.0, 40.0)}
    both = [times["detector"], times["reader"]]
    for name, ratio in (("per picture", 0.8), ("p50", 0.8), ("p99", 1.5)):
        found = benchmark.interval(benchmark.STATISTICS[name], times["chain"], both)
        assert found == pytest.approx([ratio] * 3), name
    said = benchmark.told(times, {"chain": ["detector", "reader"]})
    assert said.endswith("chain: 125% (125 to 125%) of what its models' times allow")
    # Each of 3 clients calls as often as it is told to, and at the same time as the others.
    meeting = threading.Barrier(3, timeout=60)
    _, latencies = benchmark.timed(lambda n: meeting.wait(), pictures=2, clients=3, calls=2)
    assert len(latencies) == 6


@pytest.mark.slow
def test_the_tables_of_speedups_have_every_version_and_a_run_per_model(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("timm")
    subjects = load("models")
    rng = np.random.default_rng(0)
    data = ArrayDataset({"x": rng.standard_normal((60, 3, 32, 32), np.float32)})
    model = models.small_cnn(tmp_path)

    subject = subjects.Subject(lambda _: model, lambda: data, Embedding(), 0.5)
    monkeypatch.setattr(subjects, "MODELS", {"cnn": subject})
    raw = tmp_path / "raw.json"
    monkeypatch.setattr(sys, "argv", ["speedups.py", "--out", str(raw)])
    with quick_runs():
        runpy.run_path(str(BENCHMARKS / "speedups.py"), run_name="__main__")
    versions, runs = (table.splitlines() for table in capsys.readouterr().out.split("\n\n"))
    named = ("ONNX Runtime fp32", *load("comparison").UNTUNED, *load("comparison").RECIPES)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in versions[2:]]
    assert [row[0] for row in rows] == ["cnn"] * 6
    assert tuple(row[1] for row in rows[:5]) == named
    assert rows[5][1].startswith("**hasten**: ")
    assert [row[2] for row in rows[:3]] == ["100.0% embedding (+0.0)"] * 3
    assert all("x (" in row[3] and row[4].endswith(" ms") and row[5].endswith("x") for row in rows)
    assert [row.split(" | ")[0] for row in runs[2:]] == ["| cnn"]
    assert len({row.count("|") for row in versions}) == len({row.count("|") for row in runs}) == 1
    assert set(json.loads(raw.read_text())) == {"cnn"}


def test_each_toolkit_quantizes_by_its_own_defaults(load: Load, tmp_path: Path) -> None:
    rivals = load("rivals")
    rng = np.random.default_rng(0)
    data = ArrayDataset({"x": rng.standard_normal((8, 3, 32, 32), np.float32)})
    model = load_model(models.small_cnn(tmp_path), None, tmp_path).settled_by(
        {"x": data.inputs([0])["x"][0]}
    )
    requests = CalibrationRequests(model, data, 8)
    with silenced(), telemetry_off():
        rivals.static_int8(model.path, requests, tmp_path / rivals.STATIC)
        rivals.nncf_int8(model.path, requests, tmp_path / rivals.NNCF)
    static = onnx.load(tmp_path / rivals.STATIC)
    assert op_counts(static)["QuantizeLinear"] > 0
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in static.graph.initializer}
    nncf = openvino.Core().read_model(tmp_path / rivals.NNCF)
    assert "FakeQuantize" in {one.get_type_name() for one in nncf.get_ordered_ops()}


@pytest.mark.slow
def test_a_recipe_that_fails_is_said_so_and_random_weights_have_no_accuracy(
    load: Load, monkeypatch: pytest.MonkeyPatch, exact_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    comparison, subjects, speedups = load("comparison"), load("models"), load("speedups")

    def refused(*_: Any) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(load("rivals"), "nncf_int8", refused)
    data = ArrayDataset({"x": np.random.default_rng(0).standard_normal((60, 16), np.float32)})
    subject = subjects.Subject(lambda _: None, lambda: data, Agreement(), 0.5, real=False)
    with quick_runs():
        found = comparison.compare(
            subject, models.linear_classifier(tmp_path), exact_bundle, tmp_path
        )
    static, nncf = (found.figures[name] for name in comparison.RECIPES)
    assert speedups._cells(nncf, "agreement") == [
        *("-", "it can't be quantized: no such operator", "-", "-")
    ]
    assert speedups._cells(static, "agreement")[0] == "-"
    assert found.sealed == 0
    assert found.over(comparison.RECIPES)[0] == comparison.RECIPES[0]


def test_what_lost_more_than_the_limit_is_no_rival_to_beat(load: Load) -> None:
    pytest.importorskip("timm")
    comparison = load("comparison")
    blocks = {"hasten": 10, "accurate": 20, "wrong": 5, BASELINE: 40}
    rounds: dict[str, dict[int, tuple[int, ...]]] = {
        name: {0: (ms, ms), 1: (ms, ms)} for name, ms in blocks.items()
    }
    standings = Standings("figures", 1, rounds)
    figures = {
        name: comparison.Figures(1.0, drop, standings.ratio(name))
        for name, drop in (("hasten", 0.0), ("accurate", 0.01), ("wrong", 0.2))
    }
    found = comparison.Comparison(figures, standings, 100, None)
    (first, over_any), (second, over_accurate) = (
        found.over(("accurate", "wrong"), limit) for limit in (1.0, 0.05)
    )
    assert (first, over_any.estimate) == ("wrong", pytest.approx(2.0))
    assert (second, over_accurate.estimate) == ("accurate", pytest.approx(0.5))
    assert found.over(("wrong",), 0.05) is None


@pytest.mark.slow
def test_the_teacher_of_the_lighter_models_is_trained_once(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    lighter = load("lighter")
    monkeypatch.setattr(lighter, "TAUGHT", 120)
    monkeypatch.setattr(lighter, "RECIPE", lighter.Recipe(seconds=2, epochs=1, batch=16))
    weights = [lighter.teacher(tmp_path).fc.weight for _ in range(2)]
    assert (weights[0] == weights[1]).all()
    known, judged = lighter.known(300), lighter.judged(200)
    assert known.inputs([0, 1])["x"].shape == (2, 1, 28, 28)
    assert not {known.content_hash(i) for i in range(300)} & {
        judged.content_hash(i) for i in range(200)
    }


class SmallCnn(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
            *(nn.Conv2d(96, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


def test_a_drafted_network_is_timed_beside_the_whole_one(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drafts = load("drafts")
    monkeypatch.setattr(drafts, "ROUNDS", 2)
    zeros = {"x": np.zeros((3, 32, 32), np.float32)}
    model = load_model(models.small_cnn(tmp_path), None, tmp_path).settled_by(zeros)
    spool = write_spool(random_requests(model.request, 0), tmp_path / "spool")
    way = Single((StaticQuantization(),), OnnxRuntime())
    whole_ns, share = drafts.shares(model, way, spool, tmp_path / "work")
    assert whole_ns > 0
    assert share > 0


@pytest.mark.slow
def test_a_pruned_network_is_timed_beside_itself_on_an_engine(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    pruning = load("pruning")
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((16, 3, 48, 48), np.float32)

    subject = pruning.Subject(SmallCnn, lambda: ArrayDataset({"x": pixels}), random=True)
    monkeypatch.setattr(pruning, "SUBJECTS", {"cnn": subject})
    # Rounds are few and short, and none waits for a processor that is idle.
    monkeypatch.setattr(pruning, "quiet", lambda _: True)
    brief = partial(pruning.Pace, warmup_ns=500_000, block_ns=2_000_000)
    monkeypatch.setattr(pruning, "Pace", brief)
    options = ["cnn", "--shares", "0.7", "--engine", "onnxruntime", "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["pruning.py", *options])
    (tmp_path / "exports").mkdir()
    with exported_once(tmp_path / "exports"):
        monkeypatch.setattr(pruning, "export", frontend.export)
        pruning.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| cnn")]
    assert [line.split(" | ")[4] for line in lines[-2:]] == ["i8", "f32"]
    assert all(float(line.split(" | ")[3]) > 0 for line in lines)
