"""Whole runs on scores: the AUROC as the promise, and what is stated before and after."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser
from sklearn.metrics import roc_auc_score
from tests.support.bundles import forge
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.cli.card import details
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.measure.latency import Round
from hasten.reporting.result import Result

pytestmark = pytest.mark.seconds

FEATURES, ROWS = 8, 1400
DECIDES = Pipeline(
    (Row(columns=tuple(f"c{i}" for i in range(FEATURES))),),
    (Threshold(threshold=0.4, position=1, labels=("grant", "refuse")),),
)


def scorer(folder: Path) -> Path:
    """Write x: float32[n, 8] -> p: float32[n, 2], a small network that ranks `rows` well."""
    text = """<ir_version: 10, opset_import: ["": 17]>
        scorer (float[n, 8] x) => (float[n, 2] p) {
            product = MatMul(x, w1)
            hidden = Relu(product)
            logits = MatMul(hidden, w2)
            p = Softmax <axis: int = 1> (logits)
        }"""
    rng = np.random.default_rng(1)
    w1 = rng.standard_normal((FEATURES, 32), np.float32)
    w2 = np.stack([-w1[0], w1[0]], axis=1) / 16
    model = parser.parse_model(text)
    for name, weight in (("w1", w1), ("w2", w2)):
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "scorer.onnx")
    return folder / "scorer.onnx"


def rows(count: int, seed: int) -> tuple[dict[str, Array], Array]:
    """Rows whose first column tells their label as a rule."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES), np.float32)
    return {"x": x}, (x[:, 0] + 0.8 * rng.standard_normal(count) > 0.3).astype(np.int64)


def steady(entrants: dict[str, Any], *_: Any, first: int = 0, **__: Any) -> Iterator[Round]:
    """Rounds by a clock of their own: the baseline takes 8 ms, all else 1."""
    for number in itertools.count(first):
        block = {who: 8_000_000 if who.startswith("baseline") else 1_000_000 for who in entrants}
        yield Round(number, {who: (ns,) * 3 for who, ns in block.items()}, {}, True)


