"""Whole runs on models with outputs whose size depends on a sample's values, and what is made of these outputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.support import varying
from tests.support.bundles import forge
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import Manifest, NotCertifiedHere, read
from hasten.bundle.batch_mates import share_batch_axis
from hasten.core.records import to_record
from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.reporting.result import Result
from hasten.testing import models

COVERED = (
    "this doesn't cover the outputs 'selected', 'boxes', whose size depends on the sample's values"
)


def run(
    folder: Path, rival: str, metric: str = "agreement@kind", **options: Any
) -> tuple[Result, Manifest]:
    out = folder / "b.hasten"
    with quick_runs():
        result = hasten.optimize(
            varying.detector(folder),
            varying.pictures(400),
            metric=metric,
            max_drop=0.1,
            out=out,
            engines=[rival],
            **options,
        )
    return result, read(out)


def own(model: Path, given: dict[str, Array]) -> list[dict[str, Array]]:
    """ONNX Runtime's own answers to each sample alone."""
    session = onnxruntime.InferenceSession(model)
    names = [output.name for output in session.get_outputs()]
    ((name, array),) = given.items()
    return [dict(zip(names, session.run(None, {name: row[None]}), strict=True)) for row in array]


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Manifest]:
    """A bundle of a model that isn't exact, and answers other boxes."""
    folder = tmp_path_factory.mktemp("certified")
    result, manifest = run(folder, "tests.support.varying:InexactFewer")

    def right(record: dict[str, Any]) -> None:
        """Have an engine that everyone has answer in place of the rival and of the busy original."""
        for part in (record["winner"], record["exact"]):
            part["engine"] = to_record(OnnxRuntime(threads=1))

    forge(folder / "b.hasten", right)
    return folder, result, manifest


def test_an_inexact_model_is_certified_without_the_boxes_which_the_result_says(
    certified: tuple[Path, Result, Manifest],
) -> None:
    _, result, manifest = certified
    assert (result.status, manifest.varying) == ("certified", ("selected", "boxes"))
    assert manifest.certificate is not None
    assert manifest.certificate["words"].endswith(COVERED)
    assert manifest.certificate["batch_sizes"] == [1]
    assert manifest.certificate["batches"].endswith(
        "nothing says which sample of a batch each row belongs to in the outputs 'selected', 'boxes', whose size "
        "depends on the sample's values"
    )
    said = "no certificate covers the outputs 'selected', 'boxes', whose size depends on the sample's values"
    assert [note for note in result.notes if note.startswith(said)]


def test_the_bundle_answers_whole_boxes_to_several_threads(
    certified: tuple[Path, Result, Manifest],
) -> None:
    folder, _, _ = certified
    given = varying.pictures(60, seed=2)
    wanted = own(folder / "detector.onnx", given)
    with hasten.load(folder / "b.hasten") as loaded, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda row: loaded(row[None]), given["picture"]))
        with pytest.warns(NotCertifiedHere, match=r"picture of shape \[1, 3, 8, 8\] there"):
            many = loaded(given["picture"][:20])
        for refused in (loaded.bind, loaded.decide_rows):
            with pytest.raises(InputError, match="'boxes', whose size depends on the sample's"):
                refused([])
    for answer, alone in zip(answers, wanted, strict=True):
        assert {n: a.shape for n, a in answer.items()} == {n: a.shape for n, a in alone.items()}
        np.testing.assert_allclose(answer["boxes"], alone["boxes"], atol=1e-5)
    assert len({len(answer["boxes"]) for answer in answers}) > 3
    counts = np.bincount(many["selected"][:, 0], minlength=20)  # the model's own answer to a batch
    assert counts.tolist() == [len(one["boxes"]) for one in wanted[:20]]


def test_the_bundle_is_certified_again(certified: tuple[Path, Result, Manifest]) -> None:
    folder, _, _ = certified
    with quick_runs(races=False):
        recheck = hasten.certify(folder / "b.hasten", varying.pictures(300, seed=3), max_drop=0.1)
    assert recheck.judgement.verdict.value == "certified"
    assert COVERED in recheck.notes
    with pytest.raises(InputError) as error:
        hasten.certify(
            folder / "b.hasten", varying.pictures(300, seed=3), max_drop=0.1, batch_sizes=[4]
        )
    assert str(error.value) == (
        "nothing says which sample of a batch each row belongs to in the outputs 'selected', 'boxes', whose size depends "
        "on the sample's values: leave out the batch sizes"
    )


