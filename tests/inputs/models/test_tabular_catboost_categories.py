"""CatBoost's own categories as ONNX and as compiled C, held against CatBoost's own answers."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tabular import Exported

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.source import open_data
from hasten.inputs.models.source import find_model
from hasten.inputs.models.tabular import lookups
from hasten.inputs.models.tabular.base import described
from hasten.inputs.pipeline.row_reader import RowReader

catboost = pytest.importorskip("catboost")
pandas = pytest.importorskip("pandas")
WORDS = ["w", "big", "town", "flag"]
"""Columns of categories: few words, many numbers, texts of all lengths, and two words."""
TOWNS = ["Ulm", "Köln", "", "a rather long name of a town", "x" * 40, "y" * 100]
SMALL: dict[str, Any] = {
    "iterations": 15,
    "depth": 4,
    "verbose": 0,
    "allow_writing_files": False,
    "thread_count": 1,
}
EVERY = ("Borders", "Buckets", "BinarizedTargetMeanValue", "Counter")


def frame(size: int, seed: int = 0, more: tuple[Any, ...] = ()) -> Any:
    """Return rows; with more words, some that training didn't have."""
    rng = np.random.default_rng(seed)
    found = pandas.DataFrame(
        {
            "num": rng.normal(size=size),
            "w": rng.choice([*"abc", *more], size),
            "z": rng.normal(size=size),
            "big": rng.integers(-3, 40 + 9 * len(more), size),
            "town": rng.choice([*TOWNS, *more], size),
            "flag": rng.choice(["y", "n", *more], size),
        }
    )
    found.loc[rng.random(size) < 0.15, "num"] = np.nan
    return found


FRAME = frame(500)
FRESH = frame(300, 1, ("unseen", "z" * 300))
BASE = (FRAME.big % 3 == 0) ^ (FRAME.w == "a")
TWO = (BASE ^ (np.random.default_rng(2).random(len(FRAME)) < 0.1)).astype(int)
THREE = TWO + ((FRAME.z > 0.5) & (FRAME.town == "Ulm"))
NUMBERS = FRAME.z + 2 * BASE + (FRAME.town == "Ulm")
LABELS: dict[str, Any] = {"Logloss": TWO, "MultiClass": THREE, "RMSE": NUMBERS}
LABELS["MultiClassOneVsAll"] = THREE


def ctrs(*kinds: str, **more: Any) -> dict[str, Any]:
    return {"simple_ctr": list(kinds), "combinations_ctr": list(kinds), **more}


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "as by default": ("Logloss", {}),
    "single categories alone": ("Logloss", {"max_ctr_complexity": 1}),
    "two at once": ("Logloss", {"max_ctr_complexity": 2}),
    "three at once": (
        "MultiClass",
        {"max_ctr_complexity": 3, "iterations": 25, "one_hot_max_size": 4},
    ),
    "four at once": ("RMSE", {"max_ctr_complexity": 4, "depth": 6}),
    "one by one": ("Logloss", {"one_hot_max_size": 255}),
    "one by one and by statistics": ("RMSE", {"one_hot_max_size": 6, "max_ctr_complexity": 3}),
    "never one by one": ("Logloss", {"one_hot_max_size": 1}),
    "counts of all rows": ("Logloss", ctrs("Counter", counter_calc_method="Full")),
    "several borders": ("RMSE", ctrs("Borders:TargetBorderCount=3:Prior=0.3")),
    "several buckets": ("RMSE", ctrs("Buckets:TargetBorderCount=4", "Borders:TargetBorderCount=4")),
    "one feature apart": (
        "Logloss",
        {"per_feature_ctr": ["3:Buckets:Prior=0.2", "1:Counter:Prior=0.5"]},
    ),
    "ordered": ("Logloss", {"boosting_type": "Ordered"}),
    "plain": ("MultiClassOneVsAll", {"boosting_type": "Plain"}),
    "leaves one by one": ("Logloss", {"grow_policy": "Lossguide"}),
    "levels": ("MultiClass", {"grow_policy": "Depthwise", "max_ctr_complexity": 3}),
    "missing is most": (
        "RMSE",
        {"nan_mode": "Max", "max_ctr_complexity": 2},
    ),
    **{f"{kind}, {loss}": (loss, ctrs(kind)) for kind in EVERY for loss in list(LABELS)[:3]},
}


OTHERS = {"missing is most": FRAME.num.isna() * 3 * (FRAME.big % 3) + FRAME.num.fillna(0)}
"""Labels of a way that needs its own: of whether a number is missing."""


