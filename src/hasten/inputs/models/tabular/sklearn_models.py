"""scikit-learn's classifiers and regressors as ONNX; trees are in `sklearn_trees`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.errors import InputError, told
from hasten.inputs.models.tabular.base import (
    CONVERT,
    Tabular,
    both_classes,
    described,
    library_of,
    normalized,
    sigmoid,
)
from hasten.inputs.models.tabular.building import Building, ColumnBlock
from hasten.inputs.models.tabular.graph import OPSETS, Graph

_LINEAR = frozenset(
    (
        *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV"),
        *("BayesianRidge", "ARDRegression", "HuberRegressor", "SGDRegressor", "Lars", "LassoLars"),
        *("TheilSenRegressor", "QuantileRegressor", "LinearSVR", "OrthogonalMatchingPursuit"),
    )
)
_GENERALIZED = frozenset(("GammaRegressor", "PoissonRegressor", "TweedieRegressor"))
_SECOND = np.array([1], np.int64)
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}


@dataclass(frozen=True)
class Head:
    """The last step of a pipeline.

    Attributes:
        library: Name of its library, for people.
        labels: Name of each class; empty where the model gives numbers.
        width: Number of the outputs for a row.
        write: Function that adds it to a graph, given its rows; it returns the output's name.
        dtype: Element type of the outputs; empty for the type of the values before it.
        smooth: Whether small changes of its rows make small changes of its answers.
        narrow: Whether it rounds its rows to float32 itself.
        takes_missing: Whether it takes missing values.
        needs: Columns that need a value even so.
        takes_infinite: Whether it takes infinite numbers.
        prepare: Function that notes what the model says of its columns; None where it says nothing.
        note: Function that notes what its members say of the columns, instead of all else here; None for a
            model without members.
        scores: Function that adds its `decision_function`, of the outputs' type, with one column for two
            classes; None where it has none.
        scored: Whether the outputs of classes are such scores, since it has no probabilities.
    """

    library: str
    labels: tuple[str, ...]
    width: int
    write: Callable[[Building, ColumnBlock], str]
    dtype: str = ""
    smooth: bool = False
    narrow: bool = False
    takes_missing: bool = False
    needs: tuple[int, ...] = ()
    takes_infinite: bool = False
    prepare: Callable[[Building, ColumnBlock], Any] | None = None
    note: Callable[[Building, ColumnBlock], Any] | None = None
    scores: Callable[[Building, ColumnBlock], str] | None = None
    scored: bool = False


def survey(building: Building, part: ColumnBlock, head: Head) -> None:
    """Note what a model says of its columns."""
    if head.note is not None:
        head.note(building, part)
        return
    if not head.takes_missing:
        building.need(part)
    elif head.needs:
        building.need(building.take(part, head.needs))
    if head.prepare is not None:
        head.prepare(building, part)
        # Those that the model itself reads as words.
        worded = frozenset((*building.words, *building.hashed))
        part = ColumnBlock(part.name, tuple(c for c in part.columns if not c.sources & worded))
    building.counted(part)


def head_of(model: Any) -> Head:
    """Describe the last step of a pipeline.

    Raises:
        InputError: it isn't fitted, or it isn't supported.
    """
    from hasten.inputs.models.tabular import sklearn_composed, sklearn_trees

    model = getattr(model, "best_estimator_", model)
    library = library_of(model)
    if library is not None and library.module != "sklearn":
        return _foreign(described(model))
    kind = type(model).__name__
    if library is None or not type(model).__module__.startswith("sklearn."):
        raise InputError(f"the model {kind} isn't supported: it isn't one of scikit-learn's own")
    _check_fitted(model)
    heads = {**_HEADS, **sklearn_trees.HEADS, **sklearn_composed.HEADS}
    if kind in heads:
        return heads[kind](model)
    known = ", ".join(sorted({*heads} - {"FrozenEstimator", "Pipeline"}))
    raise InputError(f"the model {kind} isn't supported: {CONVERT}; the supported ones are {known}")


def _check_fitted(model: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except (NotFittedError, TypeError) as error:
        raise InputError(f"this {type(model).__name__} isn't fitted: fit it first") from error


def labels_of(model: Any) -> tuple[str, ...]:
    """Return the names of a classifier's classes.

    Raises:
        InputError: it has several outputs.
    """
    classes = model.classes_
    if isinstance(classes, list):
        raise InputError(f"{type(model).__name__} with several outputs isn't supported")
    return tuple(str(one) for one in classes)


def _foreign(found: Tabular) -> Head:
    """Describe a model of another library that ends a pipeline of scikit-learn."""
    places = {column: place for place, column in enumerate(found.row.columns)}

    def given(write: Callable[[Graph, str], str], building: Building, part: ColumnBlock) -> str:
        rows = building.graph.cast(part.name, found.row.dtype, building.dtype)
        return write(building.graph, rows)

    def prepare(building: Building, part: ColumnBlock) -> None:
        unseen = dict(found.row.unseen)
        for column, words in found.row.words:
            own = part.columns[places[column]]
            refuses = column not in unseen
            building.read_words(own, words, f"{found.library}'s model", refuses=refuses)
        for column in found.row.hashed:
            building.read_hashes(part.columns[places[column]], f"{found.library}'s model")

    return Head(
        found.library,
        found.labels,
        found.width,
        partial(given, found.write),
        found.dtype,
        narrow=found.row.dtype == "float32",
        takes_missing=True,
        needs=tuple(places[column] for column in found.row.required),
        takes_infinite=found.row.infinite == "allow",
        prepare=prepare if found.row.words or found.row.hashed else None,
        scores=None if found.scores is None else partial(given, found.scores),
    )


def _affine(building: Building, name: str, weights: Any, bias: Any) -> str:
    """Return `x @ weights + bias`."""
    product = building.graph.add("MatMul", name, building.array(weights))
    return building.graph.add("Add", product, building.array(bias)[None])


def probabilities(building: Building, sums: str, classes: int, dtype: str) -> str:
    """Return the probabilities of sums: a sigmoid for two classes, else a softmax."""
    if classes == 2:
        return both_classes(building.graph, sigmoid(building.graph, sums, dtype), dtype)
    return building.graph.add("Softmax", sums, axis=1)


def _linear(model: Any) -> Head:
    weights = np.atleast_2d(model.coef_).T
    exponential = type(model).__name__ in _GENERALIZED and _logarithmic(model)
    bias = np.broadcast_to(np.asarray(model.intercept_, np.float64), weights.shape[1:])

    def write(building: Building, part: ColumnBlock) -> str:
        sums = _affine(building, part.name, weights, bias)
        return building.graph.add("Exp", sums) if exponential else sums

    return Head("scikit-learn", (), weights.shape[1], write, smooth=True)


def _logarithmic(model: Any) -> bool:
    """Whether a generalized linear model's answer is the exponential of its sum."""
    link = type(model._base_loss.link).__name__
    if link not in ("IdentityLink", "LogLink"):
        raise InputError(f"{type(model).__name__} with the link {link} isn't supported")
    return link == "LogLink"


