"""Runs on models of rows compare hasten's form of the model with the library's own answers first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.quick import quick_runs

import hasten
from hasten.errors import InputError
from hasten.inputs.data.parts import lay_out
from hasten.inputs.data.source import open_data
from hasten.inputs.models.source import find_model
from hasten.inputs.models.tabular import catboost_categories
from hasten.inputs.models.tabular.base import Tabular, described
from hasten.inputs.pipeline.row_reader import RowReader
from hasten.optimization.own_answers import check_own_answers
from hasten.optimization.shapes import typical_sample

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn", reason="needs the extra tabular")
SIZE = 600
RNG = np.random.default_rng(0)
FRAME = pandas.DataFrame(
    {
        "age": RNG.integers(18, 80, SIZE).astype(float),
        "income": np.round(RNG.lognormal(8, 0.5, SIZE), 2),
        "owner": RNG.random(SIZE) < 0.5,
        "housing": RNG.choice(["own", "rent", "free"], SIZE),
        "town": RNG.integers(0, 30, SIZE),
    }
)
FRAME.loc[RNG.random(SIZE) < 0.1, "income"] = np.nan
GOOD = ((FRAME.age > 45) ^ FRAME.owner ^ (FRAME.housing == "rent")).astype(int)
THREE = GOOD + (FRAME.town > 20)
WORTH = FRAME.income.fillna(0) / 1000 + GOOD
NUMBERS = FRAME.drop(columns="housing").astype(float)
GROUPED = FRAME.astype({"housing": "category"})
FEW: dict[str, dict[str, Any]] = {
    "catboost": {"iterations": 9, "thread_count": 1, "verbose": 0, "allow_writing_files": False},
    "lightgbm": {"n_estimators": 9, "n_jobs": 1, "verbose": -1},
    "xgboost": {"n_estimators": 9, "n_jobs": 1},
}


def of(name: str, rows: Any, labels: Any, **settings: Any) -> Any:
    module = pytest.importorskip(name.partition(".")[0])
    kind = getattr(module, name.partition(".")[2])
    return kind(**FEW[module.__name__], **settings).fit(rows, labels)


def booster_of_xgboost(folder: Path) -> Any:
    of("xgboost.XGBClassifier", GROUPED, THREE, enable_categorical=True).save_model(
        folder / "m.ubj"
    )
    return folder / "m.ubj"


def file_of_lightgbm(folder: Path) -> Any:
    of("lightgbm.LGBMClassifier", GROUPED, GOOD).booster_.save_model(folder / "m.txt")
    return folder / "m.txt"


def file_of_catboost(folder: Path) -> Any:
    model = of("catboost.CatBoostClassifier", FRAME, THREE, cat_features=["housing", "town"])
    model.save_model(str(folder / "m.cbm"))
    return folder / "m.cbm"


def scaled(model: Any, rows: Any, labels: Any) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["housing"]),
        (numbers, ["age", "income", "owner", "town"]),
    )
    return make_pipeline(columns, model).fit(rows, labels)


def network(folder: Path) -> Any:
    from sklearn.neural_network import MLPClassifier

    return scaled(MLPClassifier((8,), max_iter=30, random_state=0, tol=10), FRAME, THREE)


def scores(folder: Path) -> Any:
    from sklearn.svm import LinearSVC

    return scaled(LinearSVC(), FRAME, GOOD)


def lightgbm_behind_a_step(folder: Path) -> Any:
    """Return a pipeline whose model takes pandas's categories alone."""
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    module = pytest.importorskip("lightgbm")
    columns = make_column_transformer(
        (StandardScaler(), ["age"]), ("passthrough", ["housing"])
    ).set_output(transform="pandas")
    model = make_pipeline(columns, module.LGBMClassifier(**FEW["lightgbm"]))
    return model.fit(GROUPED[["age", "housing"]], THREE)


def outliers(folder: Path) -> Any:
    from sklearn.ensemble import IsolationForest

    return IsolationForest(n_estimators=9, random_state=0).fit(NUMBERS.fillna(0).to_numpy())


