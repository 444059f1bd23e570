"""LightGBM's models as ONNX and as compiled C, held against LightGBM's own answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tabular import CATEGORIES, COLUMNS, FEW, ODD, Exported, training

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import find_model, load_with_data, stated_pipeline
from hasten.inputs.models.tabular import lightgbm as reader
from hasten.inputs.models.tabular.base import Tabular, described
from hasten.inputs.models.tabular.trees import LEQ, Tree, apart
from hasten.inputs.pipeline.row_reader import RowReader

lightgbm = pytest.importorskip("lightgbm")
ROWS, TWO, THREE, NUMBERS = training()
SMALL = {"verbose": -1, "num_leaves": 8, "min_data_in_leaf": 5, "num_threads": 1}
SETS = {"max_cat_to_onehot": 1, "min_data_per_group": 1, "cat_smooth": 0, "cat_l2": 0}
ANYTHING = (*ODD, np.inf, -np.inf, 1e300)


def trained(labels: Array, sets: bool = True, rows: Array = ROWS, **settings: Any) -> Any:
    data = lightgbm.Dataset(
        rows, labels, feature_name=list(COLUMNS), categorical_feature=[3] if sets else []
    )
    return lightgbm.train(SMALL | SETS | settings, data, 8)


WAYS: dict[str, tuple[Array, dict[str, Any]]] = {
    "two classes": (TWO, {"objective": "binary"}),
    "a steep sigmoid": (TWO, {"objective": "binary", "sigmoid": 2.5}),
    "three classes": (THREE, {"objective": "multiclass", "num_class": 3}),
    "one against all": (THREE, {"objective": "multiclassova", "num_class": 3, "sigmoid": 0.7}),
    "zero is missing": (TWO, {"objective": "binary", "zero_as_missing": True}),
    "nothing is missing": (TWO, {"objective": "binary", "use_missing": False}),
    "a random forest": (
        TWO,
        {"objective": "binary", "boosting": "rf", "bagging_fraction": 0.7, "bagging_freq": 1},
    ),
    "dart": (NUMBERS, {"objective": "regression", "boosting": "dart"}),
    "a square root": (NUMBERS, {"objective": "regression", "reg_sqrt": True}),
    "poisson": (NUMBERS, {"objective": "poisson"}),
    "tweedie": (NUMBERS, {"objective": "tweedie"}),
    "cross entropy": (TWO, {"objective": "cross_entropy"}),
    "cross entropy of rates": (TWO, {"objective": "cross_entropy_lambda"}),
}
SUMS = ("dart", "a square root")
"""Ways whose answers are sums of leaves, or products of them; C libraries' exp() differ in last bits."""


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels, settings = WAYS[request.param]
    booster = trained(labels, **settings)
    return booster, Exported(booster, tmp_path_factory.mktemp("model"))


def same(booster: Any, exported: Exported, rows: Array) -> None:
    own = booster.predict(rows)
    own = own if own.ndim == 2 else own[:, None]
    for got in exported.each(rows):
        assert got.dtype == np.float64
        if got.shape[1] == 2:
            assert (got[:, :1] == 1 - got[:, 1:]).all()
            got = got[:, 1:]
        np.testing.assert_allclose(got, own, rtol=1e-13, atol=1e-15)


@FEW
@given(st.data())
def test_a_row_at_a_threshold_goes_where_lightgbm_sends_it(pair: Any, data: st.DataObject) -> None:
    booster, exported = pair
    same(booster, exported, data.draw(exported.rows(ANYTHING, CATEGORIES)))


@pytest.mark.parametrize("name", SUMS)
def test_compiled_c_adds_as_lightgbm_does_to_the_last_bit(name: str, tmp_path: Path) -> None:
    labels, settings = WAYS[name]
    booster = trained(labels, **settings)
    got = Exported(booster, tmp_path).compiled(ROWS)
    np.testing.assert_array_equal(got[:, 0], booster.predict(ROWS))


LINEAR: dict[str, tuple[Array, dict[str, Any]]] = {
    "squares": (NUMBERS, {"objective": "regression"}),
    "two classes": (TWO, {"objective": "binary"}),
    "three classes": (THREE, {"objective": "multiclass", "num_class": 3}),
    "dart": (NUMBERS, {"objective": "regression", "boosting": "dart"}),
    "a random forest": (
        NUMBERS,
        {"objective": "regression", "boosting": "rf", "bagging_fraction": 0.7, "bagging_freq": 1},
    ),
    "nothing is missing": (NUMBERS, {"objective": "regression", "use_missing": False}),
    "poisson": (NUMBERS, {"objective": "poisson"}),
}