def optimize(folder: Path, **options: Any) -> Result:
    with quick_runs(passes=True, races=False), pytest.MonkeyPatch.context() as patch:
        for place in ("hasten.optimization.measured.screening", "hasten.measure.race"):
            patch.setattr(f"{place}.rounds", steady)
        return hasten.optimize(
            scorer(folder),
            rows(ROWS, seed=0),
            out=folder / "b.hasten",
            pipeline=DECIDES,
            **options,
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("scores")
    return optimize(
        folder,
        metric="auroc",
        max_drop=0.05,
        engines=("onnxruntime",),
        passes=("dynamic_quantization",),
    )


def test_the_auroc_is_promised_by_disjoint_comparisons(made: Result) -> None:
    assert made.status == "certified", made.why
    assert made.why.startswith("95% confident that AUROC falls by at most")
    assert "disjoint comparisons: observed" in made.why
    assert made.judgement is not None
    assert (made.judgement.metric, made.judgement.method) == ("auroc", "betting")


def test_figures_are_of_the_sealed_rows_before_and_after(made: Result) -> None:
    found = made.comparison
    assert found is not None
    assert [one.noun for one in found.figures] == [
        "AUROC",
        "KS",
        "Brier score",
        "log loss",
        "calibration error",
    ]
    sealed = json.loads((made.bundle / "evidence" / "sealed.json").read_text())["hashes"]
    assert found.rows == len(sealed)
    inputs, labels = rows(ROWS, seed=0)
    data = ArrayDataset(inputs, labels)
    chosen = [i for i in range(ROWS) if data.content_hash(i).hex() in set(sealed)]
    with hasten.load(made.bundle) as model:
        p = np.array([model(x=inputs["x"][i : i + 1])["p"][0, 1] for i in chosen])
    assert found.figures[0].after == pytest.approx(roc_auc_score(labels[chosen], p), abs=1e-4)
    assert found.moved is not None
    assert found.moved.threshold == 0.4
    assert 0 < found.moved.largest < 0.2


def test_the_comparison_is_in_the_bundle_the_report_and_on_the_screen(made: Result) -> None:
    assert made.comparison is not None
    lines = made.comparison.in_words()
    assert read(made.bundle).comparison == made.comparison
    said = CliRunner().invoke(main, ["inspect", str(made.bundle)]).output
    assert all(line in said for line in lines)
    assert all(line in details(made) for line in lines)
    page = (made.bundle / "report.html").read_text()
    assert "Before and after" in page
    assert "None of this chose what ships" in page


def test_without_labels_the_numbers_of_each_output_are_compared(tmp_path: Path) -> None:
    with quick_runs(passes=True, races=False), pytest.MonkeyPatch.context() as patch:
        for place in ("hasten.optimization.measured.screening", "hasten.measure.race"):
            patch.setattr(f"{place}.rounds", steady)
        found = hasten.optimize(
            scorer(tmp_path),
            rows(ROWS, seed=0)[0],
            out=tmp_path / "b.hasten",
            max_drop=0.2,
            engines=("onnxruntime",),
            passes=("dynamic_quantization",),
        ).comparison
    assert found is not None
    assert (found.figures, found.moved) == ((), None)
    (output,) = found.outputs
    assert output.output == "p"
    assert 0 < output.mean < output.largest < 0.2
    assert read(tmp_path / "b.hasten").comparison == found
    said = CliRunner().invoke(main, ["inspect", str(tmp_path / "b.hasten")]).output
    assert found.in_words()[0] in said
    page = (tmp_path / "b.hasten" / "report.html").read_text()
    assert f"Of {found.rows:,} rows: p differs by at most" in page
    recheck = hasten.certify(tmp_path / "b.hasten", rows(300, seed=1)[0], max_drop=0.2)
    assert recheck.comparison is not None
    assert [one.output for one in recheck.comparison.outputs] == ["p"]


def test_a_comparison_that_was_changed_is_found(made: Result, tmp_path: Path) -> None:
    bundle = tmp_path / "b.hasten"
    shutil.copytree(made.bundle, bundle)
    forge(bundle, lambda record: record["comparison"]["figures"][0].update(bound=-1.0))
    with pytest.raises(IntegrityError, match="a comparison's bound of AUROC is out of range"):
        read(bundle)
    forge(bundle, lambda record: record["comparison"]["figures"][0].update(bound=0.0))
    with pytest.raises(
        IntegrityError, match="its comparison with the original differs from the manifest"
    ):
        hasten.report(bundle)


def test_certify_states_the_figures_on_new_rows(made: Result) -> None:
    again = hasten.certify(made.bundle, rows(600, seed=5))
    assert again.passed
    assert again.comparison is not None
    assert again.comparison.rows == 600
    assert again.comparison.figures[0].noun == "AUROC"
    assert "decisions" in again.in_words().splitlines()[-1]
    alone = hasten.certify(made.bundle, rows(600, seed=5), report=("log_loss",), metric="top1")
    assert alone.comparison is not None
    assert [one.noun for one in alone.comparison.figures] == ["log loss"]


def test_new_rows_without_a_class_are_said_to_lack_it(made: Result) -> None:
    inputs, labels = rows(120, seed=6)
    with pytest.raises(InputError, match="auroc needs samples of both classes; there are 0 of cla"):
        hasten.certify(made.bundle, (inputs, 0 * labels))
    found = hasten.certify(
        made.bundle, (inputs, 0 * labels), metric="brier", report=("auroc", "log_loss")
    )
    assert found.comparison is not None
    assert [one.noun for one in found.comparison.figures] == ["log loss"]
    assert found.comparison.missing == (
        "AUROC: not computed: auroc needs samples of every class, but none of the 120 samples "
        "has class 1",
    )


def test_an_exact_model_is_compared_once_though_nothing_needs_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {
        "passes": (),
        "report": ("auroc",),
        "engines": ("tests.support.rivals:ExactAndQuick",),
    }

    def stop(*_: object) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("hasten.optimization.optimize.deliver", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            optimize(tmp_path, **asked)
    monkeypatch.setattr("hasten.optimization.sealed.sealed_scores", stop)  # it was read once
    result = optimize(tmp_path, resume=True, **asked)
    assert result.status == "exact"
    assert result.speedup > 2
    assert result.comparison is not None
    assert result.comparison.figures[0].noun == "AUROC"
    assert result.comparison.moved is not None
    assert "is bit-equal; 0 of" in result.comparison.in_words()[-1]


def test_labels_of_one_class_are_refused_before_the_search(tmp_path: Path) -> None:
    inputs, labels = rows(300, seed=0)
    with pytest.raises(InputError, match="auroc needs samples of both classes; there are 0 of"):
        hasten.optimize(
            scorer(tmp_path), (inputs, 0 * labels), metric="auroc", out=tmp_path / "b.hasten"
        )