CASES: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "LightGBM, words": (lambda _: of("lightgbm.LGBMClassifier", GROUPED, THREE), FRAME),
    "LightGBM, a file": (file_of_lightgbm, FRAME),
    "LightGBM, numbers": (lambda _: of("lightgbm.LGBMRegressor", NUMBERS, WORTH), NUMBERS),
    "XGBoost, a file of words": (booster_of_xgboost, FRAME),
    "XGBoost, two classes": (lambda _: of("xgboost.XGBClassifier", NUMBERS, GOOD), NUMBERS),
    "XGBoost, counts": (
        lambda _: of("xgboost.XGBRegressor", NUMBERS, WORTH, objective="count:poisson"),
        NUMBERS,
    ),
    "CatBoost, a file of categories": (file_of_catboost, FRAME),
    "CatBoost, counts": (
        lambda _: of("catboost.CatBoostRegressor", NUMBERS, WORTH, loss_function="Poisson"),
        NUMBERS,
    ),
    "CatBoost, two classes": (lambda _: of("catboost.CatBoostClassifier", NUMBERS, GOOD), NUMBERS),
    "a network behind encoders": (network, FRAME),
    "scores behind encoders": (scores, FRAME),
    "LightGBM behind a scaler": (lightgbm_behind_a_step, FRAME[["age", "housing"]]),
    "outliers": (outliers, NUMBERS.fillna(0).to_numpy()),
}


def note_of(found: Tabular, data: Any, folder: Path) -> str:
    """Return the note of the comparison of a model with its library."""
    model = found.export(folder)
    dataset = open_data(data, model.inputs, found.pipeline)
    parts = lay_out(dataset, folder, calibration=30, seed=0, training=None)
    source = model.settled_by(typical_sample(parts.search))
    return check_own_answers(found, source, parts, folder)


@pytest.mark.parametrize("case", CASES)
def test_the_answers_of_every_library_are_those_of_the_onnx_file(case: str, tmp_path: Path) -> None:
    made, data = CASES[case]
    found = find_model(made(tmp_path))
    assert note_of(found, data, tmp_path) == ""
    # And answers that are a little off are found.
    other = replace(
        found, write=lambda graph, rows: graph.add("Mul", found.write(graph, rows), *off(found))
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=f"doesn't answer as {found.library} does: ") as refused:
        note_of(replace(other, own=found.own), data, tmp_path / "other")
    assert "\n" not in str(refused.value)


def off(found: Tabular) -> tuple[Any]:
    return (np.array(1 + 3e-3, found.dtype),)


def test_a_run_whose_form_of_the_model_is_wrong_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CatBoost's JSON has one table of statistics for all targets, so an export from it is wrong."""
    catboost = pytest.importorskip("catboost")
    monkeypatch.setattr(catboost_categories, "_check_told_apart", lambda *_: None)
    labels = np.stack([WORTH, 3 * (FRAME.housing == "own") - WORTH], 1)
    model = catboost.CatBoostRegressor(
        **FEW["catboost"], loss_function="MultiRMSE", cat_features=["housing", "town"]
    ).fit(FRAME, labels)
    with quick_runs(), pytest.raises(InputError) as refused:
        hasten.optimize(model, FRAME, metric="regression:0.01", out=tmp_path / "m.hasten")
    said = str(refused.value)
    assert said.startswith("hasten's form of this model doesn't answer as CatBoost does: ")
    assert "rows of the data differ, by up to 0." in said
    assert "please report it; until it is mended, convert the whole model to an ONNX file" in said
    assert "\n" not in said


