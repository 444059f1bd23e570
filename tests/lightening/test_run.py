"""Whole runs: a model, its training data and a budget, to a certified lighter model."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.lightening.conftest import clothes, corners, taught, wide

import hasten
from hasten.bundle import read
from hasten.errors import InputError
from hasten.frontends.torch import export
from hasten.measure.prospects import fastest
from hasten.progress import Listener, Progress
from hasten.reporting.rows import won
from hasten.result import Result
from hasten.target import Target
from hasten.tensors import Array
from hasten.testing.quick import quick_runs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KNOWN, JUDGED = corners(700, 2), corners(1500, 3)


@pytest.fixture(autouse=True)
def no_cache_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy host measured for somebody else says nothing here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class StopError(Exception):
    """The run is stopped by its listener."""


def budget_ms(module: torch.nn.Module, image: Array, share: float, folder: Path) -> float:
    """Return a share of what a network takes on this machine."""
    folder.mkdir()
    sample = {"input": image}
    model = export(module, sample, folder).settled_by(sample)
    found = fastest({"it": model}, Target.host(), folder / "prospects", engines=("onnxruntime",))
    return share * found["it"].latency_ns / 1e6


def run(
    module: torch.nn.Module,
    known: tuple[Array, Array],
    judged: tuple[Array, Array],
    limit_ms: float,
    out: Path,
    *,
    resume: bool,
    listen: Listener,
) -> Result:
    with quick_runs(passes=True):
        return hasten.lighten(
            module,
            known,
            judged,
            budget_ms=limit_ms,
            max_drop=0.2,
            out=out,
            architectures=["lcnet"],
            minutes=0.08,
            epochs=5,
            batch=32,
            rate=5e-3,
            engines=("onnxruntime",),
            resume=resume,
            listen=listen,
        )


def run_and_be_killed(*asked: Any) -> None:
    """As `run`, until the student has looked once at how it does."""

    def listen(progress: Progress) -> None:
        learning = progress.stage == "train" and progress.doing.startswith("lcnet")
        if learning and progress.outcome:
            os.kill(os.getpid(), signal.SIGKILL)

    run(*asked, resume=False, listen=listen)


def test_a_killed_run_goes_on_and_ends_with_a_certified_lighter_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    examples, known, judged = clothes()
    module = taught(examples, tmp_path)
    before = [p.detach().clone() for p in module.parameters()]
    out = tmp_path / "b.hasten"
    with quick_runs():
        limit_ms = budget_ms(module, known[0][0], 0.6, tmp_path / "budget")
    asked = (module, known, judged, limit_ms, out)
    process = multiprocessing.get_context("spawn").Process(target=run_and_be_killed, args=asked)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    heard: list[Progress] = []
    result = run(*asked, resume=True, listen=heard.append)
    trained = {p.doing for p in heard if p.stage == "train"}
    assert "pruned" not in trained  # it was through
    assert any("labels alone" in name for name in trained)

    assert result.status == "certified", result.why
    names = {way.name for way in result.ways}
    assert "pruned" in names
    assert any(name.startswith("lcnet") and "labels alone" in name for name in names)
    assert result.budget_ns == pytest.approx(1e6 * limit_ms)
    assert won(result).startswith("the way that won: ")
    assert all(way.trained for way in result.ways if way.name != "as it is")
    assert any(note.startswith("the model itself takes ") for note in result.notes)
    assert not (tmp_path / "b.hasten.training").exists()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert read(out).winner.label.startswith("little(")
    with hasten.load(out) as fast:
        found = np.concatenate([fast(judged[0][i : i + 1])["output"] for i in range(100)])
    exact = module(torch.from_numpy(judged[0][:100])).argmax(1).numpy()
    right = (found.argmax(1) == judged[1][:100]).mean()
    assert right > (exact == judged[1][:100]).mean() - 0.2
    assert result.asked is not None
    assert result.asked.invocation.function == "lighten"


def refused(tmp_path: Path, **options: object) -> str:
    settings = {"budget_ms": 1.0, "out": tmp_path / "b.hasten", "engines": ("onnxruntime",)}
    given = {"model": wide(8), "train": KNOWN, "data": JUDGED, **settings, **options}
    with pytest.raises(InputError) as error:
        hasten.lighten(**given)  # type: ignore[arg-type]
    assert not (tmp_path / "b.hasten.training").exists()
    return str(error.value)


def test_a_budget_that_nothing_meets_is_refused_with_the_fastest_that_there_is(
    tmp_path: Path,
) -> None:
    said = refused(tmp_path, budget_ms=1e-4, architectures=["lcnet"])
    assert said.startswith("nothing meets the budget of 0.1 µs: pruned: pruning can't reach ")
    assert "the least is " in said
    assert "the fastest is lcnet" in said


def test_training_data_that_lacks_classes_is_refused(tmp_path: Path) -> None:
    x, labels = KNOWN
    some = (x[labels < 2], labels[labels < 2])
    assert refused(tmp_path, train=some) == (
        "the training data has other classes than the data to judge on: it lacks 2, 3; give "
        "training data of all classes"
    )
    assert refused(tmp_path, train=(some[0], 0 * some[1] + 7)) == (
        "the training data: label 7 is none of the 4 classes 0 to 3"
    )


def test_training_data_among_what_judges_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, train=JUDGED).startswith(
        "1500 of 1500 training samples are in the data to judge on too"
    )


def by_one(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["output"].sum() * 0


def by_another(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return outputs["output"].sum() * 0


def test_a_stopped_run_does_not_go_on_with_another_loss(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise StopError

    def run(loss: object, *, resume: bool) -> None:
        hasten.lighten(
            wide(8),
            KNOWN,
            JUDGED,
            budget_ms=1.0,
            out=tmp_path / "b.hasten",
            engines=("onnxruntime",),
            loss=loss,
            resume=resume,
            listen=stop,
        )

    with pytest.raises(StopError):
        run(by_one, resume=False)
    with pytest.raises(StopError):
        run(by_one, resume=True)
    with pytest.raises(InputError, match="can't resume: the stopped run had another loss"):
        run(by_another, resume=True)


class Branching(torch.nn.Module):
    """Goes one of two ways, as the numbers say: no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = wide(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out if float(out.sum()) > 0 else -out


def test_a_model_that_can_not_be_traced_is_refused_in_one_line(tmp_path: Path) -> None:
    said = refused(tmp_path, model=Branching())
    assert said.startswith("torch can't export the model to ONNX: ")
    assert "\n" not in said


def test_what_is_no_live_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"")
    assert refused(tmp_path, model=str(file)) == (
        f"lighten trains a live torch network, as file.py:name gives one; {file} is none"
    )


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("budget_ms", 0.0, "the budget is in milliseconds, above 0: got 0.0"),
        ("minutes", -1, "the time for each way is in minutes, above 0: got -1"),
        ("batch", 1, "a batch has at least 2 samples, since it is normalized by: got 1"),
        ("ways", ["magic"], "ways are students, pruned, scratch: got 'magic'"),
        ("students", 0, "give at least 1 student, or leave that way out: got 0"),
        ("features", 2.0, "the weight of features is between 0 and 1: got 2.0"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, option: str, value: object, said: str
) -> None:
    assert refused(tmp_path, **{option: value}) == said
