"""Whole runs of models of rows: optimized, decided on in Python and served, each as by its own library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of

import hasten
from hasten.bundle import read
from hasten.errors import InputError
from hasten.evaluation.agreement import ExactCheck

pytestmark = pytest.mark.seconds

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn", reason="needs the extra tabular")
RNG = np.random.default_rng(0)
SIZE, TRAINED, FRESH = 800, 300, 100
FRAME = pandas.DataFrame(
    {
        "age": RNG.integers(18, 80, SIZE).astype(float),
        "income": np.round(RNG.lognormal(8, 0.5, SIZE), 2),
        "owner": RNG.random(SIZE) < 0.5,
        "housing": RNG.choice(["own", "rent", "free"], SIZE),
    }
)
FRAME.loc[RNG.random(SIZE) < 0.1, "income"] = np.nan
GOOD = (FRAME.age > 45) ^ FRAME.owner ^ (FRAME.housing == "rent")
NAMED = np.where(GOOD, "good", "bad")
WORTH = FRAME.income.fillna(0) / 1000 + GOOD
NUMBERS = FRAME.drop(columns="housing").astype({"owner": float})


@dataclass(frozen=True)
class Scorer:
    """A fitted model with the rows that it takes.

    Attributes:
        model: The live model, or the file that its library wrote.
        rows: All rows; those from `TRAINED` on weren't in the training data.
        own: The library's own answers to rows: probabilities, or numbers.
        labels: Label of each row.
        odd: Values that rows may have, though training had none such.
        refused: Values that rows may not have, with what is said of each.
        options: Further settings of the run.
    """

    model: Any
    rows: Any
    own: Callable[[Any], Any]
    labels: Any
    odd: tuple[dict[str, Any], ...] = ({"age": None}, {"income": None, "owner": None})
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"age": "old"}, "the column 'age' needs a number: got a text"),
    )
    options: dict[str, Any] = field(default_factory=dict)


def lightgbm_with_categories(_: Path) -> Scorer:
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMClassifier(n_estimators=20, num_leaves=8, n_jobs=1, verbose=-1)
    model.fit(FRAME[:TRAINED].astype({"housing": "category"}), NAMED[:TRAINED])

    def own(rows: Any) -> Any:
        return model.predict_proba(rows.astype({"housing": "category"}))

    odd = ({"housing": "boat"}, {"housing": None, "age": None}, {"owner": None})
    return Scorer(model, FRAME, own, NAMED, odd)


def xgboost_from_a_file(folder: Path) -> Scorer:
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=20, max_depth=4, n_jobs=1)
    model.fit(NUMBERS[:TRAINED], GOOD[:TRAINED].astype(int))
    model.save_model(folder / "model.ubj")
    return Scorer(folder / "model.ubj", NUMBERS, model.predict_proba, GOOD.astype(int))


def catboost_from_a_file(folder: Path) -> Scorer:
    catboost = pytest.importorskip("catboost")
    model = catboost.CatBoostClassifier(
        iterations=20, depth=4, thread_count=1, verbose=False, allow_writing_files=False
    )
    model.fit(NUMBERS[:TRAINED], NAMED[:TRAINED])
    model.save_model(str(folder / "model.cbm"))
    odd = ({"income": None}, {"age": None}, {"age": 1e30})
    return Scorer(folder / "model.cbm", NUMBERS, model.predict_proba, NAMED, odd)


def catboost_with_its_own_categories(folder: Path) -> Scorer:
    catboost = pytest.importorskip("catboost")
    rows = FRAME.astype({"owner": int}).assign(town=RNG.integers(0, 30, SIZE))
    model = catboost.CatBoostClassifier(
        iterations=20,
        depth=4,
        one_hot_max_size=2,
        cat_features=["owner", "housing", "town"],
        thread_count=1,
        verbose=False,
        allow_writing_files=False,
    )
    model.fit(rows[:TRAINED], NAMED[:TRAINED])
    model.save_model(str(folder / "model.json"), format="json")
    odd: tuple[dict[str, Any], ...] = (
        {"income": None},
        {"housing": "boat"},
        {"town": "Ulm", "owner": 7},
    )
    broken = "the column 'town' needs a text or a whole number: got 7.5, a number with a point"
    refused = (
        ({"housing": None}, "the column 'housing' has no value: give one"),
        ({"town": 7.5}, broken),
    )
    return Scorer(folder / "model.json", rows, model.predict_proba, NAMED, odd, refused)


def pipeline_of_scikit_learn(_: Path) -> Scorer:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["housing"]),
        (SimpleImputer(strategy="median"), ["age", "income", "owner"]),
    )
    rows = FRAME.astype({"owner": float})
    model = make_pipeline(columns, RandomForestClassifier(10, max_depth=5, random_state=0))
    model.fit(rows[:TRAINED], NAMED[:TRAINED])
    odd = ({"housing": "boat"}, {"age": None, "income": None})
    return Scorer(model, rows, model.predict_proba, NAMED, odd)


def regression_of_lightgbm(folder: Path) -> Scorer:
    lightgbm = pytest.importorskip("lightgbm")
    model = lightgbm.LGBMRegressor(n_estimators=20, num_leaves=8, n_jobs=1, verbose=-1)
    model.fit(NUMBERS[:TRAINED], WORTH[:TRAINED])
    model.booster_.save_model(folder / "model.txt")
    options = {"metric": "regression:0.5"}
    return Scorer(folder / "model.txt", NUMBERS, model.predict, WORTH, options=options)


def latencies_of(asked: Asked) -> Sequence[int]:
    """Compiled C takes a tenth of ONNX Runtime's time."""
    return (10_000,) if asked["engine"]["type"] == "compiled" else (100_000,)