@cache
def trained(way: str) -> Any:
    loss, given_ = WAYS[way]
    kind = catboost.CatBoostRegressor if loss == "RMSE" else catboost.CatBoostClassifier
    model = kind(**(SMALL | {"loss_function": loss} | given_), cat_features=WORDS)
    # A counter of all rows counts those that training is only tested with.
    tested = (FRESH, LABELS[loss][: len(FRESH)]) if "counter_calc_method" in given_ else None
    labels = OTHERS.get(way, LABELS[loss])
    return model.fit(FRAME, labels, eval_set=tested, use_best_model=False)


def own(model: Any, rows: Any) -> Any:
    """Return CatBoost's own answers."""
    return (
        model.predict_proba(rows)
        if hasattr(model, "predict_proba")
        else model.predict(rows)[:, None]
    )


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = trained(request.param)
    return model, Exported(model, tmp_path_factory.mktemp("model"))


def test_rows_with_words_seen_and_unseen_have_catboosts_answers(pair: Any) -> None:
    model, exported = pair
    read = RowReader(exported.tabular.row).read_all
    for rows in (FRAME, FRESH):
        for got in exported.each(read(rows)):
            np.testing.assert_allclose(got, own(model, rows), rtol=1e-12, atol=1e-14)
    if not hasattr(model, "predict_proba"):  # whose answers are sums of leaves
        np.testing.assert_array_equal(exported.compiled(read(FRESH)), own(model, FRESH))


TEXTS = st.text(max_size=80) | st.sampled_from(["a", "b", "Ulm", "Köln", "y", "3", "-3"])
WORD = TEXTS | st.integers(-5, 60) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
ROW = st.tuples(
    st.none() | st.floats(width=32), WORD, st.floats(allow_nan=False, width=32), WORD, WORD, WORD
)


@settings(max_examples=20, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=30))
def test_any_words_and_numbers_have_catboosts_answers(combined: Any, rows: list[Any]) -> None:
    model, exported = combined
    known = [[np.nan if one is None else one for one in row] for row in rows]
    read = RowReader(exported.tabular.row).read_all(rows)
    for got in exported.each(read):
        np.testing.assert_allclose(got, own(model, known), rtol=1e-12, atol=1e-14)


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = trained("three at once")
    parts = {
        element["combination_element"]
        for one in record_of(model, tmp_path_factory.mktemp("record"))["features_info"]["ctrs"]
        for element in one["elements"]
    }
    assert parts == {"cat_feature_value", "float_feature", "cat_feature_exact_value"}
    return model, Exported(model, tmp_path_factory.mktemp("model"))


def record_of(model: Any, folder: Path) -> Any:
    model.save_model(str(folder / "record.json"), format="json")
    return json.loads((folder / "record.json").read_text())


def test_a_file_has_the_answers_of_the_live_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("three at once")
    model.save_model(str(tmp_path / "model.cbm"))
    model.save_model(str(tmp_path / "model.json"), format="json")
    row = described(model).row
    assert (row.hashed, row.dtype) == (tuple(WORDS), "float64")
    answers = []
    for name in ("model.cbm", "model.json"):
        with monkeypatch.context() as patched:
            if name == "model.json":
                patched.setitem(sys.modules, "catboost", None)
            found = find_model(tmp_path / name)
        assert found.row == row
        (tmp_path / name.partition(".")[2]).mkdir()
        exported = Exported(found, tmp_path / name.partition(".")[2])
        answers.append(exported(RowReader(row).read_all(FRESH)))
        by_onnx = exported.by_the_standard(RowReader(row).read_all(FRESH[:40]))
        np.testing.assert_allclose(by_onnx, own(model, FRESH[:40]), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[0], own(model, FRESH), rtol=1e-12, atol=1e-14)


