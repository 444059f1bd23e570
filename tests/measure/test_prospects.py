"""How fast untrained networks are: the best way for each, in turns, and why others can't run it."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.forked_workers import forked_workers, workers_as_asked
from tests.support.models import slow
from tests.support.rivals import BUSY_NS

from hasten.core.model import Model
from hasten.core.progress import Progress
from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, InputError
from hasten.inputs.models import onnx
from hasten.lightening import making
from hasten.lightening.making import Makers
from hasten.lightening.prospects import Prospect, fastest, ways
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing import models

RIVAL = "tests.support.rivals:Rival"
ORT = ("onnxruntime",)


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    with forked_workers():
        yield


@pytest.fixture
def target() -> Target:
    return Target.host().with_threads(1)


def settled(write: Callable[[Path], Path], folder: Path, *shape: int) -> Model:
    return onnx.load(write(folder)).settled_by({"x": np.zeros(shape, np.float32)})


def test_every_network_gets_its_best_way_with_an_interval(tmp_path: Path, target: Target) -> None:
    subjects = {
        "linear": settled(models.linear_classifier, tmp_path, 16),
        "slow": settled(slow, tmp_path, 4),
    }
    told: list[Progress] = []
    found = fastest(
        subjects, target, tmp_path / "work", engines=ORT, int8=False, listen=told.append
    )
    assert list(found) == ["linear", "slow"]
    for one in found.values():
        assert one.label == "original, ONNX Runtime"
        assert one.precision == "f32"
        assert one.engine == OnnxRuntime()
        assert 0 < one.low_ns <= one.latency_ns <= one.high_ns
        assert one.size_bytes > 0
    assert found["slow"].latency_ns > 10 * found["linear"].latency_ns  # 1000 products, not one
    assert [one.outcome for one in told if one.outcome] == [
        f"{name}: {one.latency_ns / 1e6:.3g} ms, original, ONNX Runtime"
        for name, one in found.items()
    ]


def test_a_network_is_timed_in_a_fresh_interpreter(tmp_path: Path, target: Target) -> None:
    subject = {"linear": settled(models.linear_classifier, tmp_path, 16)}
    with workers_as_asked() as fresh:
        found = fastest(subject, target, tmp_path / "work", engines=ORT, int8=False)
    assert fresh == [False, True]  # the first only builds it
    assert found["linear"].latency_ns > 0


def test_processes_and_models_may_come_one_after_another(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Worker] = []

    class Counted(Worker):
        def __init__(self, log: Path, memory_bytes: int, *, fresh: bool = False) -> None:
            super().__init__(log, memory_bytes, fresh=fresh)
            started.append(self)

    monkeypatch.setattr(making, "Worker", Counted)
    model = settled(models.linear_classifier, tmp_path, 16)
    work = tmp_path / "work"
    with Makers(work, target) as makers:
        for name in ("first", "second"):
            found = fastest(
                iter([(name, model)]), target, work, engines=ORT, int8=False, makers=makers
            )
            assert list(found) == [name]
            assert all(worker.alive for worker in started)
    assert len(started) == 2  # both calls had the same ones
    assert not any(worker.alive for worker in started)
    with pytest.raises(CandidateError, match="the run is being stopped"):
        fastest({"late": model}, target, work, engines=ORT, int8=False, makers=makers)


def test_the_faster_of_two_engines_is_named_and_the_other_one_remembered(
    tmp_path: Path, target: Target
) -> None:
    subject = {"linear": settled(models.linear_classifier, tmp_path, 16)}
    (one,) = fastest(
        subject, target, tmp_path / "work", engines=(RIVAL, "onnxruntime"), int8=False
    ).values()
    assert one.label == "original, ONNX Runtime"
    assert [ns > BUSY_NS for ns in one.others.values()] == [True]


@pytest.mark.seconds
def test_int8_is_tried_and_told_with_its_usual_settings(tmp_path: Path, target: Target) -> None:
    model = settled(models.small_cnn, tmp_path, 3, 32, 32)
    proposed = ways(model, target, ORT)
    assert [type(step) for way in proposed for step in way.passes] == [StaticQuantization]
    found = fastest(
        {"cnn": model}, target, tmp_path / "work", engines=ORT, only=lambda way: bool(way.passes)
    )
    (one,) = found.values()
    assert one.precision == "int8"
    assert (
        one.passes == proposed[1].passes
    )  # as many samples as ever, not the few it was tried with
    assert one.size_bytes < model.size_bytes


def test_openvino_has_its_own_int8_and_onnx_runtime_its_own(tmp_path: Path, target: Target) -> None:
    model = settled(models.small_cnn, tmp_path, 3, 32, 32)
    labels = [way.label for way in ways(model, target, ("onnxruntime", "openvino"))]
    assert labels[:2] == ["original, ONNX Runtime", "original, OpenVINO"]
    assert [label.partition(",")[0].rstrip(")") for label in labels[2:]] == [
        "int8 (NNCF",
        "int8 (ONNX Runtime",
    ]
    assert labels[2].endswith(", OpenVINO")
    assert labels[3].endswith(", ONNX Runtime")


def test_an_engine_that_cannot_run_a_network_is_left_out_with_its_reason(
    tmp_path: Path, target: Target
) -> None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        pytest.skip("LiteRT isn't installed: no engine that lacks loops")
    subject = {"slow": settled(slow, tmp_path, 4)}
    found = fastest(
        subject, target, tmp_path / "work", engines=("litert", "onnxruntime"), int8=False
    )
    assert found["slow"].label == "original, ONNX Runtime"
    assert list(found["slow"].left_out) == ["original, LiteRT"]
    assert "Loop" in found["slow"].left_out["original, LiteRT"]


def test_a_network_that_nothing_runs_is_missing_beside_one_that_runs(
    tmp_path: Path, target: Target
) -> None:
    broken = settled(models.unknown_operator, tmp_path, 4)
    good = settled(models.linear_classifier, tmp_path, 16)
    told: list[Progress] = []
    found = fastest(
        {"broken": broken, "good": good},
        target,
        tmp_path / "work",
        engines=ORT,
        int8=False,
        listen=told.append,
    )
    assert list(found) == ["good"]
    assert "broken: no engine runs it" in [one.outcome for one in told]
    with pytest.raises(CandidateError) as alone:
        fastest({"broken": broken}, target, tmp_path / "work", engines=ORT, int8=False)
    assert str(alone.value).startswith("no engine runs broken: original, ONNX Runtime: ")
    assert "Frobnicate" in str(alone.value)


def test_nothing_is_left_in_the_work_folder_but_samples(tmp_path: Path, target: Target) -> None:
    subject = {"linear": settled(models.linear_classifier, tmp_path, 16)}
    fastest(subject, target, tmp_path / "work", engines=ORT, int8=False)
    left = {path.name.partition("-")[0] for path in (tmp_path / "work").iterdir()}
    assert left == {"samples", "workers.log"}


def test_a_prospect_is_read_back_as_it_was_written(tmp_path: Path, target: Target) -> None:
    subject = {"linear": settled(models.linear_classifier, tmp_path, 16)}
    (one,) = fastest(subject, target, tmp_path / "work", engines=ORT, int8=False).values()
    assert from_record(Prospect, to_record(one)) == one


def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path: Path, target: Target) -> None:
    model = onnx.load(models.linear_classifier(tmp_path))
    with pytest.raises(InputError) as open_shapes:
        fastest({"linear": model}, target, tmp_path / "work", engines=ORT)
    assert str(open_shapes.value) == (
        "linear: the shapes of the model's request aren't fixed; call settled_by first"
    )
    with pytest.raises(InputError) as unknown:
        fastest({}, target, tmp_path / "work", engines=("tvm",))
    assert str(unknown.value) == (
        "no engine is called 'tvm'; this version has: onnxruntime, openvino, litert, compiled"
    )
