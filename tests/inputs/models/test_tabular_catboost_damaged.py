"""Files of CatBoost in JSON with any one of their values damaged: each is read, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError
from hasten.inputs.models.source import find_model

pytestmark = pytest.mark.seconds

catboost = pytest.importorskip("catboost")
pandas = pytest.importorskip("pandas")
ODD: tuple[Any, ...] = (
    *(float("inf"), float("-inf"), float("nan"), 10**400, 1e308, 2**63, -(2**70), -1, 0.5, True),
    *("a text", "7", [], [1, 2], {}, None),
)
"""What stands in place of a value."""
FORMS: dict[str, dict[str, Any]] = {
    "symmetric trees of categories": {"cat_features": ["c", "k"], "max_ctr_complexity": 2},
    "symmetric trees": {},
    "other trees": {"grow_policy": "Lossguide", "loss_function": "MultiClass"},
}
READ = ("features_info", "oblivious_trees", "trees", "scale_and_bias", "ctr_data")
"""Parts of a file from which a model is read, apart from what `STATED` lists."""
STATED = ("params", "class_params")


def record_of(form: str, folder: Path) -> Any:
    rng = np.random.default_rng(0)
    size = 300
    rows = pandas.DataFrame(
        {
            "x": rng.normal(size=size),
            "c": rng.choice([*"abcdef"], size),
            "z": rng.normal(size=size),
            "k": rng.choice([*"pq"], size),
        }
    )
    labels = ((rows.c < "c") + rows.x * (rows.k == "p") > 0.4).astype(int)
    given = FORMS[form]
    if "cat_features" not in given:
        rows = rows[["x"]]
    model = catboost.CatBoostClassifier(
        iterations=2, depth=2, verbose=0, allow_writing_files=False, thread_count=1, **given
    )
    model.fit(rows, labels).save_model(str(folder / "record.json"), format="json")
    record = json.loads((folder / "record.json").read_text())
    params = record["model_info"]["params"]
    record["model_info"] = {name: record["model_info"][name] for name in STATED}
    record["model_info"]["params"] = {
        name: params[name] for name in ("loss_function", "cat_feature_params") if name in params
    }
    return record


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each value of a record, as what holds it and its key; of a list the last element alone."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = [*value]
    elif isinstance(value, list):
        keys = [len(value) - 1] if value else []
    for key in keys:
        yield value, key
        yield from places(value[key])


@pytest.mark.parametrize("form", FORMS)
def test_a_file_with_any_value_damaged_is_read_or_refused_in_one_line(
    form: str, tmp_path: Path
) -> None:
    record = record_of(form, tmp_path)
    path = tmp_path / "model.json"
    refused, read = [], 0
    for holder, key in [*places(record)]:
        whole = holder[key]
        for odd in ODD:
            holder[key] = odd
            path.write_text(json.dumps(record))
            try:
                find_model(path).export(tmp_path)
                read += 1
            except InputError as error:
                refused.append(str(error))
        holder[key] = whole
    assert [said for said in refused if "\n" in said or len(said) > 1000] == []
    assert min(read, len(refused)) > 100


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), None])
def test_a_leaf_that_is_no_number_is_refused(value: Any, tmp_path: Path) -> None:
    record = record_of("symmetric trees", tmp_path)
    record["oblivious_trees"][0]["leaf_values"][1] = value
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as refused:
        find_model(tmp_path / "model.json").export(tmp_path)
    assert str(refused.value) == (
        "this CatBoost model gives no answers, since a leaf isn't a finite number: its training went wrong, or "
        "its file is damaged"
    )