@pytest.fixture(scope="module", params=LINEAR)
def linear(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels, settings = LINEAR[request.param]
    booster = trained(labels, linear_tree=True, **settings)
    assert booster.model_to_string().count("leaf_coeff=") >= 8
    return booster, Exported(booster, tmp_path_factory.mktemp("model"))


@FEW
@given(st.data())
def test_leaves_that_are_linear_multiply_as_in_lightgbm(linear: Any, data: st.DataObject) -> None:
    booster, exported = linear
    rows = np.concatenate([ROWS[:50], data.draw(exported.rows((*ODD, 40.0), CATEGORIES))])
    own = booster.predict(rows)
    own = own if own.ndim == 2 else own[:, None]
    for got in exported.each(rows):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got[:, -own.shape[1] :], own, rtol=1e-11, atol=1e-13)


def test_a_file_of_linear_leaves_is_read(tmp_path: Path) -> None:
    booster = trained(NUMBERS, objective="regression", linear_tree=True)
    booster.save_model(tmp_path / "model.txt")
    found = find_model(tmp_path / "model.txt")
    assert isinstance(found, Tabular)
    assert found.row.infinite == "refuse"  # times no factor at all it isn't a number
    for got in Exported(found, tmp_path).each(ROWS):
        np.testing.assert_allclose(got[:, 0], booster.predict(ROWS), rtol=1e-11)


def test_the_file_says_the_same_to_onnx_itself(pair: Any) -> None:
    _, exported = pair
    rows = ROWS[:40]
    np.testing.assert_allclose(exported.by_the_standard(rows), exported(rows), rtol=1e-12)


def test_every_threshold_decides_as_in_lightgbm_where_float32_would_not(tmp_path: Path) -> None:
    rows = 1e6 + np.random.default_rng(1).random((200, 1)) / 1e3  # float32 has steps of 0.06 there
    labels = (np.arange(200) % 7 > 3).astype(int)
    booster = lightgbm.train(SMALL | {"objective": "binary"}, lightgbm.Dataset(rows, labels), 8)
    exported = Exported(booster, tmp_path)
    same(booster, exported, rows)
    assert len(np.unique(exported(rows)[:, 1])) > 10
    assert len(np.unique(exported(rows.astype(np.float32))[:, 1])) == 1


def test_columns_of_categories_take_their_words_and_know_no_others(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS[:, :3], columns=COLUMNS[:3])
    colours = ("blue", "green", "red")
    frame["k"] = pandas.Categorical(np.array(colours)[np.arange(300) % 3])
    labels = (np.arange(300) % 3 == 1) ^ (ROWS[:, 0] > 0)
    data = lightgbm.Dataset(frame, labels.astype(int))
    booster = lightgbm.train(SMALL | SETS | {"objective": "binary"}, data, 8)
    booster.save_model(tmp_path / "model.txt")
    found = find_model(tmp_path / "model.txt")
    assert found.row.words == (("k", colours),)
    exported = Exported(booster, tmp_path)
    for colour in (*colours, "pink", None):
        row = {"a": 0.1, "b": None, "c": -2, "k": colour}
        own = pandas.DataFrame([row]).astype({"a": float, "b": float, "c": float})
        own["k"] = pandas.Categorical([colour], categories=[*colours, "pink"])
        for got in exported.each(found.row(row)[None]):
            assert got[0, 1] == pytest.approx(booster.predict(own)[0], rel=1e-13)


def test_columns_and_categories_of_truth_values_are_answered_as_by_lightgbm(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"a": ROWS[:, 0], "owner": rng.random(300) < 0.5})
    frame["late"] = pandas.Categorical(rng.random(300) < 0.5)
    labels = (frame.a > 0) ^ frame.owner ^ frame.late.astype(bool)
    model = lightgbm.LGBMClassifier(n_estimators=8, n_jobs=1, **(SMALL | SETS)).fit(frame, labels)
    exported = Exported(model, tmp_path)
    pipeline = stated_pipeline(exported.path)  # as a bundle has it
    assert pipeline is not None
    (row,) = pipeline.steps
    own = model.predict_proba(frame)[:, 1]
    assert len(np.unique(own)) > 4
    given = [np.stack([row(frame.iloc[place]) for place in range(300)])]
    given.append(np.stack([row(one) for one in frame.to_dict("records")]))
    given.append(RowReader(row).read_all(frame))  # type: ignore[arg-type]
    for rows in given:
        np.testing.assert_allclose(exported(rows)[:, 1], own, rtol=1e-13)


