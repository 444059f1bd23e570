"""CatBoost's models as ONNX and as compiled C, held against CatBoost's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tabular import FEW, ODD, Exported, training

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
    with pytest.raises(InputError, match="the column 'a' has no value: give one"):
        found.row({"a": None, "b": 1, "c": 1, "k": 1})  # none was missing in training


def test_what_is_not_covered_is_refused_by_name(tmp_path: Path) -> None:
    rows = np.array([["a"], ["b"], ["c"], ["d"]] * 20, object)
    words = catboost.CatBoostClassifier(**SMALL).fit(rows, [0, 1, 1, 0] * 20, cat_features=[0])
    with pytest.raises(InputError, match="CatBoost's categorical features aren't supported"):
        described(words)
    with pytest.raises(InputError, match="isn't fitted"):
        described(catboost.CatBoostClassifier())
    (tmp_path / "model.cbm").write_bytes(b"CBM1 and no more")
    with pytest.raises(InputError, match=r"model\.cbm can't be read by CatBoost") as refused:
        find_model(tmp_path / "model.cbm")
    assert "\n" not in str(refused.value)
