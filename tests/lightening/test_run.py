"""Whole runs: a model, its training data and a budget, to a certified lighter model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lightening.conftest import corners, taught, wide

import hasten
from hasten.bundle import read
from hasten.errors import InputError
from hasten.frontends.torch import export
from hasten.measure.prospects import fastest
from hasten.progress import Progress
from hasten.reporting.rows import won
from hasten.target import Target
from hasten.testing.quick import quick_runs

KNOWN, JUDGED = corners(700, 2), corners(1500, 3)


@pytest.fixture(autouse=True)
def no_cache_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy host measured for somebody else says nothing here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class StopError(Exception):
    """The run is stopped by its listener."""


def budget_ms(module: torch.nn.Module, share: float, folder: Path) -> float:
    """Return a share of what a network takes on this machine."""
    folder.mkdir()
    sample = {"input": KNOWN[0][0]}
    model = export(module, sample, folder).settled_by(sample)
    found = fastest({"it": model}, Target.host(), folder / "prospects", engines=("onnxruntime",))
    return share * found["it"].latency_ns / 1e6


def test_a_stopped_run_goes_on_and_ends_with_a_certified_lighter_model(tmp_path: Path) -> None:
    module = taught(tmp_path)
    before = [p.detach().clone() for p in module.parameters()]
    out = tmp_path / "b.hasten"
    heard: list[Progress] = []

    def run(*, resume: bool, stop: bool) -> hasten.result.Result:
        def listen(progress: Progress) -> None:
            heard.append(progress)
            training = progress.stage == "train" and progress.doing.startswith("lcnet")
            if stop and training and progress.done >= 20:
                raise StopError

        with quick_runs(passes=True):
            return hasten.lighten(
                module,
                KNOWN,
                JUDGED,
                budget_ms=limit_ms,
                max_drop=0.05,
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

    with quick_runs():
        limit_ms = budget_ms(module, 0.6, tmp_path / "budget")
    with pytest.raises(StopError):
        run(resume=False, stop=True)
    trained = [p for p in heard if p.stage == "train" and p.doing == "pruned"]
    assert trained
    heard.clear()
    began = time.monotonic()
    result = run(resume=True, stop=False)
    assert not [p for p in heard if p.stage == "train" and p.doing == "pruned"]
    assert time.monotonic() > began

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
        found = np.concatenate([fast(JUDGED[0][i : i + 1])["output"] for i in range(100)])
    assert (found.argmax(1) == JUDGED[1][:100]).mean() > 0.9
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