def test_a_model_that_answers_all_boxes_alike_ships_as_exact(tmp_path: Path) -> None:
    result, manifest = run(tmp_path, "tests.support.rivals:ExactAndQuick")
    assert result.status == "exact"
    assert "busy" not in manifest.winner.label
    assert manifest.varying == ("selected", "boxes")


@pytest.mark.parametrize("rival", ["Fewer", "MovedBox", "Swapped"])
def test_a_model_that_answers_other_boxes_is_never_exact(tmp_path: Path, rival: str) -> None:
    result, manifest = run(tmp_path, f"tests.support.varying:{rival}")
    assert not (result.status == "exact" and "busy" not in manifest.winner.label)


def test_the_metric_that_reads_all_outputs_reads_these_too(tmp_path: Path) -> None:
    result, manifest = run(tmp_path, "tests.support.varying:InexactFewer", "same_answers")
    assert result.status == "exact"
    assert "busy" in manifest.winner.label


def test_a_run_without_data_compares_them(tmp_path: Path) -> None:
    model = varying.detector(tmp_path)
    with quick_runs(races=False):
        result = hasten.optimize(model, out=tmp_path / "b.hasten", engines=["onnxruntime"])
    assert (result.status, read(tmp_path / "b.hasten").varying) == ("exact", ("selected", "boxes"))


def test_they_are_found_where_no_two_samples_have_the_same_shape(tmp_path: Path) -> None:
    x = [np.linspace(-length, 0.5, length).astype(np.float32) for length in range(3, 203)]
    for row in x[::2]:
        row[1] = 1  # so that two are found
    with quick_runs(races=False):
        hasten.optimize(
            varying.lengths(tmp_path),
            {"x": x},
            metric="regression:0.1@y",
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert read(tmp_path / "b.hasten").varying == ("positive",)


@pytest.mark.parametrize("ids", ["[1, s]", "[n, s]", "[s]"])
def test_an_output_with_a_row_for_each_token_is_none_of_them(tmp_path: Path, ids: str) -> None:
    """Texts of one token have one row, which the worker takes for the batch's axis."""
    model = models.write(
        tmp_path / "tokens.onnx",
        f"""tokens (int64{ids} ids) => (float[t, 4] y) <int64[2] rows = {{-1, 4}}> {{
            table_rows = Gather (table, ids)
            each = MatMul (table_rows, w)
            y = Reshape (each, rows)
        }}""",
        {"table": (10, 8), "w": (8, 4)},
    )
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 10, length) for length in rng.integers(1, 6, 200)]
    with quick_runs(races=False):
        result = hasten.optimize(
            model,
            {"ids": texts},
            metric="same_answers",
            max_drop=0.1,
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert result.status in ("exact", "certified")
    assert read(tmp_path / "b.hasten").varying == ()


def test_what_nonzero_finds_needs_no_metric_where_another_output_has_one(tmp_path: Path) -> None:
    model, x = varying.places(tmp_path), np.random.default_rng(0).standard_normal((300, 6))
    with quick_runs(races=False):
        result = hasten.optimize(
            model,
            {"x": x.astype(np.float32)},
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert read(tmp_path / "b.hasten").varying == ("positive",)
    assert result.status == "exact"
    (alone,) = own(model, {"x": x[:1].astype(np.float32)})
    with hasten.load(tmp_path / "b.hasten") as loaded:
        answer = loaded(x[:1].astype(np.float32))
    assert answer["positive"].tolist() == alone["positive"].tolist()


def test_no_batches_are_formed_even_if_each_sample_had_one_row(tmp_path: Path) -> None:
    x = (
        np.where(np.arange(6) == np.arange(300)[:, None] % 6, 1, -1)
        * np.linspace(1, 2, 300)[:, None]
    )
    with quick_runs(races=False):
        hasten.optimize(
            varying.places(tmp_path),
            {"x": x.astype(np.float32)},
            metric="regression:0.1@y",
            out=tmp_path / "b.hasten",
            engines=["onnxruntime"],
        )
    assert read(tmp_path / "b.hasten").varying == ()
    with hasten.load(tmp_path / "b.hasten") as loaded:
        assert not share_batch_axis(loaded.inputs, loaded.outputs)
