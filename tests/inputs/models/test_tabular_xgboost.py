"""XGBoost's models as ONNX and as compiled C, held against XGBoost's own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tabular import COLUMNS, FEW, ODD, Exported, training

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import find_model
from hasten.inputs.models.tabular.base import described

xgboost = pytest.importorskip("xgboost")
ROWS, TWO, THREE, NUMBERS = training()
SMALL = {"max_depth": 3, "max_cat_to_onehot": 2, "nthread": 1}
CATEGORIES = (0.0, 0.5, 1.0, 2.0, 2.5, 5.0, 6.0, 31.0, 32.0, 64.0, 16777215.0)
KINDS = ["q", "q", "q", "c"]


def matrix(rows: Array, labels: Array | None = None) -> Any:
    return xgboost.DMatrix(
        rows, labels, feature_names=list(COLUMNS), feature_types=KINDS, enable_categorical=True
    )


def trained(labels: Array, **settings: Any) -> Any:
    return xgboost.train(SMALL | settings, matrix(ROWS, labels), 8)


WAYS: dict[str, tuple[Array, dict[str, Any]]] = {
    "two classes": (TWO, {"objective": "binary:logistic"}),
    "a start of its own": (TWO, {"objective": "binary:logistic", "base_score": 0.2}),
    "hinge": (TWO, {"objective": "binary:hinge"}),
    "three classes": (THREE, {"objective": "multi:softprob", "num_class": 3}),
    "dart": (NUMBERS, {"booster": "dart", "rate_drop": 0.3}),
    "parallel trees": (
        TWO,
        {"objective": "binary:logistic", "num_parallel_tree": 3, "subsample": 0.5},
    ),
    "squares": (NUMBERS, {"objective": "reg:squarederror"}),
    "absolute errors": (NUMBERS, {"objective": "reg:absoluteerror"}),
    "poisson": (NUMBERS, {"objective": "count:poisson"}),
    "tweedie": (NUMBERS, {"objective": "reg:tweedie"}),
    "gamma": (NUMBERS, {"objective": "reg:gamma"}),
    "margins": (TWO, {"objective": "binary:logitraw"}),
}
SUMS = ("dart", "squares", "absolute errors", "margins")
"""Ways whose answers are sums of leaves."""


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels, settings = WAYS[request.param]
    booster = trained(labels, **settings)
    return booster, Exported(booster, tmp_path_factory.mktemp("model"))


def same(own: Array, got: Array) -> None:
    own = own if own.ndim == 2 else own[:, None]
    assert got.dtype == np.float32
    if got.shape[1] == 2 and own.shape[1] == 1:
        assert (got[:, :1] == 1 - got[:, 1:]).all()
        got = got[:, 1:]
    np.testing.assert_allclose(got, own, rtol=2e-6, atol=2e-7)


@FEW
@given(st.data())
def test_a_row_at_a_threshold_goes_where_xgboost_sends_it(pair: Any, data: st.DataObject) -> None:
    booster, exported = pair
    rows = data.draw(exported.rows(ODD, CATEGORIES))
    own = booster.predict(matrix(rows))
    for got in exported.each(rows):
        same(own, got)


@pytest.mark.parametrize("name", SUMS)
def test_compiled_c_adds_as_xgboost_does_to_the_last_bit(name: str, tmp_path: Path) -> None:
    labels, settings = WAYS[name]
    booster = trained(labels, **settings)
    got = Exported(booster, tmp_path).compiled(ROWS)
    np.testing.assert_array_equal(got[:, 0], booster.predict(matrix(ROWS)))


LINEAR: dict[str, tuple[Array, dict[str, Any]]] = {
    "two classes": (TWO, {"objective": "binary:logistic"}),
    "hinge": (TWO, {"objective": "binary:hinge"}),
    "three classes": (THREE, {"objective": "multi:softprob", "num_class": 3}),
    "squares": (NUMBERS, {"objective": "reg:squarederror", "base_score": 0.7}),
    "poisson": (NUMBERS, {"objective": "count:poisson"}),
    "two numbers": (np.stack([NUMBERS, -NUMBERS], axis=1), {}),
}


@pytest.fixture(scope="module", params=LINEAR)
def linear(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels, settings = LINEAR[request.param]
    settings = {"booster": "gblinear", "nthread": 1, "lambda": 0.01} | settings
    booster = xgboost.train(settings, xgboost.DMatrix(ROWS, labels), 8)
    return booster, Exported(booster, tmp_path_factory.mktemp("model"))


@FEW
@given(rows=st.lists(st.tuples(*[st.sampled_from((*ODD, -3.0, 2.5, 40.0))] * 4), min_size=1))
def test_products_are_summed_as_in_xgboost(linear: Any, rows: list[tuple[float, ...]]) -> None:
    booster, exported = linear
    given_rows = np.concatenate([ROWS[:50], np.array(rows)])
    own = booster.predict(xgboost.DMatrix(given_rows))
    for got in exported.each(given_rows):
        own = own if own.ndim == 2 else own[:, None]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got[:, -own.shape[1] :], own, rtol=1e-5, atol=1e-5)


def test_products_of_an_estimator_skip_its_own_missing_value(tmp_path: Path) -> None:
    model = xgboost.XGBClassifier(n_estimators=8, booster="gblinear", missing=-1.0, n_jobs=1)
    rows = np.nan_to_num(ROWS, nan=-1.0)
    model.fit(rows, TWO)
    for got in Exported(model, tmp_path).each(rows):
        np.testing.assert_allclose(got, model.predict_proba(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_a_file_of_products_is_read(tmp_path: Path, suffix: str) -> None:
    data = xgboost.DMatrix(ROWS, TWO, feature_names=list(COLUMNS))
    booster = xgboost.train({"booster": "gblinear", "objective": "binary:logistic"}, data, 3)
    booster.save_model(tmp_path / f"model.{suffix}")
    found = find_model(tmp_path / f"model.{suffix}")
    assert found.row.columns == COLUMNS
    for got in Exported(found, tmp_path).each(ROWS):
        np.testing.assert_allclose(got[:, 1], booster.predict(data), rtol=1e-5, atol=1e-6)


def test_the_file_says_the_same_to_onnx_itself(pair: Any) -> None:
    _, exported = pair
    rows = ROWS[:40]
    np.testing.assert_allclose(exported.by_the_standard(rows), exported(rows), rtol=2e-6)


def test_categories_that_are_none_go_where_xgboost_sends_them(tmp_path: Path) -> None:
    booster = trained(TWO, objective="binary:logistic")
    exported = Exported(booster, tmp_path)
    rows = np.repeat(ROWS[:40], 2, axis=0)
    rows[::2, 3], rows[1::2, 3] = 0.0, 5.0
    for known in exported.each(rows):
        assert (known[::2] != known[1::2]).any()
    rows[::2, 3], rows[1::2, 3] = -0.5, -1.0
    for unknown in exported.each(rows):  # XGBoost takes no negative ones
        assert (unknown[::2] == unknown[1::2]).all()


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_a_file_has_the_words_of_its_columns(tmp_path: Path, suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS[:, :3], columns=COLUMNS[:3])
    colours = ("blau", "gruen", "rot")
    frame["k"] = pandas.Categorical(np.array(colours)[np.arange(300) % 3])
    labels = ((np.arange(300) % 3 == 1) ^ (ROWS[:, 0] > 0)).astype(int)
    data = xgboost.DMatrix(frame, labels, enable_categorical=True)
    booster = xgboost.train(SMALL | {"objective": "binary:logistic"}, data, 8)
    booster.save_model(tmp_path / f"model.{suffix}")
    found = find_model(tmp_path / f"model.{suffix}")
    if not found.row.words:
        pytest.skip("this XGBoost doesn't keep the categories' words")
    assert found.row.words == (("k", colours),)
    exported = Exported(booster, tmp_path)
    rows = np.stack([found.row(row) for row in frame.astype({"k": str}).to_dict("records")])
    for got in exported.each(rows):
        same(booster.predict(data), got)
    with pytest.raises(
        InputError, match="needs one of its words, 'blau', 'gruen', 'rot': got 'pink'"
    ):
        found.row({"a": 1, "b": 1, "c": 1, "k": "pink"})


def test_words_that_xgboost_cuts_are_taken_as_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"k": pandas.Categorical(np.array(["grün", "rot"])[TWO])})
    frame["j"] = pandas.Categorical(np.array([7, 3, 5])[THREE])
    data = xgboost.DMatrix(frame, TWO, enable_categorical=True)
    row = described(xgboost.train(SMALL, data, 1)).row
    assert row({"k": 1, "j": 7}).tolist() == [1, 2]
    with pytest.raises(InputError, match="the column 'k' needs a number: got a text"):
        row({"k": "grün", "j": 7})
    with pytest.raises(InputError, match="the column 'j' needs one of its words, 3, 5, 7: got"):
        row({"k": 1, "j": 4})


def test_an_estimators_own_missing_value_and_best_iteration_count(tmp_path: Path) -> None:
    model = xgboost.XGBClassifier(
        n_estimators=8, max_depth=3, missing=-1.0, early_stopping_rounds=2, n_jobs=1
    )
    rows = np.nan_to_num(ROWS, nan=-1.0)
    model.fit(rows, TWO, eval_set=[(rows[::-1], TWO)], verbose=False)
    assert model.best_iteration < 7
    for got in Exported(model, tmp_path).each(rows):
        same(model.predict_proba(rows), got)


def test_what_is_not_covered_is_refused_by_name() -> None:
    several = xgboost.XGBRegressor(multi_strategy="multi_output_tree", n_estimators=1, n_jobs=1)
    several.fit(ROWS, np.stack([NUMBERS, -NUMBERS], axis=1))
    with pytest.raises(InputError, match="multi_output_tree isn't supported"):
        described(several).export(Path())
    with pytest.raises(InputError, match="isn't fitted"):
        described(xgboost.XGBClassifier())


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_a_file_that_is_cut_short_is_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    trained(TWO, objective="binary:logistic").save_model(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"can't be read by XGBoost .*cut short") as refused:
        find_model(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_a_file_that_is_replaced_after_the_check_isnt_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    from hasten.inputs.models.tabular.base import check_survives

    path, other = tmp_path / f"model.{suffix}", tmp_path / f"other.{suffix}"
    trained(TWO, objective="binary:logistic").save_model(path)
    trained(THREE, objective="multi:softprob", num_class=3).save_model(other)

    def then_replaced(*given: Any, **more: Any) -> str:
        said = check_survives(*given, **more)
        path.write_bytes(other.read_bytes())
        return said

    monkeypatch.setattr("hasten.inputs.models.tabular.xgboost.check_survives", then_replaced)
    assert len(find_model(path).labels) == 2
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("field", "place", "number", "why"),
    [
        ("left_children", 0, 0, "nodes that are nobody's child, or several's"),
        ("right_children", 2, 0, "nodes that are nobody's child, or several's"),
        ("right_children", 1, 5, "nodes that are nobody's child, or several's"),
        ("split_indices", 0, 4, "a column that isn't one of the 4"),
    ],
)
def test_a_file_whose_nodes_are_no_tree_is_refused(
    tmp_path: Path, field: str, place: int, number: int, why: str
) -> None:
    rows = ROWS[:, 3:] * np.ones(4)  # categories alone
    data = xgboost.DMatrix(rows, TWO, feature_types=["c"] * 4, enable_categorical=True)
    settings = {"max_cat_to_onehot": 1, "max_depth": 2, "nthread": 1, "min_child_weight": 0}
    model = xgboost.train(settings | {"lambda": 0}, data, 1)
    record = json.loads(bytes(model.save_raw("json")))
    tree = record["learner"]["gradient_booster"]["model"]["trees"][0]
    assert tree["left_children"][:3] == [1, 3, 5], "the tree has two levels"
    tree[field][place] = number
    path = tmp_path / "model.json"
    path.write_text(json.dumps(record))

    with pytest.raises(InputError) as refused:
        find_model(path).export(tmp_path)
    said = str(refused.value)
    assert why in said or "can't be read by XGBoost" in said
    assert "\n" not in said


def test_a_tree_of_which_a_part_was_pruned_answers_as_xgboost(tmp_path: Path) -> None:
    settings = {"tree_method": "exact", "gamma": 3.0, "nthread": 1}
    model = xgboost.train(settings, xgboost.DMatrix(ROWS, NUMBERS), 3)
    record = json.loads(bytes(model.save_raw("json")))
    trees = record["learner"]["gradient_booster"]["model"]["trees"]
    assert any(int(tree["tree_param"]["num_deleted"]) for tree in trees)
    got = Exported(model, tmp_path)(ROWS)
    assert np.allclose(got.ravel(), model.predict(xgboost.DMatrix(ROWS)), rtol=1e-5)
