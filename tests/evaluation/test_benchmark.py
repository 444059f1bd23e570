"""A bundle against what there is today."""

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from tests.support.bundles import forge
from tests.support.nominal_times import nominal_times
from tests.support.quick import quick_runs

import hasten
from hasten.core.devices import at_hand
from hasten.core.tensors import TensorSpec
from hasten.core.workers import Worker
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.evaluation import benchmark, rivals
from hasten.evaluation.rivals import raced
from hasten.inputs.data.requests import random_requests
from hasten.measure.deadline import Deadline
from hasten.measure.latency import Round
from hasten.reporting.rows import cells
from hasten.testing import models


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def test_the_rival_is_the_exact_model_by_default(exact_bundle: Path) -> None:
    with nominal_times(lambda asked: (100_000,)):
        result = hasten.bench(exact_bundle, rounds=4)
    assert result.requests == "4 kept in the bundle"
    assert (result.against.label, result.bundle.label) == (
        "original, ONNX Runtime",
        "original, ONNX Runtime",
    )
    assert result.speedup == pytest.approx(1.0)
    assert result.threads == 1


def test_the_rival_may_be_an_onnx_file(exact_bundle: Path, tmp_path: Path) -> None:
    model = models.linear_classifier(tmp_path)
    x = np.ones((5, 16), np.float32)
    result = hasten.bench(exact_bundle, against=model, data=x, rounds=4)
    assert result.requests == "samples of the data"
    assert result.against.label == f"{model}, ONNX Runtime"
    assert result.against.size_bytes == model.stat().st_size


def test_the_rival_may_be_a_function_and_a_slow_one_is_slower(
    exact_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\ndef predict(x):\n    time.sleep(0.002)\n    return x[:, :4]\n"
    )
    result = hasten.bench(exact_bundle, against=f"{tmp_path}/mine.py:predict", rounds=4)
    assert result.speedup > 3
    assert result.against.size_bytes is None
    assert cells(result.against)[-1] == "-"


