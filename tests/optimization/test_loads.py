"""A run's last figures: what ships under load, and how far every candidate is from the floor."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.cli.card import details
from hasten.engines.cascade import Cascade
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.measure.candidate import Single
from hasten.measure.ceilings import measure
from hasten.measure.roofline import LayerWork
from hasten.measure.under_load import Generator
from hasten.optimization.measured import loads
from hasten.optimization.measured.limits import intended
from hasten.passes.float_layers import FloatLayers
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.simplify import Simplify
from hasten.passes.small_model import SmallModel
from hasten.reporting.result import Result
from hasten.testing import models

X = np.random.default_rng(0).standard_normal((100, 16), dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def ceilings_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measure what the machine can do once, and not again in each run."""
    folder = tmp_path_factory.mktemp("ceilings")
    measured = functools.cache(lambda target: measure(target, folder))
    with pytest.MonkeyPatch.context() as patch:
        for place in ("limits", "judge"):
            name = f"hasten.optimization.measured.{place}.measure"
            patch.setattr(name, lambda target, *_, **rest: measured(target))
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("loads")
    with quick_runs(load_s=0.05, limits=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr("hasten.measure.under_load._TRIES", 2)
        return hasten.optimize(
            models.small_cnn(folder),
            np.random.default_rng(0).standard_normal((100, 3, 32, 32), dtype=np.float32),
            out=folder / "b",
            engines=("onnxruntime",),
            latency_bound_s=300.0,
        )


@pytest.mark.seconds
def test_a_bundle_keeps_how_it_does_in_each_scenario(result: Result) -> None:
    records = json.loads((result.bundle / "evidence" / "load.json").read_text())
    assert [record["scenario"] for record in records] == ["single-stream", "offline", "server"]
    for record in records:
        assert record["figures"]["requests"] >= 100
        assert record["figures"]["p50_ns"] > 0
        assert record["said"][-1].endswith("not an MLPerf result")
    assert records[2]["figures"]["offer"]["bound_ns"] == 300_000_000_000


def test_the_scenarios_are_on_the_screen_and_on_the_page(result: Result) -> None:
    assert [line.partition(":")[0] for line in result.loads] == [
        "single-stream",
        "offline",
        "server",
    ]
    shown = details(result)
    assert all(line in shown for line in result.loads)
    page = (result.bundle / "report.html").read_text()
    assert "Under load" in page
    assert "not an MLPerf result" in page


def test_each_candidate_that_was_timed_is_set_against_its_floor(result: Result) -> None:
    timed = [outcome for outcome in result.outcomes if outcome.ratio is not None]
    limits = [outcome.limit for outcome in timed if outcome.limit is not None]
    assert all(limit.ratio >= 1 for limit in (*limits, *result.limits))
    assert all(limit.binds in ("arithmetic", "bytes", "overhead") for limit in limits)
    shown = details(result)  # a busy host's ceilings may be above the latencies
    for role in ("default engine", "fastest exact"):
        said = [limit for limit in result.limits if limit.role == role]
        notes = [note for note in result.notes if "less time than the" in note and role in note]
        assert len(said) + len(notes) == 1
        assert ("\nLeft to gain: " in shown) == bool(result.limits)


def test_a_model_of_which_a_part_cannot_be_counted_has_no_floor(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        cut (float[batch, 4, 16] x) => (float[batch, 2] y) {
            steps = Transpose <perm = [1, 0, 2]> (x)
            every = Shape <start = 1, end = 2> (steps)
            four = Constant <value = int32[1] {4}> ()
            lengths = Expand(four, every)
            states, last = LSTM <hidden_size = 3> (steps, w, r, , lengths)
            there = Squeeze(last, axis)
            y = MatMul(there, v)
        }"""
    proto = onnx.parser.parse_model(text)
    weights = {"w": (1, 12, 16), "r": (1, 12, 3), "v": (3, 2)}
    for name, shape in weights.items():
        value = np.full(shape, 0.1, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    axis = np.array([0], np.int64)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(axis, "axis"))
    onnx.save(proto, tmp_path / "cut.onnx")
    data = np.random.default_rng(0).standard_normal((100, 4, 16), dtype=np.float32)
    with quick_runs(limits=True):
        result = hasten.optimize(
            tmp_path / "cut.onnx", data, out=tmp_path / "b", engines=("onnxruntime",)
        )
    assert result.limits == ()
    assert {outcome.limit for outcome in result.outcomes} == {None}
    (said,) = [note for note in result.notes if "the machine's limit" in note]
    assert said.endswith(
        "the machine's limit: the work of 1 of 2 layers can't be counted: 'states'"
    )
    shown = details(result)
    assert "Left to gain" not in shown
    assert said in shown


@pytest.mark.parametrize("bound_s", [0.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused_before_anything_is_done(
    tmp_path: Path, bound_s: float
) -> None:
    with pytest.raises(hasten.InputError) as error:
        hasten.optimize(
            models.linear_classifier(tmp_path), X, out=tmp_path / "b", latency_bound_s=bound_s
        )
    assert str(error.value) == (
        f"the latency bound is in seconds, above 0 and below 600: got {bound_s}"
    )


def test_one_that_would_take_long_is_left_out_aloud_and_the_servers_where_there_is_no_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loads._LONGEST_S, "offline", 0.0)
    with quick_runs(load_s=0.01, races=False):
        result = hasten.optimize(
            models.linear_classifier(tmp_path), X, out=tmp_path / "b", engines=("onnxruntime",)
        )
    assert [line.partition(":")[0] for line in result.loads] == ["single-stream"]
    assert any(
        note.startswith("offline: left out, because it would take ") for note in result.notes
    )


@pytest.mark.parametrize(
    ("left_out_above_s", "lost"), [(20.0, "single-stream, offline"), (0.0, "offline")]
)
def test_a_scenario_that_fails_costs_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out_above_s: float, lost: str
) -> None:
    def fails(self: Generator, seed: int) -> Any:
        raise hasten.CandidateError("it crashed")

    monkeypatch.setattr(Generator, "once", fails)
    monkeypatch.setitem(loads._LONGEST_S, "single-stream", left_out_above_s)
    with quick_runs(load_s=0.01, races=False):
        result = hasten.optimize(
            models.linear_classifier(tmp_path), X, out=tmp_path / "b", engines=("onnxruntime",)
        )
    assert result.loads == ()
    assert f"under load ({lost}): it crashed" in result.notes


LAYERS = tuple(LayerWork(name, "Conv", operations=1) for name in "ab")
INT8 = (NncfQuantization(),)
LITTLE = SmallModel(Path("little.onnx"), (), "0")


@pytest.mark.parametrize(
    ("candidate", "precisions"),
    [
        (Single((), OnnxRuntime()), ("f32", "f32")),
        (Single((Simplify(),), OpenVino()), ("f32", "f32")),
        (Single((), OpenVino("bf16")), ("bf16", "bf16")),
        (Single(INT8, OpenVino("bf16")), ("i8", "i8")),
        (Single((*INT8, FloatLayers(("b",))), OpenVino("bf16")), ("i8", "bf16")),
        (Single((NncfQuantization(keep_float=("a",)),), OpenVino()), ("f32", "i8")),
        (Single((LITTLE,), OpenVino("bf16")), ("bf16", "bf16")),
        (Single((LITTLE, *INT8), OpenVino()), ("i8", "i8")),
        (Single(INT8, Cascade(OpenVino(), OnnxRuntime(), 0.1, "y")), ("i8", "i8")),
    ],
)
def test_what_has_no_profile_is_taken_as_its_settings_say(
    candidate: Any, precisions: tuple[str, str]
) -> None:
    assert intended(candidate, LAYERS) == dict(zip("ab", precisions, strict=True))