def _decided(model: Any) -> Head:
    """Describe a linear classifier without probabilities: a score for each class."""
    from hasten.inputs.models.tabular.sklearn_composed import both_scores

    labels = labels_of(model)
    weights = np.atleast_2d(model.coef_).T
    bias = np.broadcast_to(np.asarray(model.intercept_, np.float64), weights.shape[1:])

    def scores(building: Building, part: ColumnBlock) -> str:
        return _affine(building, part.name, weights, bias)

    def write(building: Building, part: ColumnBlock) -> str:
        return both_scores(building.graph, scores(building, part), len(labels), building.dtype)

    return Head("scikit-learn", labels, len(labels), write, smooth=True, scores=scores, scored=True)


def _logistic(model: Any) -> Head:
    labels = labels_of(model)
    weights, bias = model.coef_.T, np.asarray(model.intercept_, np.float64)
    apart = getattr(model, "multi_class", "") == "ovr" or (
        getattr(model, "solver", "") == "liblinear" or type(model).__name__ == "SGDClassifier"
    )
    if type(model).__name__ == "SGDClassifier" and model.loss != "log_loss":
        if model.loss == "modified_huber":
            raise InputError(
                "SGDClassifier with loss='modified_huber' isn't supported: give it loss='log_loss'"
            )
        return _decided(model)
    dtype = "float64" if apart and len(labels) > 2 else ""

    def summed(building: Building, part: ColumnBlock) -> str:
        return _affine(building, part.name, weights, np.broadcast_to(bias, weights.shape[1:]))

    def scores(building: Building, part: ColumnBlock) -> str:
        sums = summed(building, part)
        return building.graph.cast(sums, dtype or building.dtype, building.dtype)

    def write(building: Building, part: ColumnBlock) -> str:
        sums = summed(building, part)
        if not apart or len(labels) == 2:
            return probabilities(building, sums, len(labels), building.dtype)
        wide = building.graph.cast(sums, "float64", building.dtype)
        each = sigmoid(building.graph, wide, "float64")
        return normalized(building.graph, each, 1 / len(labels))

    # Where all of several sigmoids are next to 0, small changes of the sums decide.
    smooth = not dtype
    return Head("scikit-learn", labels, len(labels), write, dtype, smooth=smooth, scores=scores)