def test_a_function_that_fails_is_one_line(exact_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def predict(x):\n    raise KeyError('scaler')\n")
    with pytest.raises(hasten.InputError) as caught:
        hasten.bench(exact_bundle, against=f"{tmp_path}/mine.py:predict", rounds=4)
    assert str(caught.value).startswith("the baseline failed: ")
    assert "scaler" in str(caught.value)


@pytest.mark.parametrize("survived", [0, 1, 3])
def test_a_bundle_that_falls_out_is_one_line(
    exact_bundle: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    def failing(entrants: dict[str, Any], *_: Any, **__: Any) -> Iterator[Round]:
        for number in itertools.count():
            block = dict.fromkeys(entrants, (1_000_000,) * 3)
            failed = {"bundle": "it crashed"} if number == survived else {}
            yield Round(
                number, {who: block[who] for who in block if who not in failed}, failed, True
            )

    monkeypatch.setattr("hasten.measure.race.rounds", failing)
    with pytest.raises(hasten.CandidateError) as caught:
        hasten.bench(exact_bundle, rounds=4)
    assert str(caught.value) == "the bundle failed: it crashed"


@pytest.mark.parametrize("opening", [1e9, 0.0])
def test_the_interval_covers_how_two_processes_of_one_model_differ(
    exact_bundle: Path, monkeypatch: pytest.MonkeyPatch, opening: float
) -> None:
    """Rounds of one process each say that a model is surely slower than itself."""
    lasting = (100_000, 104_000, 105_000, 103_000, 100_000, 99_000, 104_000, 103_000, 104_000)
    opened = WeakKeyDictionary[Worker, int]()
    ask = Worker.ask

    def told(self: Worker, do: str, **command: Any) -> Any:
        reply = ask(self, do, **command)
        if do != "time":
            return reply
        number = opened.setdefault(self, len(opened))
        return [lasting[number % len(lasting)]] * len(reply)

    monkeypatch.setattr(rivals, "_OPENING", opening)
    monkeypatch.setattr(Worker, "ask", told)
    result = hasten.bench(exact_bundle, rounds=12)
    covered = result.bundle.ratio.low <= 1 <= result.bundle.ratio.high
    assert covered == (opening > 0)
    assert (rivals.ALONE in result.notes) == (opening == 0)


@pytest.mark.parametrize("rounds", [4, 400])
def test_a_time_limit_ends_the_rounds_and_is_said(exact_bundle: Path, rounds: int) -> None:
    """With several processes of each model, and with one."""
    result = hasten.bench(exact_bundle, rounds=rounds, time_limit_s=1e-3)
    assert result.notes == (
        rivals.ALONE,
        "the time limit cut the comparison short: 2 rounds counted",
    )


def test_a_time_limit_leaves_out_further_processes(
    exact_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first set of three, there is no time for another one."""
    monkeypatch.setattr(rivals, "_OPENING", 1e9)
    monkeypatch.setattr(rivals, "_without_time", lambda deadline: lambda standings: False)
    result = hasten.bench(exact_bundle, rounds=12, time_limit_s=1e-3)
    assert result.notes[0] == rivals.ALONE
    assert result.notes[1].startswith("the time limit cut the comparison short: ")
    assert hasten.bench(exact_bundle, rounds=12, time_limit_s=1e6).notes == ()


def test_a_time_limit_that_is_too_short_for_anything_is_said(
    exact_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(limit_s: float) -> Deadline:
        return Deadline(limit_s, began=time.monotonic() - 100)

    monkeypatch.setattr(benchmark, "Deadline", late)
    result = hasten.bench(exact_bundle, rounds=4, time_limit_s=2)
    assert result.notes[-1].startswith(
        "the time limit of 2 s was too short for what every comparison needs (reading the bundle, opening both "
        "models, two rounds): this took 1"
    )


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "5s"])
def test_a_time_limit_is_a_time(exact_bundle: Path, limit: Any) -> None:
    with pytest.raises(hasten.InputError) as caught:
        hasten.bench(exact_bundle, time_limit_s=limit)
    assert str(caught.value) == f"the time limit is in seconds, above 0: got {limit!r}"


@pytest.fixture
def crafted(exact_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exact_bundle, tmp_path / "crafted.hasten")


def shaped(*shape: int) -> dict[str, Any]:
    return {"name": "x", "dtype": "float32", "shape": shape}


@pytest.mark.parametrize(
    ("shape", "mebibytes"),
    [([1, 2**30], "4,096"), ([1, 2**31 - 1], "8,192"), ([2**31 - 1] * 32, "1.597e+293")],
)
def test_a_request_that_takes_too_much_memory_is_not_made_up(
    crafted: Path, shape: list[int], mebibytes: str
) -> None:
    artifact = {"inputs": [shaped(*shape)], "request": [shaped(*shape)]}

    def change(record: dict[str, Any]) -> None:
        record["winner"]["artifact"].update(artifact)
        record.update(requests=0)

    forge(crafted, change)
    with pytest.raises(hasten.InputError) as caught:
        hasten.bench(crafted)
    assert str(caught.value) == (
        f"a random request of this model would take {mebibytes} MiB, more than the limit of 256 MiB: "
        "give real requests with data="
    )


@pytest.mark.seconds
def test_large_random_requests_are_fewer() -> None:
    assert len(random_requests((TensorSpec("x", "float32", (1, 16)),), seed=0)) == 64
    large = random_requests((TensorSpec("x", "uint8", (1, 5, 2**23)),), seed=0)
    assert (len(large), large.inputs([5])["x"].shape) == (6, (1, 5, 2**23))


def test_a_bundle_asks_for_no_more_threads_than_there_are(
    crafted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(crafted, lambda record: record["winner"]["engine"].update(threads=10**9))
    seen = []

    def race(other: Any, winner: Any, *rest: Any) -> Any:
        seen.append(winner.engine)
        raise hasten.CandidateError("seen enough")

    monkeypatch.setattr("hasten.evaluation.rivals._race", race)
    with pytest.raises(hasten.CandidateError):
        hasten.bench(crafted)
    assert seen == [OnnxRuntime(threads=1)]  # one core is what these runs have


def test_a_bundle_is_timed_on_the_threads_that_it_is_opened_with(
    crafted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a larger machine too: `load` opens it on as many as it was made for."""
    here = at_hand
    monkeypatch.setattr(benchmark, "at_hand", lambda made: here(made).with_threads(8))
    seen = []

    def seen_raced(*given: Any) -> Any:
        seen.append(given[-1].threads)
        return raced(*given)

    monkeypatch.setattr(benchmark, "raced", seen_raced)
    result = hasten.bench(crafted, rounds=4)
    assert seen == [1]
    assert result.threads == 1
    assert result.notes == (
        rivals.ALONE,
        "the bundle runs on 1 thread, those that it was made for, so both have as many here, where there are 8: run "
        "hasten optimize on this machine for a bundle that uses all",
    )
