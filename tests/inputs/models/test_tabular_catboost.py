"""CatBoost's models as ONNX and as compiled C, held against CatBoost's own answers."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tabular import FEW, ODD, Exported, training

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import find_model
from hasten.inputs.models.tabular.base import described

catboost = pytest.importorskip("catboost")
ROWS, TWO, THREE, NUMBERS = training()
SMALL: dict[str, Any] = {
    "iterations": 8,
    "depth": 3,
    "verbose": 0,
    "allow_writing_files": False,
    "thread_count": 1,
}
WAYS: dict[str, tuple[Array, dict[str, Any]]] = {
    "two classes": (TWO, {"loss_function": "Logloss"}),
    "three classes": (THREE, {"loss_function": "MultiClass"}),
    "one against all": (THREE, {"loss_function": "MultiClassOneVsAll"}),
    "leaves one by one": (TWO, {"loss_function": "Logloss", "grow_policy": "Lossguide"}),
    "levels": (THREE, {"loss_function": "MultiClass", "grow_policy": "Depthwise"}),
    "squares": (NUMBERS, {"loss_function": "RMSE"}),
    "missing is most": (NUMBERS, {"loss_function": "RMSE", "nan_mode": "Max"}),
    "poisson": (NUMBERS, {"loss_function": "Poisson"}),
}
SUMS = ("squares", "missing is most")
"""Ways whose answers are sums of leaves."""


def trained(labels: Array, rows: Array = ROWS, **settings: Any) -> Any:
    regression = settings["loss_function"] in ("RMSE", "Poisson")
    kind = catboost.CatBoostRegressor if regression else catboost.CatBoostClassifier
    return kind(**SMALL, **settings).fit(rows, labels)


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels, settings = WAYS[request.param]
    model = trained(labels, **settings)
    return model, Exported(model, tmp_path_factory.mktemp("model"))


@FEW
@given(st.data())
def test_a_row_at_a_border_goes_where_catboost_sends_it(pair: Any, data: st.DataObject) -> None:
    model, exported = pair
    rows = data.draw(exported.rows((*ODD, np.inf, -np.inf)))
    classes = hasattr(model, "predict_proba")
    own = model.predict_proba(rows) if classes else model.predict(rows)[:, None]
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SUMS)
def test_compiled_c_adds_as_catboost_does_to_the_last_bit(name: str, tmp_path: Path) -> None:
    labels, settings = WAYS[name]
    model = trained(labels, **settings)
    got = Exported(model, tmp_path).compiled(ROWS)
    np.testing.assert_array_equal(got[:, 0], model.predict(ROWS))


def test_a_file_has_the_same_answers_and_the_names_of_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.nan_to_num(ROWS), columns=list("abck"))
    model = trained(TWO, frame, loss_function="Logloss")
    model.save_model(str(tmp_path / "model.cbm"))
    found = find_model(tmp_path / "model.cbm")
    assert found.row.columns == ("a", "b", "c", "k")
    assert found.labels == ("0", "1")


@pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide", "Depthwise"])
@pytest.mark.parametrize("mode", ["Min", "Max", "Forbidden"])
def test_a_value_that_is_missing_though_none_was_in_training_is_answered_as_by_catboost(
    policy: str, mode: str, tmp_path: Path
) -> None:
    known = np.nan_to_num(ROWS)
    known[:, 3] = ROWS[:, 3] if mode != "Forbidden" else known[:, 3]  # of one column some were
    settings = {"loss_function": "MultiClass", "grow_policy": policy, "nan_mode": mode}
    model = trained(THREE, known, **settings)
    exported = Exported(model, tmp_path)
    rows = np.where(np.random.default_rng(1).random(ROWS.shape) < 0.4, np.nan, known)
    read = np.stack([exported.tabular.row(row) for row in rows.tolist()])
    for got in exported.each(read):
        np.testing.assert_allclose(got, model.predict_proba(rows), rtol=1e-12, atol=1e-15)


JSONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "words": (np.array(["bad", "good"])[TWO], {}),
    "truth values": (TWO == 1, {}),
    "broken numbers": (TWO * 1.5, {}),
    "whole numbers": (np.array([3, 4, 9])[THREE], {"loss_function": "MultiClassOneVsAll"}),
    "trees of another form": (THREE, {"grow_policy": "Lossguide"}),
}


@pytest.mark.parametrize("labels", JSONS)
def test_a_file_in_json_has_the_answers_and_classes_of_the_model(
    tmp_path: Path, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, columns=list("abck"))
    answers, settings = JSONS[labels]
    model = catboost.CatBoostClassifier(**(SMALL | settings)).fit(frame, answers)
    model.save_model(str(tmp_path / "model.json"), format="json")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "catboost", None)  # whose parser no stranger's file reaches
        found = find_model(tmp_path / "model.json")
    assert (found.library, found.row) == ("CatBoost", described(model).row)
    assert found.labels == tuple(map(str, model.classes_))
    own = model.predict_proba(ROWS)
    np.testing.assert_allclose(Exported(found, tmp_path)(ROWS), own, rtol=1e-12, atol=1e-15)


def test_a_regression_in_json_has_the_answers_and_columns_of_the_model(tmp_path: Path) -> None:
    model = catboost.CatBoostRegressor(**SMALL).fit(ROWS, NUMBERS)
    model.save_model(str(tmp_path / "model.json"), format="json")
    found = find_model(tmp_path / "model.json")
    assert (found.labels, found.row) == ((), described(model).row)
    own = model.predict(ROWS)[:, None]
    np.testing.assert_allclose(Exported(found, tmp_path)(ROWS), own, rtol=1e-12, atol=1e-15)


def test_a_file_in_json_that_is_damaged_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    trained(TWO, loss_function="Logloss").save_model(str(path), format="json")
    whole = path.read_text()

    def refused(**changed: Any) -> str:
        path.write_text(json.dumps(json.loads(whole) | changed))
        with pytest.raises(InputError) as error:
            find_model(path).export(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    record = json.loads(whole)
    trees = record["oblivious_trees"]
    deep = [trees[0] | {"splits": trees[0]["splits"][:1] * 40}]
    assert refused(oblivious_trees=deep) == (
        "a tree of CatBoost has 40 levels, but 8 leaves: the file is damaged"
    )
    features = record["features_info"]
    far = [one | {"flat_feature_index": 10**6} for one in features["float_features"]]
    assert refused(features_info=features | {"float_features": far}) == (
        "the columns of this CatBoost model aren't numbered from 0: the file is damaged"
    )
    far = [trees[0] | {"splits": [one | {"float_feature_index": 9} for one in trees[0]["splits"]]}]
    assert refused(oblivious_trees=far).startswith("the model of CatBoost can't be written as ONNX")
    assert refused(model_info=3).startswith("this CatBoost model has an unsupported form")
    for text in (whole[:1000], '{"features_info":' + "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=r"model\.json isn't a whole model of CatBoost") as cut:
            find_model(path)
        assert "\n" not in str(cut.value)


def test_a_file_in_json_that_takes_more_memory_than_there_is_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.json"
    model = trained(TWO, loss_function="Logloss")
    model.save_model(str(path), format="json")
    size = path.stat().st_size
    host = Target.host()

    def refused(source: Any, memory_bytes: int) -> str:
        machine = dataclasses.replace(host, memory_bytes=memory_bytes)
        monkeypatch.setattr(Target, "host", lambda: machine)
        with pytest.raises(InputError) as error:
            find_model(source)
        return str(error.value)

    said = r" may take [\d.e+-]+ GiB of memory to read, and this machine has [\d.e+-]+ GiB: read it on a machine with"
    assert re.match(re.escape(str(path)) + said, refused(path, 7 * size - 1))
    assert re.match(re.escape(str(path)) + said, refused(path, 7 * size + 1))  # with its lists
    assert re.match("this CatBoost model as JSON" + said, refused(model, 7 * size - 1))
    machine = dataclasses.replace(host, memory_bytes=20 * size)
    monkeypatch.setattr(Target, "host", lambda: machine)
    assert find_model(path).library == "CatBoost"


def test_what_is_not_covered_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="isn't fitted"):
        described(catboost.CatBoostClassifier())
    (tmp_path / "model.cbm").write_bytes(b"CBM1 and no more")
    with pytest.raises(InputError, match=r"model\.cbm is cut short or damaged: its model has"):
        find_model(tmp_path / "model.cbm")
    (tmp_path / "model.cbm").write_bytes(b"CBM1\4\0\0\0none")
    with pytest.raises(InputError, match=r"model\.cbm can't be read by CatBoost") as refused:
        find_model(tmp_path / "model.cbm")
    assert "\n" not in str(refused.value)