def _mlp(model: Any) -> Head:
    labels = labels_of(model) if hasattr(model, "classes_") else ()
    if getattr(model, "_label_binarizer", None) is not None and (
        model._label_binarizer.y_type_.startswith("multilabel")
    ):
        raise InputError("MLPClassifier with several labels per row isn't supported")
    width = len(labels) or int(model.n_outputs_)

    def write(building: Building, part: ColumnBlock) -> str:
        name = part.name
        for place, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
            name = _affine(building, name, weights, bias)
            if place < len(model.coefs_) - 1 and _ACTIVATIONS[model.activation]:
                name = building.graph.add(_ACTIVATIONS[model.activation], name)
        if labels:
            return probabilities(building, name, len(labels), building.dtype)
        return name

    return Head("scikit-learn", labels, width, write, smooth=True)


def _naive_bayes(model: Any) -> Head:
    """Describe a GaussianNB: `_joint_log_likelihood` of sklearn/naive_bayes.py, then a softmax."""
    labels = labels_of(model)
    constants = np.log(model.class_prior_) - 0.5 * np.log(2 * np.pi * model.var_).sum(axis=1)

    def write(building: Building, part: ColumnBlock) -> str:
        graph = building.graph
        rows = graph.add("Unsqueeze", graph.cast(part.name, "float64", building.dtype), _SECOND)
        away = graph.add("Sub", rows, model.theta_[None])
        scaled = graph.add("Div", graph.add("Mul", away, away), model.var_[None])
        summed = graph.add("ReduceSum", scaled, np.array([2], np.int64), keepdims=0)
        halved = graph.add("Mul", summed, np.float64(-0.5))
        return graph.add("Softmax", graph.add("Add", halved, constants[None]), axis=1)

    return Head("scikit-learn", labels, len(labels), write, "float64")


def _converted(model: Any) -> Head:
    """Describe an estimator that skl2onnx converts; the tests compare it with scikit-learn's own answers."""
    kind = type(model).__name__
    labels: tuple[str, ...] = ()
    if hasattr(model, "classes_"):
        labels = labels_of(model)
        if not hasattr(model, "predict_proba"):
            raise InputError(f"{kind} gives no probabilities: fit it with probability=True")
    if not _has_whole_vectors(model, max(2, len(labels))):
        raise InputError(
            f"the {kind} is damaged or has a kernel that isn't supported: its support vectors and their numbers don't fit"
        )

    def write(building: Building, part: ColumnBlock) -> str:
        exported = _by_skl2onnx(model, part.size, building.dtype, outputs=bool(labels))
        return building.graph.include(exported, part.name)

    return Head("scikit-learn", labels, len(labels) or 1, write, smooth=True)


def _has_whole_vectors(model: Any, classes: int) -> bool:
    """Whether a support vector machine has all that libsvm reads without a look at its size.

    Source: `set_model` in sklearn/svm/src/libsvm/libsvm_helper.c.
    """
    count, pairs = model.support_vectors_.shape[0], classes * (classes - 1) // 2
    factors = model._dual_coef_
    if model._sparse:
        model.support_vectors_.check_format(full_check=True)
        factors = factors.data
    return bool(
        model.support_vectors_.shape[1] == model.n_features_in_
        and model.support_.shape == (count,)
        and model._n_support.shape == (classes,)
        and model._n_support.min() >= 0
        and model.n_support_.sum() == count
        and factors.size == (classes - 1) * count
        and model._intercept_.shape == (pairs,)
        and model._probA.shape == model._probB.shape
        and model._probA.shape in ((0,), (pairs,))
    )


def _by_skl2onnx(model: Any, size: int, dtype: str, *, outputs: bool) -> Any:
    """Convert an estimator; of a classifier only its probabilities are kept."""
    try:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    except ImportError as error:
        raise missing_extra(f"scikit-learn's {type(model).__name__}", "tabular") from error
    kind = FloatTensorType if dtype == "float32" else DoubleTensorType
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert_sklearn(
                model,
                initial_types=[("given", kind([None, size]))],
                options={id(model): {"zipmap": False}} if outputs else None,
                target_opset={"": OPSETS[""], "ai.onnx.ml": 3},
            )
    except Exception as error:  # its converters raise what they like
        raise InputError(
            f"skl2onnx can't convert this {type(model).__name__}: {told(error)}"
        ) from error


_HEADS: dict[str, Callable[[Any], Head]] = {
    **dict.fromkeys(sorted(_LINEAR | _GENERALIZED), _linear),
    "SVC": _converted,
    "SVR": _converted,
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "SGDClassifier": _logistic,
    "LinearDiscriminantAnalysis": _logistic,
    "GaussianNB": _naive_bayes,
    "MLPClassifier": _mlp,
    "MLPRegressor": _mlp,
    "LinearSVC": _decided,
    "Perceptron": _decided,
    "RidgeClassifier": _decided,
    "RidgeClassifierCV": _decided,
}
