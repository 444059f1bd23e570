"""Calibration, targets that are transformed, and others around a model, held against scikit-learn's own answers."""

from __future__ import annotations

import warnings
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
from hasten.inputs.pipeline.rows import Row

pytest.importorskip("sklearn")
from sklearn import ensemble, linear_model, preprocessing, svm, tree
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline, make_union

ROWS, TWO, THREE, NUMBERS = training()
WHOLE = np.nan_to_num(ROWS)
KNOWN = tuple(value for value in ODD if not np.isnan(value))
Calibrated, Scaler = CalibratedClassifierCV, preprocessing.StandardScaler
Logistic, Forest = linear_model.LogisticRegression, ensemble.RandomForestClassifier
Boosting, Histograms = (
    ensemble.GradientBoostingClassifier,
    ensemble.HistGradientBoostingClassifier,
)
Tree = tree.DecisionTreeClassifier


def own_of(model: Any, rows: Any) -> Array:
    """Return scikit-learn's own probabilities, scores or numbers; of two classes, a score for each."""
    name = next(
        name for name in ("predict_proba", "decision_function", "predict") if hasattr(model, name)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = np.asarray(getattr(model, name)(rows), np.float64)
    if name == "decision_function" and own.ndim == 1:
        own = np.stack([np.zeros_like(own), own], axis=1)
    return own if own.ndim == 2 else own[:, None]


def fitted(model: Any, rows: Any, labels: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few iterations are enough here
        return model.fit(rows, labels)


OF_TREES: dict[str, tuple[Any, Array, bool]] = {
    "sigmoid of a forest": (Calibrated(Forest(4, max_depth=4, random_state=0), cv=2), TWO, True),
    "isotonic of a forest": (
        Calibrated(Forest(4, max_depth=4, random_state=0), method="isotonic", cv=2),
        THREE,
        True,
    ),
    "isotonic of boosting": (
        Calibrated(Boosting(n_estimators=4, random_state=0), method="isotonic", cv=2),
        TWO,
        False,
    ),
    "sigmoid of boosting": (
        Calibrated(Boosting(n_estimators=3, random_state=0), cv=2, ensemble=False),
        THREE,
        False,
    ),
    "isotonic of histograms": (
        Calibrated(Histograms(max_iter=4, random_state=0), method="isotonic", cv=2),
        TWO,
        True,
    ),
    "a bag of trees": (
        ensemble.BaggingClassifier(Tree(max_depth=4), 4, max_features=3, random_state=0),
        THREE,
        False,
    ),
    "a bag of numbers": (ensemble.BaggingRegressor(n_estimators=3, random_state=0), NUMBERS, False),
    "votes of stumps": (ensemble.AdaBoostClassifier(n_estimators=5, random_state=0), TWO, False),
    "votes of trees": (
        ensemble.AdaBoostClassifier(Tree(max_depth=3), n_estimators=5, random_state=0),
        THREE,
        False,
    ),
    "logarithms of a target": (
        TransformedTargetRegressor(
            ensemble.RandomForestRegressor(4, max_depth=4, random_state=0),
            func=np.log1p,
            inverse_func=np.expm1,
        ),
        NUMBERS,
        True,
    ),
    "one tree a class": (OneVsRestClassifier(Tree(max_depth=3, random_state=0)), THREE, False),
}


@pytest.fixture(scope="module", params=OF_TREES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, labels, missing = OF_TREES[request.param]
    fitted(model, ROWS if missing else WHOLE, labels)
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
        np.testing.assert_allclose(got, own, rtol=1e-10, atol=1e-14)


def test_an_isotonic_calibration_agrees_at_and_around_each_of_its_knots(tmp_path: Path) -> None:
    # The score is the row itself, so that rows can lie exactly on knots.
    line = linear_model.SGDClassifier().fit(WHOLE[:, :1], TWO)
    line.coef_, line.intercept_ = np.array([[1.0]]), np.array([0.0])
    frozen = FrozenEstimator(line)
    model = Calibrated(frozen, method="isotonic").fit(WHOLE[:, :1], TWO)
    (fold,) = model.calibrated_classifiers_
    knots = fold.calibrators[0].X_thresholds_
    assert len(knots) > 5
    near = [np.nextafter(knots, way) for way in (-np.inf, np.inf)]
    rows = np.concatenate([knots, *near, (knots[1:] + knots[:-1]) / 2, [-1e9, 1e9]])[:, None]
    exported = Exported(model, tmp_path)
    assert exported.tabular.row.dtype == "float64"
    own = own_of(model, rows)
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own, rtol=0, atol=1e-12)


SMOOTH: dict[str, tuple[Any, Array]] = {
    "sigmoid": (Calibrated(Logistic(), cv=3), TWO),
    "sigmoid of three": (Calibrated(Logistic(), cv=2), THREE),
    "sigmoid of a pipeline": (Calibrated(make_pipeline(Scaler(), Logistic()), cv=2), TWO),
    "sigmoid of a machine": (Calibrated(svm.LinearSVC(), cv=2), TWO),
    "sigmoid of hinges": (
        Calibrated(linear_model.SGDClassifier(random_state=0), cv=2),
        THREE,
    ),
    "sigmoid of bayes": (Calibrated(GaussianNB(), cv=2), THREE),
    "sigmoid of a search": (
        Calibrated(GridSearchCV(Logistic(), {"C": [0.1, 1]}, cv=2), cv=2),
        TWO,
    ),
    "a calibrated vote": (
        Calibrated(
            ensemble.VotingClassifier([("a", Logistic()), ("b", GaussianNB())], voting="soft"),
            cv=2,
        ),
        TWO,
    ),
    "ridge of classes": (linear_model.RidgeClassifier(), TWO),
    "ridge of three": (linear_model.RidgeClassifierCV(), THREE),
    "a machine": (svm.LinearSVC(), THREE),
    "a machine of numbers": (svm.LinearSVR(), NUMBERS),
    "hinges": (linear_model.SGDClassifier(random_state=0), TWO),
    "counts": (linear_model.TweedieRegressor(power=1.5), NUMBERS),
    "normal counts": (linear_model.TweedieRegressor(power=0), NUMBERS),
    "sizes": (linear_model.GammaRegressor(), NUMBERS),
    "one against the rest": (OneVsRestClassifier(Logistic()), THREE),
    "one of two": (OneVsRestClassifier(Logistic()), TWO),
    "machines": (OneVsRestClassifier(svm.LinearSVC()), THREE),
    "a bag of lines": (
        ensemble.BaggingClassifier(Logistic(), 3, max_features=2, random_state=0),
        TWO,
    ),
    "a scaled target": (
        TransformedTargetRegressor(linear_model.Ridge(), transformer=Scaler()),
        NUMBERS,
    ),
    "a target between bounds": (
        TransformedTargetRegressor(linear_model.Ridge(), transformer=preprocessing.MinMaxScaler()),
        NUMBERS,
    ),
    "a square root of a target": (
        TransformedTargetRegressor(linear_model.Ridge(), func=np.sqrt, inverse_func=np.square),
        NUMBERS,
    ),
    "a target as it is": (TransformedTargetRegressor(linear_model.Ridge()), NUMBERS),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_model_agrees_to_the_precision_of_its_type(name: str, tmp_path: Path) -> None:
    model, labels = SMOOTH[name]
    fitted(model, WHOLE, labels)
    exported = Exported(model, tmp_path)
    own = own_of(model, WHOLE)
    for got in exported.each(WHOLE):
        np.testing.assert_allclose(got, own, rtol=2e-5, atol=2e-6)
    scored = not hasattr(model, "predict_proba") and hasattr(model, "classes_")
    assert exported.tabular.scored == scored
    if hasattr(model, "classes_"):
        assert (model.classes_[exported(WHOLE).argmax(axis=1)] == model.predict(WHOLE)).all()


Odds = linear_model.SGDClassifier(loss="log_loss", random_state=0)
FAR: dict[str, Any] = {
    "a sum of sigmoids": Odds,
    "one against the rest": OneVsRestClassifier(Odds),
    "a pipeline against the rest": OneVsRestClassifier(make_pipeline(Scaler(), Odds)),
    "a vote": ensemble.VotingClassifier(
        [("a", OneVsRestClassifier(Odds)), ("b", Forest(3, random_state=0))], voting="soft"
    ),
}


@pytest.mark.parametrize("name", FAR)
def test_classes_that_are_all_unlikely_keep_their_shares(name: str, tmp_path: Path) -> None:
    model, rows = fitted(FAR[name], 30 * WHOLE, THREE), 30 * WHOLE
    own = own_of(model, rows)
    for got in Exported(model, tmp_path).each(rows):
        np.testing.assert_allclose(got, own, rtol=1e-6, atol=1e-12)


def test_a_row_that_is_too_far_from_all_classes_is_answered_as_by_the_original(
    tmp_path: Path,
) -> None:
    model = linear_model.SGDClassifier(loss="log_loss", random_state=0).fit(WHOLE, THREE)
    model.coef_, model.intercept_ = np.full((3, 4), [[1.0], [2.0], [3.0]]), np.zeros(3)
    rows = -np.geomspace(1, 1e6, 60)[:, None] * np.ones(4)
    own = own_of(model, rows)
    assert (own[-1] == 1 / 3).all()
    for got in Exported(model, tmp_path).each(rows):
        np.testing.assert_allclose(got, own, rtol=1e-9)


STEPS: dict[str, Any] = {
    "powers": preprocessing.PowerTransformer(),
    "powers alone": preprocessing.PowerTransformer(standardize=False),
    "ranks": preprocessing.QuantileTransformer(n_quantiles=40),
    "normal ranks": preprocessing.QuantileTransformer(n_quantiles=60, output_distribution="normal"),
    "largest, cut": preprocessing.MaxAbsScaler(clip=True),
    "gaps": make_union(SimpleImputer(), MissingIndicator(error_on_new=False)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_agrees_with_the_original(name: str, tmp_path: Path) -> None:
    # Last bits of powers and logarithms differ: then no rows are compared with thresholds that are rows.
    powers = name.startswith(("powers", "normal"))
    last = linear_model.Ridge() if powers else Histograms(max_iter=5, random_state=0)
    rows = ROWS.copy()
    if name.endswith("ranks"):
        rows[:, 1] = np.round(rows[:, 1])  # equal quantiles
    rows = np.nan_to_num(rows) if powers else rows
    model = fitted(make_pipeline(STEPS[name], last), rows, NUMBERS if powers else TWO)
    exported = Exported(model, tmp_path)
    more = np.concatenate([rows, 3 * rows, -rows])
    for got in exported.each(more):
        np.testing.assert_allclose(got, own_of(model, more), rtol=1e-9, atol=1e-12)


SMALL: dict[str, Any] = {
    "powers": preprocessing.PowerTransformer(),
    "logarithms of one more": make_pipeline(preprocessing.FunctionTransformer(np.log1p), Scaler()),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_numbers_keep_their_digits(name: str, tmp_path: Path) -> None:
    sizes = np.array([1e-14, 1e-10, 1e-6, 1.0])
    rows = sizes * np.abs(WHOLE)
    step = fitted(SMALL[name], rows, None)
    last = fitted(linear_model.Ridge(), step.transform(rows), NUMBERS)
    for got in Exported(make_pipeline(step, last), tmp_path).each(rows):
        np.testing.assert_allclose(got, last.predict(step.transform(rows))[:, None], rtol=1e-9)


@pytest.mark.parametrize(
    ("func", "inverse_func"), [(np.log1p, np.expm1), (np.expm1, np.log1p)], ids=["expm1", "log1p"]
)
def test_a_target_of_small_numbers_keeps_its_digits(
    func: Any, inverse_func: Any, tmp_path: Path
) -> None:
    numbers = np.geomspace(1e-18, 3, 300)
    numbers[::2] *= -0.3  # logarithms of one less, too
    inner = tree.DecisionTreeRegressor(random_state=0)
    model = TransformedTargetRegressor(inner, func=func, inverse_func=inverse_func)
    fitted(model, WHOLE, numbers)
    for got in Exported(model, tmp_path).each(WHOLE):
        np.testing.assert_allclose(got, own_of(model, WHOLE), rtol=1e-13)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_ranks_agree_beyond_ends_that_many_rows_share(distribution: str, tmp_path: Path) -> None:
    rows = np.clip(WHOLE, 0, 1)
    rows[:, 2], rows[:, 3] = 7.0, 1e300 * rows[:, 0]
    step = preprocessing.QuantileTransformer(n_quantiles=50, output_distribution=distribution)
    model = fitted(make_pipeline(step, linear_model.Ridge()), rows, NUMBERS)
    model[-1].coef_ = np.array([1.0, 10.0, 100.0, 1000.0])
    ends = np.array([-1e308, -1.0, -1e-300, 0.0, 5e-324, 0.5, 1.0, 1.2, 7.0, 8.0, 1e300, 1e308])
    more = np.stack([ends, ends[::-1], np.roll(ends, 3), np.roll(ends, 7)], axis=1)
    for got in Exported(model, tmp_path).each(more):
        np.testing.assert_allclose(got, own_of(model, more), rtol=1e-9)


BENT: dict[str, Any] = {
    "powers": preprocessing.PowerTransformer(),
    "powers alone": preprocessing.PowerTransformer(standardize=False),
    "normal ranks": preprocessing.QuantileTransformer(output_distribution="normal"),
    "logarithms": preprocessing.FunctionTransformer(np.log),
    "logarithms of one more": preprocessing.FunctionTransformer(np.log1p),
    "exponentials": preprocessing.FunctionTransformer(np.exp),
    "tangents": preprocessing.FunctionTransformer(np.tanh),
    "logarithms, scaled": make_pipeline(preprocessing.FunctionTransformer(np.log), Scaler()),
    "logarithms between bounds": make_pipeline(
        preprocessing.FunctionTransformer(np.log), preprocessing.MinMaxScaler()
    ),
    "components": PCA(2),
    "products": preprocessing.PolynomialFeatures(3),
}


@pytest.mark.parametrize("name", BENT)
def test_histograms_send_a_value_that_is_a_threshold_left_behind_powers_and_logarithms(
    name: str, tmp_path: Path
) -> None:
    # More values than a histogram has bins, so that thresholds are values themselves.
    rng = np.random.default_rng(0)
    rows, more = (np.round(np.abs(rng.normal(size=(2000, 3))), 2) + 0.01 for _ in range(2))
    numbers = rows[:, 0] ** 2 + rows[:, 1] + rng.normal(size=2000) * 0.1
    last = ensemble.HistGradientBoostingRegressor(max_iter=30, random_state=0)
    model = fitted(make_pipeline(BENT[name], last), rows, numbers)
    every = np.concatenate([more, rows])
    for got in Exported(model, tmp_path).each(every):
        np.testing.assert_allclose(got, own_of(model, every), rtol=1e-9)


def test_powers_next_to_logarithms_agree(tmp_path: Path) -> None:
    step = preprocessing.PowerTransformer(standardize=False).fit(WHOLE)
    step.lambdas_ = np.array([0.0, 2.0, 1.0, -0.7])
    model = make_pipeline(step, fitted(linear_model.Ridge(), step.transform(WHOLE), NUMBERS))
    for got in Exported(model, tmp_path).each(WHOLE):
        np.testing.assert_allclose(got, own_of(model, WHOLE), rtol=1e-9)


def test_a_column_without_gaps_in_training_may_have_none() -> None:
    rows = WHOLE.copy()
    rows[::7, 1] = np.nan
    gaps = make_union(SimpleImputer(), MissingIndicator())
    row = described(make_pipeline(gaps, linear_model.Ridge()).fit(rows, NUMBERS)).row
    assert row.required == ("x0", "x2", "x3")


def test_words_within_a_calibrated_pipeline_are_the_rows_words(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": WHOLE[:, 0], "k": np.array(["own", "rent", "free"])[THREE]})
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore")
    inner = make_pipeline(make_column_transformer((Scaler(), ["a"]), (encoder, ["k"])), Logistic())
    model = Calibrated(inner, method="isotonic", cv=2).fit(frame, np.array(["no", "yes"])[TWO])
    exported = Exported(model, tmp_path)
    row = exported.tabular.row
    assert row.columns == ("a", "k")
    assert dict(row.words) == {"k": ("free", "own", "rent")}
    assert row.required == () or row.missing == "nan"
    assert exported.tabular.labels == ("no", "yes")
    new = pandas.DataFrame(
        [{"a": a, "k": k} for a in (-1.0, 0.0, 2.5) for k in ("own", "free", "boat")]
    )
    rows = np.stack([row(one) for one in new.to_dict("records")])
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own_of(model, new), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("library", ["catboost", "lightgbm", "xgboost"])
@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("labels", [TWO, THREE], ids=["two", "three"])
def test_another_librarys_model_is_calibrated_as_by_the_original(
    library: str, method: str, labels: Array, tmp_path: Path
) -> None:
    module = pytest.importorskip(library)
    models = {
        "catboost": lambda: module.CatBoostClassifier(
            iterations=5, thread_count=1, verbose=0, allow_writing_files=False
        ),
        "lightgbm": lambda: module.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1),
        "xgboost": lambda: module.XGBClassifier(n_estimators=5, n_jobs=1),
    }
    model = fitted(Calibrated(models[library](), method=method, cv=2), WHOLE, labels)
    exported = Exported(model, tmp_path)
    rows, far = WHOLE, WHOLE[:20].copy()
    far[::2, 0], far[1::2, 1] = np.inf, -np.inf
    loose = library == "xgboost"  # whose float32 probabilities differ in their last bits
    if library == "xgboost":
        assert exported.tabular.row.infinite == "refuse"
        with pytest.raises(module.core.XGBoostError, match="contains `inf`"):
            module.DMatrix(far)
    else:
        rows = np.concatenate([WHOLE, far])
        np.testing.assert_array_equal(exported.tabular.row(far[0])[:1], [np.inf])
    for got in exported.each(rows):
        own = own_of(model, rows)
        np.testing.assert_allclose(got, own, rtol=1e-9, atol=1e-5 if loose else 1e-12)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_categories_of_another_library_may_pass_through_a_pipeline(
    library: str, calibrated: bool, tmp_path: Path
) -> None:
    module, pandas = pytest.importorskip(library), pytest.importorskip("pandas")
    words = np.array(["own", "rent", "free"])
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 3, 300)
    frame = pandas.DataFrame({"k": words[kinds], "a": WHOLE[:, 0], "b": WHOLE[:, 1]})
    frame = frame.astype({"k": pandas.CategoricalDtype(["own", "rent", "free"])})
    labels = ((WHOLE[:, 0] > 0) ^ (kinds == 1)).astype(int)
    last = (
        module.LGBMClassifier(n_estimators=6, verbose=-1, n_jobs=1, min_child_samples=5)
        if library == "lightgbm"
        else module.XGBClassifier(n_estimators=6, n_jobs=1, enable_categorical=True)
    )
    steps = make_column_transformer(
        (Scaler(), ["a", "b"]), ("passthrough", ["k"]), verbose_feature_names_out=False
    ).set_output(transform="pandas")
    model: Any = make_pipeline(steps, last)
    model = fitted(Calibrated(model, cv=2) if calibrated else model, frame, labels)
    exported = Exported(model, tmp_path)
    row = exported.tabular.row
    assert dict(row.words) == {"k": ("own", "rent", "free")}
    new = pandas.DataFrame(
        [{"k": k, "a": a, "b": 0.25} for k in ("own", "rent", "free") for a in (-1.0, 0.1, 1.0)]
    ).astype({"k": frame.k.dtype})
    rows = np.stack([row(one) for one in new.to_dict("records")])
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own_of(model, new), rtol=1e-6, atol=1e-7)
    boat = {"k": "boat", "a": 0.0, "b": 0.0}
    if library == "xgboost":
        with pytest.raises(InputError, match="needs one of its words, 'own', 'rent', 'free'"):
            row(boat)
    else:
        missing = pandas.DataFrame([boat | {"k": None}]).astype({"k": frame.k.dtype})
        np.testing.assert_allclose(exported([row(boat)]), own_of(model, missing), rtol=1e-9)


def test_words_of_histograms_are_the_rows_words(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    words = np.array(["own", "rent", "free"])[THREE]
    frame = pandas.DataFrame({"a": WHOLE[:, 0], "k": words}).astype({"k": "category"})
    model = Histograms(max_iter=4, categorical_features="from_dtype", random_state=0)
    exported = Exported(model.fit(frame, TWO), tmp_path)
    row = exported.tabular.row
    assert dict(row.words) == {"k": ("free", "own", "rent")}
    assert row.infinite == "refuse"
    rows = np.stack([row(one) for one in frame[:40].to_dict("records")])
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own_of(model, frame[:40]), rtol=1e-10)


INFINITE: dict[str, tuple[Any, bool]] = {
    "histograms": (Histograms(max_iter=4, random_state=0), True),
    "calibrated histograms": (Calibrated(Histograms(max_iter=4, random_state=0), cv=2), True),
    "histograms of categories": (Histograms(max_iter=4, categorical_features=[3]), False),
    "scaled histograms": (make_pipeline(Scaler(), Histograms(max_iter=4)), False),
    "a forest": (Forest(4, max_depth=4, random_state=0), False),
    "a vote with a forest": (
        ensemble.VotingClassifier([("a", Histograms(max_iter=3)), ("b", Forest(3))], voting="soft"),
        False,
    ),
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinite_numbers_are_let_through_where_scikit_learn_takes_them(
    name: str, tmp_path: Path
) -> None:
    model, takes = INFINITE[name]
    model.fit(ROWS, TWO)
    rows = ROWS[:40].copy()
    rows[::2, 3], rows[1::2, 3] = np.inf, -np.inf
    assert described(model).row.infinite == ("allow" if takes else "refuse")
    if not takes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy's own
            with pytest.raises(ValueError, match=r"[Ii]nfinity"):
                model.predict_proba(rows)
        return
    exported = Exported(model, tmp_path)
    for got in exported.each(rows):
        np.testing.assert_allclose(got, own_of(model, rows), rtol=1e-10)
    assert isinstance(exported.tabular.row, Row)
    np.testing.assert_array_equal(exported.tabular.row(rows[0]), rows[0])


def test_a_skops_file_may_hold_a_calibrated_model(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    for method in ("sigmoid", "isotonic"):
        model = Calibrated(make_pipeline(Scaler(), Logistic()), method=method, cv=2)
        model.fit(WHOLE, TWO)
        skops.dump(model, tmp_path / "model.skops")
        got = Exported(find_model(tmp_path / "model.skops"), tmp_path)(WHOLE)
        np.testing.assert_allclose(got, own_of(model, WHOLE), rtol=2e-5, atol=2e-6)


REFUSED: dict[str, tuple[Any, str]] = {
    "a vote of scores": (
        ensemble.VotingClassifier(
            [("a", Logistic()), ("b", make_pipeline(Scaler(), linear_model.RidgeClassifier()))],
            voting="soft",
        ),
        "VotingClassifier with RidgeClassifier isn't supported: it gives scores, not probabilities, so "
        "scikit-learn can't vote either; give it members that have predict_proba",
    ),
    "temperature": (
        Calibrated(Logistic(), method="temperature", cv=2),
        "CalibratedClassifierCV with method='temperature' isn't supported",
    ),
    "box and cox": (
        make_pipeline(
            preprocessing.MinMaxScaler((1, 2)),
            preprocessing.PowerTransformer("box-cox"),
            Logistic(),
        ),
        "PowerTransformer with method='box-cox' isn't supported: give it 'yeo-johnson'",
    ),
    "votes of lines": (
        ensemble.AdaBoostClassifier(Logistic(), n_estimators=2),
        "AdaBoostClassifier of LogisticRegression isn't supported, only of trees",
    ),
    "a kernel": (
        Calibrated(svm.SVC(probability=True), cv=2),
        "CalibratedClassifierCV of SVC isn't supported: convert the whole model to an ONNX file yourself",
    ),
    "a target's ranks": (
        TransformedTargetRegressor(
            linear_model.Ridge(), transformer=preprocessing.QuantileTransformer(n_quantiles=9)
        ),
        "TransformedTargetRegressor with the transformer QuantileTransformer isn't supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_part_that_is_not_covered_is_refused_in_one_line(name: str) -> None:
    model, said = REFUSED[name]
    numbers = name == "a target's ranks"
    with pytest.raises(InputError) as error:
        described(fitted(model, WHOLE, NUMBERS if numbers else TWO))
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
