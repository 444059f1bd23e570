"""Batches of samples that differ in shape: certified, certified again, formed by a server."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.test_ragged_requests import asked
from tests.support import ragged
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of

import hasten
from hasten.bundle import load, read
from hasten.engines.buckets import Buckets
from hasten.measure.candidate import Trial
from hasten.measure.latency import Round
from hasten.optimization import batching as sizes
from hasten.optimization.measured.screening import Screening
from hasten.reporting.result import Result
from hasten.serving.models import batching
from hasten.serving.models.scheduling import BatchRun

pytestmark = pytest.mark.seconds


@contextlib.contextmanager
def int8_wins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let int8 in buckets be fastest, then int8, and every batch pay: the network is too small for any of this."""
    screen = Screening._screen
    took_ns = {"candidate": 8_000_000}

    def screened(self: Screening, trial: Trial, opened: Any) -> Trial:
        candidate = trial.candidate
        own_ns = 8_000_000
        if candidate.passes:
            own_ns = 1_000_000 if isinstance(candidate.engine, Buckets) else 2_000_000
        took_ns["candidate"] = took_ns[candidate.key] = own_ns
        return screen(self, trial, opened)

    def rounds(entrants: dict[str, Any], *_: Any, first: int = 0, **__: Any) -> Iterator[Round]:
        took = {who: took_ns.get(who, 8_000_000) for who in entrants}
        for number in itertools.count(first):
            yield Round(number, {who: (ns,) * 3 for who, ns in took.items()}, {}, True)

    monkeypatch.setattr(Screening, "_screen", screened)
    monkeypatch.setattr(sizes, "_PAYS", 1e9)
    monkeypatch.setattr(sizes, "_LEAST_S", 1e9)
    for place in ("hasten.optimization.measured.screening", "hasten.measure.race"):
        monkeypatch.setattr(f"{place}.rounds", rounds)
    with quick_runs(passes=True, races=False):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Bundle of an encoder in int8 that is padded to buckets, certified at several batch sizes."""
    folder = tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch, int8_wins(patch):
        result = hasten.optimize(
            ragged.encoder(folder),
            ragged.sentences(1500),
            out=folder / "encoder.hasten",
            passes=["dynamic_quantization"],
            engines=["onnxruntime"],
            metric="agreement@logits",
            max_drop=0.1,
        )
    return folder / "encoder.hasten", result


def test_samples_of_unlike_shapes_are_certified_in_batches(made: tuple[Path, Result]) -> None:
    path, result = made
    assert result.status == "certified", result.why
    assert result.batches.startswith("batches of 1, 2, 4")
    certificate = read(path).certificate
    assert certificate is not None
    assert certificate["batch_sizes"][:3] == [1, 2, 4]


def test_the_certificate_is_tested_in_batches_on_new_samples(made: tuple[Path, Result]) -> None:
    samples = ragged.sentences(900, seed=3)
    found = hasten.certify(made[0], samples, max_drop=0.1, batch_sizes=[1, 2, 4])
    assert found.passed
    assert found.coverage is not None
    assert found.coverage.sizes == (1, 2, 4)


def test_a_server_puts_unlike_requests_into_one_certified_batch(
    made: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[list[int]] = []
    run = batching._Thread.run

    def noted(self: batching._Thread, batch: BatchRun[batching.ServerTask]) -> object:
        shared.append([item.inputs["ids"].shape[1] for item in batch.items])
        return run(self, batch)

    monkeypatch.setattr(batching._Thread, "run", noted)
    samples = ragged.sentences(120, seed=5)
    requests = [{name: rows[place][None] for name, rows in samples.items()} for place in range(120)]
    with load(made[0]) as loaded:
        alone = [loaded(one) for one in requests]
    with ServerThread(place_of(made[0])) as server, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: asked(server.http_url, one), requests))
    for got, own in zip(answers, alone, strict=True):
        for name, array in own.items():
            assert got[name].shape == array.shape
            np.testing.assert_allclose(
                got[name], array, atol=0.05
            )  # int8 has a scale for each batch
    sizes = read(made[0]).certificate["batch_sizes"]  # type: ignore[index]
    assert {len(lengths) for lengths in shared} <= set(sizes)
    assert any(len(set(lengths)) > 1 for lengths in shared)
