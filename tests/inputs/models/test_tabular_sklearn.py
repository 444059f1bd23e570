"""scikit-learn's models and pipelines as ONNX and as compiled C, held against its own answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tabular import CATEGORIES, FEW, ODD, Exported, training

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import find_model
from hasten.inputs.models.tabular.base import described

pytest.importorskip("sklearn")
from sklearn import ensemble, linear_model, preprocessing, tree
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.impute import SimpleImputer
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline

ROWS, TWO, THREE, NUMBERS = training()
WHOLE = np.nan_to_num(ROWS)
KNOWN = tuple(value for value in ODD if not np.isnan(value))
OneHot, Ordinal = preprocessing.OneHotEncoder, preprocessing.OrdinalEncoder
TREES: dict[str, tuple[Any, Array, bool]] = {
    "a tree": (tree.DecisionTreeClassifier(max_depth=4), TWO, True),
    "a tree of numbers": (tree.DecisionTreeRegressor(max_depth=4), NUMBERS, True),
    "a forest": (ensemble.RandomForestClassifier(6, max_depth=5), TWO, True),
    "a forest of shares": (
        ensemble.RandomForestClassifier(5, max_depth=4, min_samples_leaf=4),
        THREE,
        True,
    ),
    "extra trees": (ensemble.ExtraTreesClassifier(4, max_depth=5), THREE, False),
    "two numbers": (
        ensemble.RandomForestRegressor(4, max_depth=4),
        np.stack([NUMBERS, -NUMBERS], axis=1),
        True,
    ),
    "boosting": (ensemble.GradientBoostingClassifier(n_estimators=5), TWO, False),
    "boosting of three": (ensemble.GradientBoostingClassifier(n_estimators=4), THREE, False),
    "boosting of numbers": (ensemble.GradientBoostingRegressor(n_estimators=5), NUMBERS, False),
    "histograms": (ensemble.HistGradientBoostingClassifier(max_iter=5), THREE, True),
    "poisson": (ensemble.HistGradientBoostingRegressor(loss="poisson", max_iter=5), NUMBERS, True),
    "isolation": (ensemble.IsolationForest(n_estimators=6, max_samples=64), TWO, False),
}
SUMS = (
    "a tree",
    "a tree of numbers",
    "a forest",
    "a forest of shares",
    "extra trees",
    "two numbers",
    "boosting of numbers",
)
"""Models whose answers are sums or means of leaves."""


def own_of(model: Any, rows: Any) -> Array:
    """Return scikit-learn's own probabilities, or numbers."""
    name = next(
        name
        for name in ("predict_proba", "decision_function", "predict")
        if hasattr(model, name) and not (name == "decision_function" and hasattr(model, "classes_"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown categories, for instance
        own = np.asarray(getattr(model, name)(rows))
    return own if own.ndim == 2 else own[:, None]


@pytest.fixture(scope="module", params=TREES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, labels, missing = TREES[request.param]
    model.set_params(random_state=0).fit(ROWS if missing else WHOLE, labels)
    return model, Exported(model, tmp_path_factory.mktemp("model")), missing


@FEW
@given(st.data())
def test_a_row_at_a_threshold_goes_where_scikit_learn_sends_it(
    pair: Any, data: st.DataObject
) -> None:
    model, exported, missing = pair
    rows = data.draw(exported.rows(ODD if missing else KNOWN))
    own = own_of(model, rows)
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SUMS)
def test_compiled_c_adds_as_scikit_learn_does_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model, labels, _ = TREES[name]
    model.set_params(random_state=0).fit(WHOLE, labels)
    got = Exported(model, tmp_path).compiled(WHOLE)
    np.testing.assert_array_equal(got, own_of(model, WHOLE))


def test_votes_that_are_equal_stay_equal(tmp_path: Path) -> None:
    forest = ensemble.RandomForestClassifier(10, random_state=0).fit(WHOLE, THREE)
    exported = Exported(forest, tmp_path)
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(3000, 4))
    own = forest.predict_proba(rows)
    tied = (own == own.max(axis=1, keepdims=True)).sum(axis=1) > 1
    assert tied.sum() > 50
    for got in exported.each(rows):
        assert (got.argmax(axis=1) == own.argmax(axis=1)).all()


def test_categories_of_histograms_go_where_scikit_learn_sends_them(tmp_path: Path) -> None:
    model = ensemble.HistGradientBoostingClassifier(
        max_iter=5, categorical_features=[3], random_state=0
    ).fit(ROWS, TWO)
    exported = Exported(model, tmp_path)
    rows = np.repeat(ROWS[:60], len(CATEGORIES) + 1, axis=0)
    rows[:, 3] = np.tile([*CATEGORIES, np.nan], 60)
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own_of(model, rows), rtol=1e-12)
    np.testing.assert_allclose(exported.by_the_standard(rows[:50]), exported(rows[:50]), rtol=1e-12)


SMOOTH: dict[str, tuple[Any, Array]] = {
    "logistic": (linear_model.LogisticRegression(), TWO),
    "logistic of three": (linear_model.LogisticRegression(), THREE),
    "ridge": (linear_model.Ridge(), NUMBERS),
    "counts": (linear_model.PoissonRegressor(), NUMBERS),
    "a discriminant": (LinearDiscriminantAnalysis(), TWO),
    "a network": (MLPClassifier((5, 4), max_iter=15, random_state=0), THREE),
    "a network of numbers": (
        MLPRegressor(hidden_layer_sizes=(4,), activation="tanh", max_iter=15, random_state=0),
        NUMBERS,
    ),
    "bayes": (GaussianNB(), THREE),
    "a vote": (
        ensemble.VotingClassifier(
            [
                ("a", linear_model.LogisticRegression()),
                ("b", tree.DecisionTreeClassifier(max_depth=3)),
            ],
            voting="soft",
            weights=[1, 3],
        ),
        TWO,
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_model_agrees_to_the_precision_of_its_type(name: str, tmp_path: Path) -> None:
    model, labels = SMOOTH[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few iterations are enough here
        model.fit(WHOLE, labels)
    exported = Exported(model, tmp_path)
    for got in exported.each(WHOLE):
        np.testing.assert_allclose(got, own_of(model, WHOLE), rtol=2e-5, atol=1e-6)


def test_what_goes_through_skl2onnx_agrees(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.svm import SVR

    model = SVR().fit(WHOLE, NUMBERS)
    for got in Exported(model, tmp_path).each(WHOLE):
        np.testing.assert_allclose(got, own_of(model, WHOLE), atol=2e-5)


def test_svc_agrees(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.svm import SVC

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn 1.8 advises against its probabilities
        model = SVC(probability=True, random_state=0).fit(WHOLE, TWO)
    for got in Exported(model, tmp_path).each(WHOLE):
        np.testing.assert_allclose(got, own_of(model, WHOLE), atol=2e-6)


STEPS = {
    "standard": preprocessing.StandardScaler(),
    "robust": preprocessing.RobustScaler(),
    "min and max": preprocessing.MinMaxScaler(clip=True),
    "largest": preprocessing.MaxAbsScaler(),
    "lengths": preprocessing.Normalizer(),
    "above": preprocessing.Binarizer(threshold=0.3),
    "components": PCA(2, whiten=True),
    "products": preprocessing.PolynomialFeatures(3),
    "bins": preprocessing.KBinsDiscretizer(4, encode="onehot-dense", strategy="uniform"),
    "logarithms": preprocessing.FunctionTransformer(np.exp),
    "codes": Ordinal(handle_unknown="use_encoded_value", unknown_value=-3),
    "shares": preprocessing.TargetEncoder(cv=2),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_tree_after_a_step_sees_the_steps_own_float64(name: str, tmp_path: Path) -> None:
    step = STEPS[name]
    model = make_pipeline(step, tree.DecisionTreeClassifier(max_depth=6, random_state=0))
    rows = np.round(WHOLE, 1) if name in ("codes", "shares") else WHOLE
    model.fit(rows, TWO)
    exported = Exported(model, tmp_path)
    assert exported.tabular.row.dtype == "float64"
    for got in exported.each(rows):
        np.testing.assert_array_equal(got, own_of(model, rows))


def frame_of(pandas: Any) -> Any:
    """Return a table of two columns of numbers and two of words, some of them missing."""
    rng = np.random.default_rng(3)
    frame = pandas.DataFrame(
        {
            "age": rng.integers(18, 80, 200).astype(float),
            "income": rng.lognormal(10, 1, 200),
            "housing": rng.choice(["rent", "own", "free"], 200, p=[0.5, 0.47, 0.03]),
            "job": rng.choice(["a", "b", "c"], 200),
        }
    )
    frame.loc[::9, "income"] = np.nan
    frame.loc[::11, "job"] = np.nan
    return frame


ENCODERS = {
    "zeros": OneHot(handle_unknown="ignore"),
    "the first dropped": OneHot(handle_unknown="ignore", drop="first"),
    "rare ones joined": OneHot(handle_unknown="infrequent_if_exist", min_frequency=20),
    "codes": Ordinal(
        handle_unknown="use_encoded_value", unknown_value=-5, encoded_missing_value=-9
    ),
    "shares": preprocessing.TargetEncoder(cv=2),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("head", ["linear", "forest"])
def test_words_known_unknown_and_missing_are_encoded_as_by_the_original(
    name: str, head: str, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = frame_of(pandas)
    labels = np.where((frame.age > 45) ^ (frame.housing == "own"), "good", "bad")
    last = linear_model.LogisticRegression(max_iter=500)
    if head == "forest":
        last = ensemble.RandomForestClassifier(5, random_state=0)
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), preprocessing.StandardScaler()), ["income", "age"]),
            (ENCODERS[name], ["job", "housing"]),
        ),
        last,
    )
    model.fit(frame, labels)
    exported = Exported(model, tmp_path)
    row = exported.tabular.row
    assert row.columns == ("age", "income", "housing", "job")
    assert exported.tabular.labels == ("bad", "good")
    new = pandas.DataFrame(
        [
            {"age": age, "income": income, "housing": housing, "job": job}
            for age in (20.0, 45.0)
            for income in (None, 1e4)
            for housing in ("rent", "free", "boat")
            for job in ("a", "c", None, "z")
        ]
    ).astype({"income": float, "job": frame.job.dtype})
    for got in exported.each(np.stack([row(one) for one in new.to_dict("records")])):
        np.testing.assert_allclose(got, own_of(model, new), rtol=1e-5, atol=1e-6)


def test_what_the_original_refuses_is_refused_by_the_row() -> None:
    pandas = pytest.importorskip("pandas")
    frame = frame_of(pandas).dropna()
    frame["floor"] = np.arange(len(frame)) % 3
    model = make_pipeline(
        make_column_transformer(
            (preprocessing.StandardScaler(), ["age", "income"]),
            (OneHot(), ["housing", "job", "floor"]),
        ),
        linear_model.LogisticRegression(),
    ).fit(frame, frame.age > 40)
    row = described(model).row
    good = {"age": 30, "income": 1e4, "housing": "own", "job": "a", "floor": 2}
    assert row(good).tolist() == [30, 1e4, 1, 0, 2]
    for change, said in (
        ({"housing": "boat"}, "the column 'housing' needs one of its words, 'free', 'own', 'rent'"),
        ({"job": None}, "the column 'job' has no value: give one"),
        ({"age": None}, "the column 'age' has no value: give one"),
        ({"age": float("inf")}, "the column 'age' needs a number that float64 holds"),
        ({"age": "old"}, "the column 'age' needs a number: got a text"),
        ({"floor": 7}, "the column 'floor' takes 0, 1, 2: got 7"),
        ({"rooms": 3}, "the row has the column 'rooms', which isn't among the 5 that are known"),
    ):
        with pytest.raises(InputError, match=said):
            row(good | change)
    del good["income"]
    with pytest.raises(InputError, match="the row has no column 'income', but 'salary'"):
        row(good | {"salary": 1})


def test_another_librarys_model_may_end_a_pipeline(tmp_path: Path) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    last = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
    model = make_pipeline(preprocessing.StandardScaler(), last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LightGBM's wrapper names columns that it wasn't given
        model.fit(ROWS, TWO)
    exported = Exported(model, tmp_path)
    for got in exported.each(ROWS):
        np.testing.assert_allclose(got, own_of(model, ROWS), rtol=1e-12)


def test_a_mean_far_from_zero_keeps_float64(tmp_path: Path) -> None:
    rows = WHOLE + 1e8
    model = make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    model.fit(rows, TWO)
    for got in Exported(model, tmp_path).each(rows):
        np.testing.assert_allclose(got, own_of(model, rows), rtol=1e-6)


def test_what_is_not_covered_is_refused_by_name() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    convert = (
        "isn't supported: convert the whole model to an ONNX file yourself, as skl2onnx.to_onnx does, and "
        "give that file; the supported ones are "
    )
    with pytest.raises(InputError, match=f"^the model KNeighborsClassifier {convert}ARDRegression"):
        find_model(KNeighborsClassifier().fit(WHOLE, TWO))
    curves = make_pipeline(preprocessing.SplineTransformer(), linear_model.LogisticRegression())
    with pytest.raises(InputError, match=f"^the transformer SplineTransformer {convert}Binarizer"):
        find_model(curves.fit(WHOLE, TWO))
    own = make_pipeline(preprocessing.FunctionTransformer(abs), linear_model.LogisticRegression())
    with pytest.raises(InputError, match="FunctionTransformer's function 'abs' isn't supported"):
        find_model(own.fit(WHOLE, TWO))
    with pytest.raises(InputError, match="isn't fitted"):
        find_model(linear_model.LogisticRegression())
