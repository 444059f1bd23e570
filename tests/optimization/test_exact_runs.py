"""Whole runs with a fast rival of exact settings, whose logits stay within rounding but decide ties otherwise."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.support.faults import without_ties
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.progress import Progress
from hasten.core.tensors import Array
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.splits import Splits, split
from hasten.reporting.result import Result
from hasten.testing import models

pytestmark = pytest.mark.seconds

COUNT = 400


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(races=False):
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.linear_classifier(tmp_path)


def logits(model: Path, x: Array) -> Array:
    weight, bias = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer)
    if weight.ndim == 1:
        weight, bias = bias, weight
    return np.asarray(x @ weight + bias)


def samples(model: Path, ties: int) -> Array:
    """Samples without near ties, and some whose two highest scores differ by 1e-4 of the highest."""
    x = np.random.default_rng(0).standard_normal((4 * COUNT, 16), dtype=np.float32)
    scores = logits(model, x)
    x = x[(without_ties(scores) == scores).all(axis=1)]
    weights = [numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer]
    weight = next(w for w in weights if w.ndim == 2).astype(np.float64)
    x, tied = x[: COUNT - ties], x[COUNT - ties : COUNT].astype(np.float64)
    for row in tied:
        second, first = np.argsort(logits(model, row))[-2:]
        toward = weight[:, first] - weight[:, second]
        scores = logits(model, row)
        gap = scores[first] - scores[second] - 1e-4 * abs(scores[first])
        row -= gap * toward / (toward @ toward)
    tied = tied.astype(np.float32)
    scores = logits(model, tied)
    # Only samples in which no third score overtook.
    tied = tied[(without_ties(scores) != scores).any(axis=1)]
    return np.concatenate([x, tied])


def changes(model: Path, x: Array, parts: Splits) -> tuple[int, int]:
    """Return how many answers the rival changes of the search split, and of the sealed data."""
    scores = logits(model, x)
    flips = np.flatnonzero((without_ties(scores) != scores).any(axis=1))
    return tuple(len(np.intersect1d(flips, part.indices)) for part in (parts.search, parts.sealed))  # type: ignore[return-value]


def seed_with(model: Path, x: Array, searched: int, sealed: int) -> int:
    """Return the first seed that draws so many changed answers into the two parts."""
    for seed in range(200):
        parts = split(ArrayDataset({"x": x}), calibration=20, seed=seed)
        if changes(model, x, parts) == (searched, sealed):
            return seed
    raise AssertionError("no seed draws them so")


def optimize(model: Path, x: Array, seed: int, **options: Any) -> Result:
    settings: dict[str, Any] = {
        "max_drop": 0.05,
        "metric": "agreement",
        "calibration": 20,
        **options,
    }
    out = model.parent / "b.hasten"
    shutil.rmtree(out, ignore_errors=True)
    rival = ("tests.support.rivals:ExactButForTies",)
    return hasten.optimize(model, x, out=out, engines=rival, seed=seed, **settings)


def said_of_rival(result: Result) -> str:
    return next(said for label, said in result.tried.items() if "tie" in label)


def test_one_changed_answer_in_the_search_makes_a_candidate_like_any_other(model: Path) -> None:
    x = samples(model, 3)
    result = optimize(model, x, seed_with(model, x, 1, 1))
    assert "exact settings, but 1 answer changed, +0." in said_of_rival(result)
    assert result.status == "certified"
    assert result.judgement is not None
    assert (result.judgement.n, result.judgement.lost) == (266, 1)
    assert read(result.bundle).certificate is not None


def test_an_answer_changed_on_the_sealed_data_alone_is_seen_and_takes_a_certificate(
    model: Path,
) -> None:
    x = samples(model, 2)
    result = optimize(model, x, seed_with(model, x, 0, 2))
    assert result.status == "certified"
    assert result.judgement is not None
    assert (result.judgement.n, result.judgement.lost) == (266, 2)
    (note,) = (note for note in result.notes if "in the search" in note and "kept" in note)
    assert note.endswith(
        "kept every answer in the search, but 2 answers changed of 266 sealed ones, so it "
        "doesn't ship without a certificate"
    )


def test_without_enough_data_for_a_certificate_the_original_ships_instead(model: Path) -> None:
    x = samples(model, 2)
    result = optimize(model, x, seed_with(model, x, 0, 2), max_drop=0.01)
    manifest = read(result.bundle)
    assert (result.status, manifest.status) == ("exact", "exact")
    assert "fault tie" not in result.winner.label
    assert manifest.exact is not None
    assert "fault tie" not in manifest.exact.label


def test_a_candidate_that_changes_no_answer_ships_exempt_and_says_on_how_many_samples(
    model: Path,
) -> None:
    x = samples(model, 0)
    result = optimize(model, x, 0, max_drop=0.01)
    assert result.status == "exact"
    assert "fault tie" in result.winner.label
    assert result.why.startswith(
        "what ships keeps the original's precision, and no answer changed on 380 samples; no inexact form "
    )
    row = next(row for row in result.rows if row.role == "fastest exact")
    assert row.accuracy == "exact: no answer changed on 380 samples"


def test_a_resumed_run_knows_what_fell(model: Path) -> None:
    x = samples(model, 2)
    seed = seed_with(model, x, 0, 2)

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "figures":
            raise StopError

    with pytest.raises(StopError):
        optimize(model, x, seed, max_drop=0.01, listen=stop)
    again = optimize(model, x, seed, max_drop=0.01, resume=True)
    assert again.status == "exact"
    assert "fault tie" not in again.winner.label
    assert any("2 answers changed of 266 sealed ones" in note for note in again.notes)