def test_every_form_of_a_row_has_the_same_answer(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    model = trained("as by default")
    exported = Exported(model, tmp_path)
    reader = RowReader(exported.tabular.row)
    rows = FRESH[:20].fillna({"num": 0.5})
    wanted = own(model, rows)
    grouped = rows.astype(dict.fromkeys(WORDS, "category"))
    records = rows.to_dict("records")
    forms: dict[str, Any] = {
        "mappings": records,
        "JSON": [json.dumps(one).encode() for one in records],
        "JSON's lists": [json.dumps(list(one.values())) for one in records],
        "tuples": list(rows.itertuples(index=False, name=None)),
        "rows of pandas": [row for _, row in grouped.iterrows()],
        "a frame": rows,
        "a frame of categories": grouped,
        "Arrow": arrow.Table.from_pandas(rows, preserve_index=False),
        "Arrow's categories": arrow.Table.from_pandas(grouped, preserve_index=False),
    }
    for name, form in forms.items():
        got = exported(reader.read_all(form))
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "object", "str"])
def test_an_array_of_categories_as_data_has_catboosts_answers(dtype: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 9, (300, 3))
    labels = ((numbers[:, 0] % 2 == 0) ^ (numbers[:, 1] > 3)).astype(int)
    rows = numbers.astype(dtype)
    names = {"cat_features": [0, 1, 2] if dtype == "str" else [0, 1]}
    model = catboost.CatBoostClassifier(**SMALL, **names).fit(rows, labels)
    exported = Exported(model, tmp_path)
    data = open_data((rows, labels), exported.model.inputs, exported.tabular.pipeline)
    got = exported(data.inputs(range(300))["rows"])
    np.testing.assert_allclose(got, model.predict_proba(rows), rtol=1e-12, atol=1e-14)


def test_an_array_of_broken_numbers_as_categories_is_refused_as_by_catboost() -> None:
    model = trained("as by default")
    rows = np.ones((4, 6))
    with pytest.raises(catboost.CatBoostError):
        model.predict_proba(rows)
    described_ = described(model)
    with pytest.raises(InputError) as refused:
        open_data(rows, [TensorSpec("rows", "float64", ("batch", 6))], described_.pipeline)
    assert str(refused.value) == (
        "the table: row 1: the column 'w' needs a text or a whole number: got 1.0, a number with a point"
    )


@pytest.mark.parametrize("value", [3.0, None, float("nan"), np.float32(1)])
def test_a_category_that_catboost_refuses_is_refused(value: Any) -> None:
    model = trained("as by default")
    row = FRESH.iloc[0].to_dict() | {"big": value}
    with pytest.raises((catboost.CatBoostError, TypeError)):
        model.predict_proba([list(row.values())])
    with pytest.raises(
        InputError, match=r"^the column 'big' (has no value|needs a text or a whole)"
    ):
        described(model).row(row)


def test_statistics_that_only_gpus_train_are_those_of_cpus_by_another_name(tmp_path: Path) -> None:
    """CatBoost calculates a FeatureFreq as a Counter, and a FloatTargetMeanValue as a binarized one."""
    for way, other in (
        ("Counter", "FeatureFreq"),
        ("BinarizedTargetMeanValue", "FloatTargetMeanValue"),
    ):
        model = trained(f"{way}, Logloss")
        record_of(model, tmp_path)
        path = tmp_path / "model.json"
        path.write_text((tmp_path / "record.json").read_text().replace(way, other))
        found = find_model(path)
        got = Exported(found, tmp_path)(RowReader(found.row).read_all(FRESH))
        np.testing.assert_allclose(got, own(model, FRESH), rtol=1e-12, atol=1e-14)


def test_statistics_that_catboosts_json_does_not_keep_apart_are_refused(tmp_path: Path) -> None:
    model = catboost.CatBoostRegressor(
        **SMALL,
        **ctrs("Borders:TargetBorderCount=1", "Borders:TargetBorderCount=3"),
        cat_features=WORDS,
    ).fit(FRAME, NUMBERS)
    with pytest.raises(InputError) as refused:
        described(model).export(tmp_path)
    assert str(refused.value) == (
        "CatBoost's statistics Borders with several TargetBorderCount aren't supported, since CatBoost's JSON "
        "has one table for all of them: train with one"
    )


def of_two_targets(**settings: Any) -> Any:
    labels = np.stack([NUMBERS, BASE * 2.0 - NUMBERS], 1)
    return catboost.CatBoostRegressor(
        **SMALL, loss_function="MultiRMSE", **settings, cat_features=WORDS
    ).fit(FRAME, labels)


@pytest.mark.parametrize("kind", ["Borders", "Buckets", "BinarizedTargetMeanValue"])
def test_statistics_of_several_targets_are_refused(kind: str, tmp_path: Path) -> None:
    """CatBoost's own answers from its JSON are wrong, too."""
    with pytest.raises(InputError) as refused:
        described(of_two_targets(**ctrs(kind, "Counter"))).export(tmp_path)
    assert str(refused.value) == (
        f"CatBoost's statistics {kind} aren't supported for a model of 2 targets, since CatBoost's JSON has one "
        "table for all targets: train with Counter as the only statistic, or a model for each target"
    )