def test_a_few_rows_that_differ_leave_a_note(tmp_path: Path) -> None:
    """A rounding may cross a tree's threshold; more than a few such rows are an error in the form."""
    found = find_model(of("lightgbm.LGBMRegressor", NUMBERS, WORTH))
    model = found.export(tmp_path)
    dataset = open_data(NUMBERS, model.inputs, found.pipeline)
    parts = lay_out(dataset, tmp_path / "parts", calibration=30, seed=0, training=None)
    (rows,) = parts.search.inputs(range(min(300, len(parts.search)))).values()
    place = max(range(rows.shape[1]), key=lambda at: len(np.unique(rows[:, at])))
    column = rows[:, place]
    above = {limit: int((column > limit).sum()) for limit in np.unique(column)[::-1]}
    few = next(limit for limit, count in above.items() if count)
    many = next(limit for limit, count in above.items() if count > 0.02 * len(rows))

    def off_above(limit: Any) -> str:
        def write(graph: Any, rows: str) -> str:
            first = graph.add("Gather", rows, np.array([place]), axis=1)
            far = graph.add("Greater", first, np.float64(limit))
            right = found.write(graph, rows)
            return str(graph.add("Where", far, graph.add("Mul", right, np.float64(2)), right))

        folder = tmp_path / str(limit)
        folder.mkdir()
        return note_of(replace(found, write=write), NUMBERS, folder)

    note = off_above(few)
    assert note.startswith(f"{above[few]} of {len(rows)} ")
    assert " rows of the data answer otherwise than LightGBM itself, by up to " in note
    with pytest.raises(InputError, match=f" {above[many]} of .* rows of the data differ"):
        off_above(many)


def test_data_read_otherwise_than_the_library_reads_it_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_model(file_of_catboost(tmp_path))
    assert note_of(found, FRAME, tmp_path) == ""
    wrong = replace(found.row, hashed=("housing",))
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="rows of the data differ"):
        note_of(replace(found, row=wrong), FRAME, tmp_path / "other")


def test_rows_with_missing_values_are_compared_though_the_data_have_none(tmp_path: Path) -> None:
    found = find_model(of("lightgbm.LGBMRegressor", NUMBERS, WORTH))

    def write(graph: Any, rows: str) -> str:
        """Take a missing value for 30,000."""
        known = graph.add("Where", graph.add("IsNaN", rows), np.float64(30_000), rows)
        return str(found.write(graph, known))

    with pytest.raises(InputError, match="rows with a missing value or an unknown word differ"):
        note_of(replace(found, write=write), NUMBERS.fillna(1), tmp_path)


def test_rows_with_unknown_words_are_compared(tmp_path: Path) -> None:
    found = find_model(of("lightgbm.LGBMClassifier", GROUPED, GOOD))
    place = found.row.columns.index("housing")
    seen = np.arange(len(found.row.columns)) != place

    def write(graph: Any, rows: str) -> str:
        """Take an unknown word for the first one."""
        known = graph.add("Where", graph.add("IsNaN", rows), np.float64(0), rows)
        return str(found.write(graph, graph.add("Where", seen[None], rows, known)))

    assert note_of(found, FRAME, tmp_path) == ""
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="rows with a missing value or an unknown word differ"):
        note_of(replace(found, write=write), FRAME, tmp_path / "other")


def test_a_model_whose_library_is_not_at_hand_is_taken_as_it_is(tmp_path: Path) -> None:
    model = of("catboost.CatBoostClassifier", NUMBERS, GOOD)
    model.save_model(str(tmp_path / "m.json"), format="json")
    found = find_model(tmp_path / "m.json")
    assert found.own is None
    assert note_of(found, NUMBERS, tmp_path) == ""


def test_hashes_of_categories_as_data_leave_a_note(tmp_path: Path) -> None:
    found = find_model(file_of_catboost(tmp_path))
    hashes = RowReader(found.row).read_all(FRAME.fillna({"income": 1}))
    assert note_of(found, {"rows": hashes}, tmp_path) == (
        "the model's answers weren't compared with those of CatBoost itself, since the data have no row as it takes it"
    )


def test_a_library_that_does_not_answer_leaves_a_note(tmp_path: Path) -> None:
    model = of("catboost.CatBoostClassifier", NUMBERS, GOOD)
    found = described(model)
    model.__dict__.pop("_object")
    said = note_of(found, NUMBERS, tmp_path)
    assert said.startswith("the model's answers weren't compared with those of CatBoost itself: ")
