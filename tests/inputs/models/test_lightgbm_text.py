"""LightGBM's text files: sound ones answer as their models, and what its reader would crash on is named."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.errors import InputError
from hasten.inputs.models.tabular.base import described, read_file

lightgbm = pytest.importorskip("lightgbm")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 4))
X[:, 3] = RNG.integers(0, 12, 300)
Y = X[:, 0] + (X[:, 3] % 3) + 0.1 * RNG.standard_normal(300)
SETTINGS: dict[str, Any] = {"verbose": -1, "num_threads": 1, "seed": 0, "num_leaves": 6}


def saved(path: Path, rounds: int = 3, **settings: Any) -> Any:
    """Train a model, and save it."""
    data = lightgbm.Dataset(X, Y, categorical_feature=settings.pop("categorical", []))
    booster = lightgbm.train(SETTINGS | settings, data, rounds)
    booster.save_model(path)
    return booster


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"categorical": [3], "min_data_per_group": 1, "cat_smooth": 1.0},
        {"linear_tree": True},
        {"boosting": "dart"},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.7},
        {"min_data_in_leaf": 400},
        {"num_leaves": 2},
    ],
    ids=lambda settings: ",".join(settings) or "plain",
)
def test_a_sound_file_is_read_as_what_was_saved(tmp_path: Path, settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        booster = saved(tmp_path / "model.txt", **settings)
        read = read_file(tmp_path / "model.txt")
    assert read is not None
    assert read.own is not None
    assert np.array_equal(read.own.of(read, [*X]).ravel(), booster.predict(X))


def changed(text: str, name: str, value: str) -> str:
    """Return a file with another value in the first line of a name."""
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"{name}="))
    lines[at] = f"{name}={value}"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_leaves", "7", "has 5 numbers in split_feature, but 7 leaves need 6"),
        ("num_leaves", "0", "has 0 leaves"),
        ("num_leaves", "many", "can't be read as text of LightGBM"),
        ("left_child", "1 2 3 4 99", "has nodes that are nobody's child, or several's"),
        ("left_child", "0 0 0 0 0", "has nodes that are nobody's child, or several's"),
        ("split_feature", "0 0 0 0 4", "splits by a column that isn't one of the 4"),
        ("split_feature", "0 0 -1 0 0", "splits by a column that isn't one of the 4"),
        ("threshold", "1 2 3", "has 3 numbers in threshold, but 6 leaves need 5"),
        ("leaf_value", "1 2", "has 2 numbers in leaf_value, but 6 leaves need 6"),
        ("decision_type", "1 1 1 1 1", "isn't whole numbers"),
        ("split_feature", "0 0 0 0 1_0", "isn't whole numbers"),
        ("num_leaves", "6\n\nnum_leaves=7", "a tree goes on behind an empty line"),
        ("num_leaves", "6\nnum_leaves=7", "a tree has a field twice"),
        ("num_leaves", "6\nx", "a tree has the line b'x', which is no field"),
        ("max_feature_idx", "", "can't be read as text of LightGBM"),
        ("num_tree_per_iteration", "2147483647", "states 2,147,483,647 trees for each iteration"),
    ],
)
def test_a_damaged_file_is_refused_before_its_reader_crashes(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    path = tmp_path / "model.txt"
    saved(path)
    path.write_text(changed(path.read_text(), name, value))
    with pytest.raises(InputError) as error:
        read_file(path)
    assert said in str(error.value)
    assert "damaged" in str(error.value)


def test_a_tree_without_a_field_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    saved(path)
    path.write_text(path.read_text().replace("\nnum_leaves=", "\nleaves=", 1))
    with pytest.raises(InputError, match=r"model\.txt is damaged: it has no num_leaves$"):
        read_file(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cat_boundaries", "0 -1", "has sets of categories whose bounds aren't in order"),
        ("cat_boundaries", "0 900", "has sets of categories that are cut short"),
        ("cat_threshold", "", "has sets of categories that are cut short"),
    ],
)
def test_damaged_sets_of_categories_are_refused(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    path = tmp_path / "model.txt"
    loose = {"min_data_per_group": 1, "cat_smooth": 1.0, "cat_l2": 0.0, "max_cat_to_onehot": 1}
    saved(path, 1, categorical=[3], num_leaves=2, interaction_constraints="[[3]]", **loose)
    text = path.read_text()
    assert "num_cat=1" in text
    path.write_text(changed(text, name, value))
    with pytest.raises(InputError) as error:
        read_file(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("leaf_features", "1999999999", "has linear models of leaves that are cut short"),
        ("num_features", "0 0 0 0 0 -1", "has linear models of leaves that are cut short"),
        ("leaf_coeff", "", "has linear models of leaves that are cut short"),
    ],
)
def test_damaged_linear_models_are_refused(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    path = tmp_path / "model.txt"
    saved(path, 2, linear_tree=True)
    begin, _, last = path.read_text().rpartition("Tree=1")
    path.write_text(f"{begin}Tree=1{changed(last, name, value)}")
    with pytest.raises(InputError) as error:
        read_file(path)
    assert said in str(error.value)


def test_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    booster = saved(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    read = read_file(path)
    assert read is not None
    assert read.own is not None
    assert np.array_equal(read.own.of(read, [*X]).ravel(), booster.predict(X))


def test_settings_in_another_encoding_and_files_of_old_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    booster = saved(path)
    whole = path.read_bytes()
    foreign = whole.replace(b"[data: ]", b"[data: C:\\Donn\xe9es\\a.csv]")
    assert foreign != whole
    sizes = next(line for line in whole.splitlines() if line.startswith(b"tree_sizes"))
    old = whole.replace(sizes + b"\n", b"").replace(
        b"end of trees\n\nfeature_importances:", b"feature importances:"
    )
    assert b"end of trees" not in old
    for content in (foreign, old):
        path.write_bytes(content)
        read = read_file(path)
        assert read is not None
        assert read.own is not None
        assert np.array_equal(read.own.of(read, [*X]).ravel(), booster.predict(X))


def test_a_live_model_without_trees_is_told_to_be_trained() -> None:
    booster = lightgbm.Booster(
        {**SETTINGS, "objective": "multiclass", "num_class": 3}, lightgbm.Dataset(X, Y > 0)
    )
    with pytest.raises(InputError, match=r"this LightGBM model has no trees: train it first"):
        described(booster)


def test_settings_of_training_and_sizes_of_trees_arent_read(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    booster = saved(path)
    text = path.read_text().replace("tree_sizes=", "tree_sizes=1 999999999 ")
    begin, _, end = text.partition("parameters:")
    path.write_text(f"{begin}parameters:{end.replace(': ', ' ')}")
    read = read_file(path)
    assert read is not None
    assert read.own is not None
    assert np.array_equal(read.own.of(read, [*X]).ravel(), booster.predict(X))