@pytest.mark.parametrize("settings", [ctrs("Counter"), {"one_hot_max_size": 255}])
def test_several_targets_without_statistics_of_answers_have_catboosts_answers(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    model = of_two_targets(**settings)
    exported = Exported(model, tmp_path)
    for got in exported.each(RowReader(exported.tabular.row).read_all(FRESH)):
        np.testing.assert_allclose(got, model.predict(FRESH), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("categories", [WORDS, None])
def test_a_sum_of_models_is_refused_by_name(categories: list[str] | None) -> None:
    rows = FRAME if categories else FRAME[["num", "z"]]
    models = [
        catboost.CatBoostClassifier(**SMALL, random_seed=seed, cat_features=categories).fit(
            rows, TWO
        )
        for seed in (1, 2)
    ]
    # CatBoost 1.2 sums statistics only if it may keep those of one model.
    both = catboost.sum_models(models, ctr_merge_policy="LeaveMostDiversifiedTable")
    with pytest.raises(InputError) as refused:
        described(both)
    assert str(refused.value) == (
        "this CatBoost model doesn't state how it was trained, as a sum of models (sum_models) doesn't: give a model "
        "as its training left it"
    )


def test_a_model_that_was_trained_without_its_tables_is_refused_by_name(tmp_path: Path) -> None:
    model = catboost.CatBoostClassifier(
        **SMALL, cat_features=WORDS, final_ctr_computation_mode="Skip"
    ).fit(FRAME, TWO)
    with pytest.raises(InputError) as refused:
        described(model).export(tmp_path)
    assert str(refused.value) == (
        "this CatBoost model lacks the table of a statistic: it was trained with final_ctr_computation_mode='Skip', "
        "or the file is damaged"
    )


def test_texts_are_refused_by_name() -> None:
    rows = pandas.DataFrame(
        {"said": ["good day", "bad day", "no day", "a day"] * 30, "n": range(120)}
    )
    model = catboost.CatBoostClassifier(**SMALL).fit(
        rows, [0, 1, 1, 0] * 30, text_features=["said"]
    )
    with pytest.raises(InputError, match=r"^CatBoost can't export this model: .* text features"):
        described(model)


def first(record: Any, key: str) -> Any:
    """Return the table of the first statistic, or that statistic."""
    one = record["features_info"]["ctrs"][0]
    return one if key != "table" else record["ctr_data"][one["identifier"]]


def cut(record: Any) -> None:
    first(record, "table")["hash_map"].pop()


def stretched(stride: Any, record: Any) -> None:
    first(record, "table")["hash_stride"] = stride


def unkeyed(key: Any, record: Any) -> None:
    first(record, "table")["hash_map"][0] = key


def put(name: str, value: Any, record: Any) -> None:
    first(record, "")[name] = value


def split(name: str, value: Any, record: Any) -> None:
    for tree in record["oblivious_trees"]:
        for one in tree["splits"] or ():
            if one["split_type"] == "OnlineCtr":
                one[name] = value


def part(kind: str, name: str, value: Any, record: Any) -> None:
    for one in record["features_info"]["ctrs"]:
        for element in one["elements"]:
            if element["combination_element"] == kind:
                element[name] = value


def alike(record: Any) -> None:
    """Give every key of a table bits that no factor tells apart."""
    table = first(record, "table")
    count = len(table["hash_map"]) // table["hash_stride"]
    table["hash_map"][:: table["hash_stride"]] = [
        str((number << 56) % 2**64) for number in range(count)
    ]


DAMAGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a number is gone": (cut, "a table of Borders has "),
    "no stride": (partial(stretched, 0), "a table of Borders has "),
    "a stride that doesn't fit": (partial(stretched, 10**9), "a table of Borders has "),
    "a stride of texts": (partial(stretched, "3"), "unsupported form|can't be written as ONNX"),
    "a key that is too large": (partial(unkeyed, str(2**64)), "can't be written as ONNX"),
    "a key that is negative": (partial(unkeyed, "-1"), "can't be written as ONNX"),
    "a key that is no number": (partial(unkeyed, "x"), "can't be written as ONNX"),
    "no tables": (
        lambda record: record.pop("ctr_data"),
        "this CatBoost model lacks the table of a statistic: it was trained with",
    ),
    "an unknown statistic": (partial(put, "ctr_type", "Other"), "CatBoost's statistic 'Other'"),
    "a class that isn't there": (partial(put, "target_border_idx", 9), "asks for class 9 of 3"),
    "no class": (partial(put, "target_border_idx", -1), "asks for class -1 of 3"),
    "no parts": (partial(put, "elements", []), "a statistic has 0 parts"),
    "many parts": (
        lambda record: put("elements", first(record, "")["elements"] * 1000, record),
        "a statistic has 1000 parts",
    ),
    "a split far away": (partial(split, "split_index", 10**9), r"its split 10+ isn't one of"),
    "a negative split": (partial(split, "split_index", -5), r"its split -5 isn't one of"),
    "another border": (partial(split, "border", 1e9), r"its split \d+ isn't one of"),
    "a word of another feature": (
        partial(part, "cat_feature_value", "cat_feature_index", 9),
        "it has no categorical feature 9",
    ),
    "a border of another feature": (
        partial(part, "float_feature", "float_feature_index", 9),
        "it has no feature 9 with numbers",
    ),
    "texts": (
        lambda record: record["features_info"].update(text_features=[{}]),
        "CatBoost's text features aren't supported: train without them, or make numbers",
    ),
    "an unknown part": (
        partial(part, "cat_feature_value", "combination_element", "other"),
        "CatBoost's part 'other' of a statistic isn't supported",
    ),
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return record_of(trained("three at once"), tmp_path_factory.mktemp("record"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(damage: str, record: Any, tmp_path: Path) -> None:
    change, words = DAMAGES[damage]
    changed = copy.deepcopy(record)
    change(changed)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=words) as refused:
        find_model(path).export(tmp_path)
    assert "\n" not in str(refused.value)


def test_keys_that_nothing_tells_apart_are_refused_soon(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = copy.deepcopy(record)
    alike(changed)
    (tmp_path / "model.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="can't be told apart: the file is damaged"):
        find_model(tmp_path / "model.json").export(tmp_path)
    monkeypatch.setattr(lookups, "MOST_NUMBERS", 100)
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"has [\d,]+ numbers for its categories: at most 100 are"):
        find_model(tmp_path / "model.json").export(tmp_path)


PASSED = ["num", "z", "big", "town"]


def in_pipeline(*steps: Any, **names: Any) -> Any:
    """Return a fitted pipeline of scikit-learn that ends in CatBoost with categories in the given columns."""
    from sklearn.pipeline import make_pipeline

    model = catboost.CatBoostClassifier(**SMALL, **names)
    return make_pipeline(*steps, model).fit(FRAME[PASSED].fillna({"num": 0.5}), TWO)


def test_categories_pass_through_a_pipeline_of_scikit_learn(tmp_path: Path) -> None:
    compose = pytest.importorskip("sklearn.compose")
    from sklearn.preprocessing import StandardScaler

    columns = compose.make_column_transformer(
        (StandardScaler(), ["z", "num"]), ("passthrough", ["town", "big"])
    )
    model = in_pipeline(columns, cat_features=[2, 3])
    exported = Exported(model, tmp_path)
    assert exported.tabular.row.hashed == ("big", "town")
    rows = FRESH[PASSED].fillna({"num": 0.5})
    for got in exported.each(RowReader(exported.tabular.row).read_all(rows)):
        np.testing.assert_allclose(got, own(model, rows), rtol=1e-12, atol=1e-14)


def test_a_category_that_another_step_reads_too_is_refused() -> None:
    compose = pytest.importorskip("sklearn.compose")
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    columns = compose.make_column_transformer(
        (StandardScaler(), ["big"]), ("passthrough", ["big", "town"])
    )
    with pytest.raises(InputError) as refused:
        described(in_pipeline(columns, cat_features=[1, 2]))
    assert str(refused.value) == (
        "the column 'big' is read as categories by the model and by another step too, which isn't supported"
    )
    columns = compose.make_column_transformer(
        (FunctionTransformer(np.abs), ["big"]), ("passthrough", ["z"])
    )
    columns.set_output(transform="pandas")
    with pytest.raises(InputError) as refused:
        described(in_pipeline(columns, cat_features=[0]))
    assert str(refused.value) == (
        "CatBoost's model reads categories that another step computed, which isn't supported"
    )


def test_a_table_that_many_statistics_name_takes_no_memory_for_each(
    record: Any, tmp_path: Path
) -> None:
    changed = copy.deepcopy(record)
    many = [str(number) for number in range(30_000) for _ in range(3)]
    first(changed, "table")["hash_map"] = many
    changed["features_info"]["ctrs"] += [first(changed, "")] * 3_000
    (tmp_path / "model.json").write_text(json.dumps(changed))
    with pytest.raises(
        InputError, match=r"has [\d,]+ numbers for its categories: at most 67,108,864"
    ):
        find_model(tmp_path / "model.json").export(tmp_path)
