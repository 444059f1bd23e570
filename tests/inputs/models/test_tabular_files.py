"""Files of models of rows: which are read, which aren't, and what an ONNX file states of itself."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.support.bombs import padded, with_little_unasked
from tests.support.tabular import Exported, training

from hasten.errors import InputError
from hasten.inputs.models.source import find_model, load_model, stated_pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.rows import Row

ROWS, TWO, _, _ = training(missing=0)
SETTINGS: dict[str, dict[str, Any]] = {
    "catboost": {"iterations": 4, "thread_count": 1, "verbose": 0, "allow_writing_files": False},
    "lightgbm": {"n_estimators": 4, "n_jobs": 1, "verbose": -1},
    "xgboost": {"n_estimators": 4, "n_jobs": 1},
}
ESTIMATORS = [
    *(f"catboost CatBoost{kind}" for kind in ("Classifier", "Regressor", "Ranker")),
    *(f"lightgbm LGBM{kind}" for kind in ("Classifier", "Regressor", "Ranker")),
    *(f"xgboost XGB{kind}" for kind in ("Classifier", "Regressor", "Ranker")),
    *(f"xgboost XGBRF{kind}" for kind in ("Classifier", "Regressor")),
]
LOADED = "model = joblib.load({!r})"
WRITTEN = "onnx.save(skl2onnx.to_onnx(model, x[:1]), 'model.onnx')"


@pytest.mark.parametrize("suffix", ["joblib", "pkl", "pickle"])
def test_a_pickle_is_never_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(InputError) as error:
        find_model(path)
    assert str(error.value) == (
        f"{path} is a pickle, and reading one runs whatever code is in it. If you trust it, load it in a my.py "
        f"and give my.py:model; or convert it to an ONNX file with two lines of your own: {LOADED.format(path.name)}; "
        f"{WRITTEN}"
    )


def test_a_file_of_a_newer_version_is_refused_though_its_library_reads_it(tmp_path: Path) -> None:
    """An older library takes what it knows of such a file, and says nothing of the rest."""
    lightgbm = pytest.importorskip("lightgbm", reason="needs the extra tabular")
    xgboost = pytest.importorskip("xgboost", reason="needs the extra xgboost")
    lightgbm.LGBMClassifier(**SETTINGS["lightgbm"]).fit(ROWS, TWO).booster_.save_model(
        tmp_path / "a.txt"
    )
    model = xgboost.XGBClassifier(**SETTINGS["xgboost"]).fit(ROWS, TWO)
    for name in ("a.json", "a.ubj"):
        model.save_model(tmp_path / name)
    here = [int(part) for part in xgboost.__version__.split(".")]
    major, minor = here[:2]
    changes = {
        "a.txt": (b"\nversion=v4\n", b"\nversion=v99\n", "LightGBM 99 or a later one"),
        "a.json": (f"[{major},{minor},".encode(), f"[99,{minor},".encode(), f"XGBoost 99.{minor}"),
        "a.ubj": (
            bytes([*b"i", major, *b"i", minor, *b"i"]),
            bytes([*b"i", 99, *b"i", minor, *b"i"]),
            f"XGBoost 99.{minor}",
        ),
    }
    for name, (old, new, writer) in changes.items():
        path, content = tmp_path / name, (tmp_path / name).read_bytes()
        assert find_model(path) is not None
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(
            InputError, match=f"was saved by {writer}, which is newer than the installed"
        ):
            find_model(path)


@pytest.mark.parametrize("kind", ["DecisionTreeClassifier", "DecisionTreeRegressor"])
def test_the_two_lines_make_a_pickle_a_model(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib = pytest.importorskip("joblib", reason="needs the extra tabular")
    import skl2onnx
    from sklearn import tree

    monkeypatch.chdir(tmp_path)
    x = np.array([[0.0], [1.0]], np.float32)
    joblib.dump(getattr(tree, kind)().fit(x, [0, 1]), "model.joblib")
    loaded = LOADED.format("model.joblib")
    exec(f"{loaded}\n{WRITTEN}", {"joblib": joblib, "onnx": onnx, "skl2onnx": skl2onnx, "x": x})
    model = load_model(find_model("model.onnx"), None, tmp_path)
    assert model.inputs[0].shape[1:] == (1,)


def test_a_model_in_a_users_code_is_found(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "my.py").write_text(
        "from sklearn.tree import DecisionTreeClassifier\n"
        "def model():\n    return DecisionTreeClassifier().fit([[0.0], [1.0]], ['no', 'yes'])\n"
    )
    found = find_model(f"{tmp_path / 'my.py'}:model")
    assert (found.library, found.labels) == ("scikit-learn", ("no", "yes"))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("suffix", "library"),
    [(".ubj", "xgboost"), (".cbm", "catboost"), (".txt", "lightgbm"), (".skops", "skops")],
)
def test_a_file_that_is_mostly_holes_is_refused_in_one_line(
    tmp_path: Path, suffix: str, library: str
) -> None:
    """It has few bytes on the disk, and claims more than any memory."""
    pytest.importorskip(library)
    path = tmp_path / f"m{suffix}"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(InputError) as error:
        find_model(path)
    assert re.fullmatch(
        f"can't read {re.escape(str(path))}: it has 8,796,093,022,208 bytes, and only [0-9,]+ bytes of memory are free",
        str(error.value),
    )


def test_a_skops_file_is_read_if_its_types_are_known(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    skops = pytest.importorskip("skops.io")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    path = tmp_path / "model.skops"
    forest = RandomForestClassifier(2, random_state=0).fit(ROWS, TWO)
    skops.dump(forest, path)
    assert find_model(path).row == Row(("x0", "x1", "x2", "x3"), "nan", whole=True)
    skops.dump(make_pipeline(FunctionTransformer(training), forest), path)
    with pytest.raises(InputError, match=r"types that aren't known to be safe: .*training"):
        find_model(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"can't be read by skops: it is cut short") as refused:
        find_model(path)
    assert "\n" not in str(refused.value)


def test_a_damaged_array_of_another_librarys_estimator_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    pytest.importorskip("sklearn")
    skops, lightgbm = pytest.importorskip("skops.io"), pytest.importorskip("lightgbm")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.random.default_rng(0).standard_normal((40, 3))
    model = lightgbm.LGBMClassifier(n_estimators=2, min_child_samples=2, verbose=-1)
    skops.dump(make_pipeline(StandardScaler(), model).fit(rows, rows[:, 0] > 0), tmp_path / "whole")
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(path, "w") as damaged:
        for name in whole.namelist():
            content = whole.read(name)
            damaged.writestr(name, content[: len(content) // 2] if ".npy" in name else content)
    with pytest.raises(InputError, match=r"ValueError: EOF: reading array header"):
        find_model(path)


def test_a_skops_file_that_is_replaced_after_the_check_isnt_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    skops = pytest.importorskip("skops.io")
    from sklearn.linear_model import LinearRegression

    from hasten.core.archives import excess

    path, other = tmp_path / "model.skops", tmp_path / "other.skops"
    skops.dump(LinearRegression().fit(ROWS, TWO), path)
    skops.dump(LinearRegression().fit(ROWS[:, :2], TWO), other)

    def then_replaced(file: Any) -> str:
        said = excess(file)
        path.write_bytes(other.read_bytes())
        return said

    monkeypatch.setattr("hasten.inputs.models.tabular.sklearn.excess", then_replaced)
    assert find_model(path).row.columns == ("x0", "x1", "x2", "x3")
    assert path.read_bytes() == other.read_bytes()


def often_or_slow() -> Iterator[Any]:
    """Yield each estimator alone and at a pipeline's end; XGBoost's pipelines are slow, but for one."""
    for kind in ESTIMATORS:
        yield pytest.param(kind, False, id=kind)
        # Each is read by another process first, which imports all of skops and its library.
        marks = pytest.mark.slow if "XGB" in kind and "XGBClassifier" not in kind else ()
        yield pytest.param(kind, True, id=f"{kind} of scaled rows", marks=marks)


@pytest.mark.seconds
@pytest.mark.parametrize(("kind", "scaled"), [*often_or_slow()])
def test_a_skops_file_of_another_librarys_estimator_has_its_answers(
    kind: str, scaled: bool, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    skops = pytest.importorskip("skops.io")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    module = pytest.importorskip(kind.split()[0])
    name = kind.split()[1]
    model = getattr(module, name)(**SETTINGS[module.__name__])
    given: dict[str, Any] = {}
    if name.endswith("Ranker"):
        by_row = {"group_id": np.repeat(np.arange(30), 10)}
        given = by_row if module.__name__ == "catboost" else {"group": [10] * 30}
    rows = StandardScaler().fit_transform(ROWS) if scaled else ROWS
    model.fit(rows, TWO, **given)
    answer = model.predict_proba if name.endswith("Classifier") else model.predict
    own = answer(rows)
    whole = make_pipeline(StandardScaler().fit(ROWS), model) if scaled else model
    skops.dump(whole, tmp_path / "model.skops")
    found = find_model(tmp_path / "model.skops")
    assert len(found.row.columns) == 4
    got = Exported(found, tmp_path)(ROWS)
    np.testing.assert_allclose(got, own if own.ndim == 2 else own[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.seconds
def test_a_skops_file_keeps_the_categories_of_another_librarys_estimator(tmp_path: Path) -> None:
    lightgbm, pandas = pytest.importorskip("lightgbm"), pytest.importorskip("pandas")
    skops = pytest.importorskip("skops.io")
    frame = pandas.DataFrame({"a": ROWS[:, 0], "k": np.array(["own", "rent"])[TWO]})
    model = lightgbm.LGBMClassifier(**SETTINGS["lightgbm"])
    model.fit(frame.astype({"k": "category"}), TWO)
    skops.dump(model, tmp_path / "model.skops")
    assert find_model(tmp_path / "model.skops").row.words == (("k", ("own", "rent")),)


@pytest.mark.seconds
def test_a_skops_file_with_a_model_of_catboost_that_is_damaged_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    catboost, skops = pytest.importorskip("catboost"), pytest.importorskip("skops.io")
    path = tmp_path / "model.skops"
    skops.dump(catboost.CatBoostClassifier(**SETTINGS["catboost"]).fit(ROWS, TWO), path)
    changed(path, lambda _, each: each[:100] if each[:4] == b"CBM1" else each)
    with pytest.raises(InputError, match=r"model\.skops can't be read by skops") as refused:
        find_model(path)
    assert "\n" not in str(refused.value)


def changed(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change the members of an archive by their name and content."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            r"left_child=\d+",
            "left_child=99999999",
            "is damaged: its tree 0 has nodes that are nobody's child, or several's",
        ),
        (r"num_leaves=\d+", "num_leaves=400000000", "is damaged: its tree 0 has"),
        (
            r"tree_sizes=\d+",
            "tree_sizes=99999999",
            "is damaged: LightGBM wouldn't find its trees by their sizes",
        ),
        (r"max_feature_idx=3", "max_feature_idx=2147483646", "can't be read by LightGBM: "),
    ],
)
def test_a_skops_file_with_a_model_of_lightgbm_that_is_damaged_is_refused(
    old: str, new: str, why: str, tmp_path: Path
) -> None:
    lightgbm, skops = pytest.importorskip("lightgbm"), pytest.importorskip("skops.io")
    path = tmp_path / "model.skops"
    skops.dump(lightgbm.LGBMClassifier(**SETTINGS["lightgbm"]).fit(ROWS, TWO), path)

    def damaged(name: str, content: bytes) -> bytes:
        if name != "schema.json":
            return content
        text, count = re.subn(old, new, content.decode(), count=1)
        assert count == 1
        return text.encode()

    changed(path, damaged)
    with pytest.raises(InputError) as refused:
        find_model(path)  # before, the whole process crashed, or took all memory
    assert str(refused.value).startswith(f"{path} {why}")


def test_a_skops_file_with_a_tree_whose_nodes_have_no_axis_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    skops = pytest.importorskip("skops.io")
    from sklearn.tree import DecisionTreeClassifier

    path, number = tmp_path / "model.skops", io.BytesIO()
    np.save(number, np.zeros(()))
    skops.dump(DecisionTreeClassifier().fit(ROWS, TWO), path)
    changed(path, lambda _, each: number.getvalue() if b"left_child" in each else each)
    with pytest.raises(InputError) as refused:
        find_model(path)  # before, the whole process crashed
    assert "(ValueError: the nodes of a tree have 0 axes, not one" in str(refused.value)


def test_a_skops_file_does_not_make_a_booster_of_another_file(tmp_path: Path) -> None:
    lightgbm, skops = pytest.importorskip("lightgbm"), pytest.importorskip("skops.io")
    path, other = tmp_path / "model.skops", tmp_path / "other.txt"
    model = lightgbm.LGBMClassifier(**SETTINGS["lightgbm"]).fit(ROWS, TWO).booster_
    model.save_model(other)
    skops.dump(model, path)

    def calling(name: str, content: bytes) -> bytes:
        if name != "schema.json":
            return content
        schema = json.loads(content)
        called = skops.dumps((None, None, str(other)))
        with zipfile.ZipFile(io.BytesIO(called)) as archive:
            arguments = json.loads(archive.read(name))
        schema |= {"__loader__": "ConstructorFromReduceNode", "content": arguments}
        return json.dumps(schema).encode()

    changed(path, calling)
    with pytest.raises(InputError) as refused:
        find_model(path)
    assert str(refused.value) == (
        f"{path} makes a 'Booster' by a 'ConstructorFromReduceNode', which skops doesn't: save the model again"
    )


@pytest.mark.seconds
def test_a_skops_file_with_a_model_of_catboost_that_states_more_bytes_than_it_has_is_refused(
    tmp_path: Path,
) -> None:
    catboost, skops = pytest.importorskip("catboost"), pytest.importorskip("skops.io")
    path = tmp_path / "model.skops"
    skops.dump(catboost.CatBoostClassifier(**SETTINGS["catboost"]).fit(ROWS, TWO), path)
    claimed = (2**31 - 16).to_bytes(4, "little")
    changed(
        path, lambda _, each: b"CBM1" + claimed + each[8:] if each.startswith(b"CBM1") else each
    )
    with pytest.raises(InputError, match="its model of CatBoost states more bytes than it has"):
        find_model(path)


def test_a_skops_file_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    skops = pytest.importorskip("skops.io")
    from sklearn.tree import DecisionTreeClassifier

    with_little_unasked(monkeypatch)
    path = tmp_path / "model.skops"
    skops.dump(DecisionTreeClassifier(random_state=0).fit(ROWS, TWO), path)
    said = padded(path, "zeros.npy")
    with pytest.raises(InputError) as refused:
        find_model(path)
    assert str(refused.value) == f"{path} can't be unpacked safely: {said}"


Nodes = dict[str, list[int]]
DAMAGED_NODES: list[tuple[Nodes, str]] = [
    ({"left": [-(2**40), -1, -1]}, "nobody's child, or several's"),
    ({"left": [2**40, -1, -1]}, "nobody's child, or several's"),
    ({"left": [0, -1, -1]}, "nobody's child, or several's"),
    ({"left": [1, 0, -1], "right": [2, 2, -1]}, "nobody's child, or several's"),
    ({"left": [-1, 1, -1], "right": [-1, 2, -1]}, "has no root"),
    ({"feature": [2**50, -2, -2]}, "a column that isn't one of the 4"),
    ({"feature": [-1, -2, -2]}, "a column that isn't one of the 4"),
]
"""Numbers of the nodes of a tree with two leaves, and a part of the message about them."""


@pytest.mark.parametrize("kind", ["DecisionTree", "RandomForest", "HistGradientBoosting"])
@pytest.mark.parametrize(("nodes", "why"), DAMAGED_NODES, ids=str)
def test_a_tree_of_scikit_learn_whose_nodes_are_damaged_is_refused(
    tmp_path: Path, kind: str, nodes: Nodes, why: str
) -> None:
    ensemble, tree = pytest.importorskip("sklearn.ensemble"), pytest.importorskip("sklearn.tree")
    histogram = kind.startswith("Hist")
    names = (
        {"feature": "feature_idx"} if histogram else {"left": "left_child", "right": "right_child"}
    )
    stumps: dict[str, Any] = {"max_depth": 1}
    stumps |= {"max_iter": 1} if histogram else {}
    stumps |= {"n_estimators": 1} if kind == "RandomForest" else {}
    made = getattr(ensemble, f"{kind}Classifier", None) or tree.DecisionTreeClassifier
    model = made(random_state=0, **stumps).fit(ROWS, TWO + (ROWS[:, 2] > 0.5))
    if histogram:
        held = model._predictors[0][0].nodes
    else:
        one = model if kind == "DecisionTree" else model.estimators_[0]
        state = one.tree_.__getstate__()
        held = state["nodes"].copy()
    for name, numbers in nodes.items():
        bits = np.array(numbers, np.int64)
        field = held[names.get(name, name)]
        field[...] = bits.astype(field.dtype)  # of 32 bits, the lowest
    if histogram:
        held["is_leaf"] = np.array(nodes.get("left", [1, -1, -1])) == -1
    else:
        one.tree_.__setstate__(state | {"nodes": held})
    with pytest.raises(InputError) as refused:
        find_model(model).export(tmp_path)
    assert str(refused.value).startswith("the scikit-learn model is damaged: one of its trees ")
    assert why in str(refused.value)


@pytest.mark.parametrize("kind", ["SVC", "SVR"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("support_", 2_500_000), ("_n_support", 1), ("_dual_coef_", 1), ("_intercept_", 0)),
        *(("_probA", 2), ("support_vectors_", 1)),
    ],
)
def test_a_support_vector_machine_that_lacks_numbers_is_refused(
    tmp_path: Path, kind: str, name: str, size: int
) -> None:
    """Its code in C reads them without a look at their size, and crashes."""
    svm, skops = pytest.importorskip("sklearn.svm"), pytest.importorskip("skops.io")
    settings = {"probability": True} if kind == "SVC" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(svm, kind)(**settings).fit(ROWS, TWO)
    skops.dump(model, tmp_path / "m.skops")
    assert find_model(tmp_path / "m.skops").export(tmp_path).outputs
    before = getattr(model, name)
    setattr(model, name, np.resize(before, (*before.shape[:-1], size)))
    skops.dump(model, tmp_path / "m.skops")
    with pytest.raises(InputError) as refused:
        find_model(tmp_path / "m.skops")
    assert str(refused.value) == (
        f"the {kind} is damaged or has a kernel that isn't supported: its support vectors and their numbers don't fit"
    )


def test_a_histogram_model_that_lacks_columns_is_refused(tmp_path: Path) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    model = ensemble.HistGradientBoostingRegressor(max_iter=2).fit(ROWS, TWO)
    model._bin_mapper.is_categorical_ = np.ones(1, np.uint8)
    with pytest.raises(InputError, match="it doesn't say of each column whether it has categories"):
        find_model(model).export(tmp_path)


def test_a_library_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.ubj").write_bytes(b"{")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(InputError, match=r"a model of XGBoost, needs .*'hasten\[xgboost\]'"):
        find_model(tmp_path / "model.ubj")
    (tmp_path / "model.cbm").write_bytes(b"CBM1")
    monkeypatch.setitem(sys.modules, "catboost", None)
    with pytest.raises(InputError, match=r"a model of CatBoost, needs .*'hasten\[tabular\]'"):
        find_model(tmp_path / "model.cbm")


@pytest.mark.parametrize("name", ["model.bin", "model.model", "model", "model.onnx"])
@pytest.mark.parametrize("library", ["LightGBM", "XGBoost", "XGBoost in JSON", "CatBoost"])
def test_a_file_is_known_by_its_first_bytes_whatever_it_is_called(
    library: str, name: str, tmp_path: Path
) -> None:
    module = pytest.importorskip(library.split()[0].lower())
    path = tmp_path / name
    if library == "LightGBM":
        data = module.Dataset(ROWS, TWO)
        module.train({"verbose": -1, "num_threads": 1}, data, 2).save_model(path)
    elif library == "CatBoost":
        model = module.CatBoostClassifier(
            iterations=2, thread_count=1, verbose=False, allow_writing_files=False
        )
        model.fit(ROWS, TWO).save_model(str(path))
    else:
        booster = module.train({"nthread": 1}, module.DMatrix(ROWS, TWO), 2)
        path.write_bytes(booster.save_raw("json" if "JSON" in library else "ubj"))
    assert find_model(path).library == library.split()[0]


def test_a_file_whose_suffix_names_another_library_is_known_by_its_first_bytes(
    tmp_path: Path,
) -> None:
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    booster = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(ROWS, TWO), 2)
    booster.save_model(tmp_path / "model.json")
    assert find_model(tmp_path / "model.json").library == "LightGBM"
    other = xgboost.train({"nthread": 1}, xgboost.DMatrix(ROWS, TWO), 2)
    for kind, suffix in (("json", "ubj"), ("ubj", "json"), ("json", "txt"), ("ubj", "cbm")):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(other.save_raw(kind))
        assert find_model(path).library == "XGBoost"


def test_an_onnx_file_states_its_own_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    found = find_model(LogisticRegression().fit(ROWS, np.array(["no", "yes"])[TWO]))
    model = load_model(found, None, tmp_path)
    assert [str(spec) for spec in model.inputs] == ["rows: float32[batch, 4]"]
    assert [str(spec) for spec in model.outputs] == ["probabilities: float32[batch, 2]"]
    steps = (Row(("x0", "x1", "x2", "x3"), whole=True), TopK(2, ("no", "yes"), softmax=False))
    for one in (found, model.path):
        pipeline = stated_pipeline(one)
        assert pipeline is not None
        assert (*pipeline.steps, *pipeline.after) == steps
    proto = onnx.load(model.path)
    for value in ("{", '{"steps": [{"type": "os:system"}]}', "[" * 100_000):
        proto.metadata_props[0].value = value
        onnx.save(proto, model.path)
        with pytest.raises(InputError, match=r"its hasten\.pipeline can't be read") as refused:
            stated_pipeline(model.path)
        assert "\n" not in str(refused.value)
    del proto.metadata_props[:]
    onnx.save(proto, model.path)
    assert stated_pipeline(model.path) is None


def damaged_ubj(path: Path, place: int, value: int) -> None:
    """Write a model of XGBoost, but for one byte."""
    xgboost = pytest.importorskip("xgboost")
    x = np.random.default_rng(0).standard_normal((60, 4))
    rows = xgboost.DMatrix(x, (x[:, 0] > 0).astype(int))
    xgboost.train({"objective": "binary:logistic", "max_depth": 2}, rows, 2).save_model(path)
    damaged = bytearray(path.read_bytes())
    damaged[place] = value
    path.write_bytes(damaged)


@pytest.mark.parametrize(("place", "value"), [(1577, 215), (1793, 253), (2295, 90), (259, 246)])
def test_bytes_that_crash_xgboosts_parser_are_one_line(
    place: int, value: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.ubj"
    damaged_ubj(path, place, value)
    # XGBoost 3.2 dies of these bytes or reads them, as its memory happens to be; others may refuse them.
    said = f"{path} can't be read by XGBoost"
    try:
        find_model(path)
    except InputError as error:
        said = str(error)
    assert said.startswith(
        (f"{path} is damaged: XGBoost crashed (SIGSEGV) while it", f"{path} can't")
    )


WATCHED = """
import os, subprocess, sys

child = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(child.pid, 0)
open(sys.argv[1], "w").write(str(used.ru_maxrss))
code = os.waitstatus_to_exitcode(status)
sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)
"""
"""Small program that starts another and notes its peak of KiB, in which its parent's memory at the start counts."""


def test_a_damaged_file_that_asks_xgboost_for_gigabytes_is_tried_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.ubj"
    damaged_ubj(path, 259, 246)  # the type of an array, whose length is then some billions
    peak = tmp_path / "peak"
    real = subprocess.run

    def watched(command: list[str], **given: Any) -> subprocess.CompletedProcess[bytes]:
        return real([sys.executable, "-S", "-c", WATCHED, str(peak), *command], **given)

    monkeypatch.setattr(subprocess, "run", watched)
    with pytest.raises(InputError) as refused:
        find_model(path)
    assert "\n" not in str(refused.value)
    assert int(peak.read_text()) < 1.1 * (1 << 20)