def test_an_estimator_says_its_classes_and_stops_at_its_best_iteration(tmp_path: Path) -> None:
    names = np.array(["bad", "good"])[TWO]
    model = lightgbm.LGBMClassifier(n_estimators=8, verbose=-1, num_leaves=4, n_jobs=1)
    model.fit(ROWS, names)
    model.booster_.best_iteration = model._best_iteration = 3  # as early stopping sets them
    exported = Exported(model, tmp_path)
    assert exported.tabular.labels == ("bad", "good")
    own = model.booster_.predict(ROWS)
    assert (own != model.booster_.predict(ROWS, num_iteration=8)).any()
    for got in exported.each(ROWS):
        np.testing.assert_allclose(got[:, 1], own, rtol=1e-12)


def test_what_is_not_covered_is_refused_by_name() -> None:
    text = trained(NUMBERS, sets=False, objective="regression", linear_tree=True).model_to_string()

    def zero_missing(line: re.Match[str]) -> str:  # LightGBM itself trains no such model
        numbers = line.group().split()
        return " ".join(str(int(one) & 3 | 4).zfill(len(one)) for one in numbers)

    text = re.sub(r"(?<=\ndecision_type=).*", zero_missing, text)
    with pytest.raises(
        InputError, match=r"^LightGBM's linear_tree with zero_as_missing isn't supp"
    ):
        described(lightgbm.Booster(model_str=text))


def test_a_columns_factors_stand_only_in_the_parts_of_a_tree_that_have_some() -> None:
    tree = Tree(np.array([[1.0, 0, 0], [2, 0, 0], [3, 5, 0]]), (0, 1, 2))
    for split in (0.0, -1.0):
        tree.node(0, LEQ, split, False)
    tree.true, tree.false = [1, ~0], [~2, ~1]
    leaves, factors, nothing = apart(tree)
    assert (leaves.targets, leaves.true, leaves.false) == ((0,), [1, ~1], [~0, ~2])
    assert leaves.values[:, 0].tolist() == [3, 1, 2]
    assert (factors.targets, factors.splits) == ((1,), [0.0])
    assert [factors.values[~end[0], 0] for end in (factors.true, factors.false)] == [0, 5]
    assert (nothing.columns, nothing.values.tolist()) == ([], [[0]])


def test_linear_leaves_that_make_too_many_nodes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    booster = trained(NUMBERS, objective="regression", linear_tree=True)
    monkeypatch.setattr(reader, "_MOST_LINEAR", 100)
    with pytest.raises(InputError) as error:
        described(booster)
    assert str(error.value) == (
        "this model with LightGBM's linear_tree has more than 100 nodes in ONNX, since a tree is repeated for "
        "each column that its leaves multiply: train fewer or smaller trees, or without linear_tree"
    )
    described(trained(NUMBERS, objective="regression"))


def test_a_model_that_is_cut_short_or_another_text_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = trained(TWO, objective="binary").model_to_string()
    path = tmp_path / "model.txt"
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.txt is cut short: it has no line `end of trees`"):
        find_model(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"isn't a model of LightGBM: its first line isn't `tree`"):
        find_model(path)
    with pytest.raises(InputError, match="isn't fitted"):
        find_model(lightgbm.LGBMClassifier())


def test_a_frame_and_the_name_or_the_values_of_its_labels_are_data(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    found = find_model(trained(TWO, objective="binary"))
    frame = pandas.DataFrame(ROWS[:9], columns=list(COLUMNS))
    named = frame.assign(sold=TWO[:9])
    for table in ((named, "sold"), (frame, named["sold"])):
        _, data = load_with_data(found, table, stated_pipeline(found), (), tmp_path)
        assert data.labels is not None
        assert data.labels.tolist() == TWO[:9].tolist()