def check_alike(decision: Any, own: Any, labels: Any) -> None:
    """Compare a decision with the library's own answer to the row."""
    if "value" in decision:
        assert decision["value"] == pytest.approx(own, rel=1e-12)
        return
    classes = [str(label) for label in np.unique(labels)]
    precision = 1e-12 if own.dtype == np.float64 else 1e-6
    found = {one["label"]: one["score"] for one in decision}
    assert found == pytest.approx(dict(zip(classes, own.tolist(), strict=True)), rel=precision)
    assert decision[0]["label"] == classes[int(np.argmax(own))]


def answered(server: ServerThread, body: Any) -> tuple[int, Any]:
    """Return the status, and the decision or decisions, or what is said instead."""
    url = f"{server.http_url}/v2/models/desk/infer"
    answer = httpx.post(url, json=body, timeout=60)
    told = answer.json()
    return answer.status_code, told.get("decision", told.get("decisions", told.get("error")))


@pytest.mark.parametrize(
    "made",
    [
        lightgbm_with_categories,
        xgboost_from_a_file,
        catboost_from_a_file,
        catboost_with_its_own_categories,
        pipeline_of_scikit_learn,
        regression_of_lightgbm,
    ],
)
def test_a_model_of_rows_is_optimized_and_served_with_the_answers_of_its_library(
    made: Callable[[Path], Scorer], tmp_path: Path
) -> None:
    scorer = made(tmp_path)
    searched, fresh = slice(TRAINED, -FRESH), slice(-FRESH, None)
    out = tmp_path / "desk.hasten"
    with quick_runs(races=False), nominal_times(latencies_of):
        result = hasten.optimize(
            scorer.model,
            (scorer.rows[searched], scorer.labels[searched]),
            engines=("onnxruntime", "compiled"),
            out=out,
            **scorer.options,
        )
        checked = hasten.certify(out, (scorer.rows[fresh], scorer.labels[fresh]))
    assert result.status == "exact", result.why
    assert result.speedup == pytest.approx(10, rel=0.1)
    assert read(out).winner.engine["type"] == "compiled"
    assert isinstance(checked, ExactCheck)
    assert checked.passed
    assert checked.used + checked.left_out == FRESH
    assert checked.left_out < 5  # rows without an income that repeat another one
    rows = scorer.rows[fresh]
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    assert any(None in record.values() for record in records)
    own = scorer.own(rows)
    with hasten.load(out) as fast, ServerThread(place_of(out, compiled=str(tmp_path))) as server:
        decided = [fast.decide(record) for record in records]
        for place, decision in enumerate(decided):
            check_alike(decision, own[place], scorer.labels)
        assert fast.decide_rows(rows) == decided
        bound = fast.bind_row()
        assert [bound(rows.iloc[place]) for place in range(FRESH)] == decided
        for record, decision in zip(records[:20], decided, strict=False):
            assert answered(server, record) == (200, decision)
        assert answered(server, records[:30]) == (200, decided[:30])
        for values in scorer.odd:
            decision = fast.decide(records[0] | values)
            given = {name: np.nan if one is None else one for name, one in values.items()}
            check_alike(decision, scorer.own(rows[:1].assign(**given))[0], scorer.labels)
            assert answered(server, records[0] | values) == (200, decision)
        first, *_ = rows
        lacking = {name: value for name, value in records[0].items() if name != first}
        changed = [(records[0] | values, said) for values, said in scorer.refused]
        for record, said in [(lacking, f"the row has no column {first!r}"), *changed]:
            with pytest.raises(InputError) as error:
                fast.decide(record)
            assert str(error.value) == said
            assert answered(server, record) == (400, said)
