"""A certified bundle answers in batches of the sizes that its certificate covers, and in no others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.support.bundles import built, forge, stated

from hasten.bundle import NotCertifiedHere, load, write
from hasten.bundle.covered import split
from hasten.cli import main
from hasten.core.tensors import Tensors
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.pool import SessionPool
from hasten.testing import models
from hasten.testing.models import write as written

ONE_THREAD = OnnxRuntime(threads=1)
CENTERED = """
    centered (float[batch, 16] x) => (float[batch, 16] y) {
        mean = ReduceMean <axes = [0], keepdims = 1> (x)
        y = Sub(x, mean)
    }"""
"""A row's answer depends on all rows."""


def bundle(folder: Path, certificate: Any, model: Path | None = None, **fields: Any) -> Path:
    part = built(folder, model or models.linear_classifier(folder), ONE_THREAD)
    write(folder / "b", stated(part, part, certificate=certificate, **fields), {})
    return folder / "b"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of all requests that engines get from now on."""
    rows: list[int] = []
    run = SessionPool.run

    def noted(self: SessionPool, inputs: Tensors) -> Any:
        rows.append(len(inputs["x"]))
        return run(self, inputs)

    monkeypatch.setattr(SessionPool, "run", noted)
    return rows


def some(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rows).standard_normal((rows, 16), np.float32)


@pytest.mark.parametrize(
    ("stated_sizes", "rows", "parts"),
    [
        ([1, 2, 4], 4, [4]),
        ([1, 2, 4], 7, [4, 2, 1]),
        ([1, 2, 4], 1, [1]),
        ([4], 6, [4, 1, 1]),
        ([1], 3, [1, 1, 1]),
        (None, 2, [1, 1]),  # an old certificate, or one that somebody damaged
        ([0, -3, True, 2.0, "8", 2**40], 2, [1, 1]),
        ("1, 2", 2, [1, 1]),
    ],
)
def test_a_request_is_answered_in_parts_that_are_certified_without_a_warning(
    tmp_path: Path, asked: list[int], stated_sizes: Any, rows: int, parts: list[int]
) -> None:
    path = bundle(tmp_path, {"batch_sizes": stated_sizes})
    x = some(rows)
    with warnings.catch_warnings(), load(path) as loaded:
        warnings.simplefilter("error", NotCertifiedHere)
        got = loaded(x)["logits"]
        assert asked == parts
        assert loaded.not_certified == ()
        alone = np.concatenate([loaded(x[n : n + 1])["logits"] for n in range(rows)])
    assert np.allclose(got, alone, rtol=1e-5)


def test_answers_that_depend_on_the_batch_are_those_of_the_certified_size(tmp_path: Path) -> None:
    path = bundle(tmp_path, {"batch_sizes": [1, 2]}, written(tmp_path / "m.onnx", CENTERED, {}))
    x = some(4)
    halves = np.concatenate([half - half.mean(axis=0, keepdims=True) for half in (x[:2], x[2:])])
    with load(path) as loaded:
        assert np.allclose(loaded(x)["y"], halves, atol=1e-6)
    with load(path, any_batch=True) as loaded:
        with pytest.warns(NotCertifiedHere, match="4 rows at once: not certified at this batch"):
            whole = loaded(x)["y"]
        assert loaded.not_certified == (
            "4 rows at once: not certified at this batch size, but at 1 and 2",
        )
    assert np.allclose(whole, x - x.mean(axis=0, keepdims=True), atol=1e-6)


def test_bound_arrays_of_another_size_are_warned_of(tmp_path: Path) -> None:
    with load(bundle(tmp_path, {"batch_sizes": [1, 2]})) as loaded:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded.bind(some(2), np.zeros((2, 4), np.float32))
        with pytest.warns(NotCertifiedHere, match="3 rows at once"):
            loaded.bind(some(3), np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("status", ["exact", "uncertified"])
def test_what_is_not_certified_runs_as_it_comes(
    tmp_path: Path, asked: list[int], status: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with load(bundle(tmp_path, None, status=status)) as loaded:
            loaded(some(7))
            assert (loaded.keeps_to, loaded.certified_batches, asked) == (None, None, [7])


def test_an_engine_that_computes_rows_apart_takes_any_batch(
    tmp_path: Path, asked: list[int]
) -> None:
    part = built(tmp_path, models.linear_classifier(tmp_path), CompiledC(threads=1))
    write(tmp_path / "b", stated(part, part, certificate={"batch_sizes": [1]}), {})
    with warnings.catch_warnings(), load(tmp_path / "b") as loaded:
        warnings.simplefilter("error", NotCertifiedHere)
        loaded(some(5))
        assert (loaded.keeps_to, asked) == (None, [5])


def test_inspect_says_which_batches_are_covered(tmp_path: Path) -> None:
    path = bundle(tmp_path, {"batch_sizes": [1, 2], "batches": "batches of 1, 2, tested"})
    told = CliRunner().invoke(main, ["inspect", str(path)]).output
    assert "batches:      batches of 1, 2, tested\n" in told
    forge(path, lambda record: record["certificate"].pop("batches"))
    told = CliRunner().invoke(main, ["inspect", str(path)]).output
    assert "lone samples only: it was certified before batches were tested\n" in told


def test_parts_are_the_largest_that_fit() -> None:
    assert split(0, (1, 8)) == []
    assert split(27, (1, 2, 8)) == [8, 8, 8, 2, 1]
