"""scikit-learn's classifiers and regressors as ONNX; trees are in `sklearn_trees`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.errors import InputError, told
from hasten.inputs.models.tabular.base import Tabular, both_classes, described, library_of
from hasten.inputs.models.tabular.building import Building, Part
from hasten.inputs.models.tabular.graph import OPSETS

_LINEAR = frozenset(
    (
        *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV"),
        *("BayesianRidge", "ARDRegression", "HuberRegressor", "SGDRegressor", "Lars", "LassoLars"),
        *("TheilSenRegressor", "QuantileRegressor", "LinearSVR", "OrthogonalMatchingPursuit"),
    )
)
_EXPONENTIAL = frozenset(("PoissonRegressor", "GammaRegressor"))
_SECOND = np.array([1], np.int64)
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}
_CONVERTED = frozenset(("SVC", "SVR"))
"""Estimators that skl2onnx converts, and that the tests hold against scikit-learn's own answers."""


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
        prepare: Function that notes what the model says of its columns; None where it says nothing.
    """

    library: str
    labels: tuple[str, ...]
    width: int
    write: Callable[[Building, Part], str]
    dtype: str = ""
    smooth: bool = False
    narrow: bool = False
    takes_missing: bool = False
    needs: tuple[int, ...] = ()
    prepare: Callable[[Building, Part], Any] | None = None


def head_of(model: Any) -> Head:
    """Describe the last step of a pipeline.

    Raises:
        InputError: it isn't fitted, or it isn't supported.
    """
    from hasten.inputs.models.tabular import sklearn_trees

    library = library_of(model)
    if library is not None and library.module != "sklearn":
        return _foreign(described(model))
    kind = type(model).__name__
    if library is None or not type(model).__module__.startswith("sklearn."):
        raise InputError(f"the model {kind} isn't supported: it isn't one of scikit-learn's own")
    _check_fitted(model)
    if kind in sklearn_trees.HEADS:
        return sklearn_trees.HEADS[kind](model)
    if kind in _LINEAR | _EXPONENTIAL:
        return _linear(model, exponential=kind in _EXPONENTIAL)
    if kind in _HEADS:
        return _HEADS[kind](model)
    if kind in _CONVERTED:
        return _converted(model)
    known = sorted(_LINEAR | _EXPONENTIAL | _CONVERTED | set(_HEADS) | set(sklearn_trees.HEADS))
    raise InputError(f"the model {kind} isn't supported; the supported ones are {', '.join(known)}")


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
    if found.row.words:
        raise InputError(
            f"{found.library}'s columns of categories aren't supported in a scikit-learn pipeline: "
            "encode them in the pipeline"
        )

    def write(building: Building, part: Part) -> str:
        rows = building.graph.cast(part.name, found.row.dtype, building.dtype)
        return found.write(building.graph, rows)

    places = {column: place for place, column in enumerate(found.row.columns)}
    return Head(
        found.library,
        found.labels,
        found.width,
        write,
        found.dtype,
        narrow=found.row.dtype == "float32",
        takes_missing=True,
        needs=tuple(places[column] for column in found.row.required),
    )


def _affine(building: Building, name: str, weights: Any, bias: Any) -> str:
    """Return `x @ weights + bias`."""
    product = building.graph.add("MatMul", name, building.array(weights))
    return building.graph.add("Add", product, building.array(bias)[None])


def probabilities(building: Building, sums: str, classes: int, dtype: str) -> str:
    """Return the probabilities of sums: a sigmoid for two classes, else a softmax."""
    if classes == 2:
        return both_classes(building.graph, building.graph.add("Sigmoid", sums), dtype)
    return building.graph.add("Softmax", sums, axis=1)


def _linear(model: Any, *, exponential: bool) -> Head:
    weights = np.atleast_2d(model.coef_).T
    bias = np.broadcast_to(np.asarray(model.intercept_, np.float64), weights.shape[1:])

    def write(building: Building, part: Part) -> str:
        sums = _affine(building, part.name, weights, bias)
        return building.graph.add("Exp", sums) if exponential else sums

    return Head("scikit-learn", (), weights.shape[1], write, smooth=True)


def _logistic(model: Any) -> Head:
    labels = labels_of(model)
    weights, bias = model.coef_.T, np.asarray(model.intercept_, np.float64)
    apart = getattr(model, "multi_class", "") == "ovr" or (
        getattr(model, "solver", "") == "liblinear" or type(model).__name__ == "SGDClassifier"
    )
    if type(model).__name__ == "SGDClassifier" and model.loss != "log_loss":
        raise InputError(
            "SGDClassifier gives probabilities only with loss='log_loss': this one has "
            f"{model.loss!r}"
        )

    def write(building: Building, part: Part) -> str:
        bias_ = np.broadcast_to(bias, weights.shape[1:])
        sums = _affine(building, part.name, weights, bias_)
        if not apart or len(labels) == 2:
            return probabilities(building, sums, len(labels), building.dtype)
        wide = building.graph.cast(sums, "float64", building.dtype)  # all may be next to 0
        each = building.graph.add("Sigmoid", wide)
        whole = building.graph.add("ReduceSum", each, np.array([1], np.int64))
        return building.graph.add("Div", each, whole)

    dtype = "float64" if apart and len(labels) > 2 else ""
    return Head("scikit-learn", labels, len(labels), write, dtype, smooth=True)


def _mlp(model: Any) -> Head:
    labels = labels_of(model) if hasattr(model, "classes_") else ()
    if getattr(model, "_label_binarizer", None) is not None and (
        model._label_binarizer.y_type_.startswith("multilabel")
    ):
        raise InputError("MLPClassifier with several labels per row isn't supported")
    width = len(labels) or int(model.n_outputs_)

    def write(building: Building, part: Part) -> str:
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

    def write(building: Building, part: Part) -> str:
        graph = building.graph
        rows = graph.add("Unsqueeze", graph.cast(part.name, "float64", building.dtype), _SECOND)
        away = graph.add("Sub", rows, model.theta_[None])
        scaled = graph.add("Div", graph.add("Mul", away, away), model.var_[None])
        summed = graph.add("ReduceSum", scaled, np.array([2], np.int64), keepdims=0)
        halved = graph.add("Mul", summed, np.float64(-0.5))
        return graph.add("Softmax", graph.add("Add", halved, constants[None]), axis=1)

    return Head("scikit-learn", labels, len(labels), write, "float64")


def _voting(model: Any) -> Head:
    """Describe a vote: the mean of the members' probabilities or numbers, weighted."""
    labels: tuple[str, ...] = ()
    if hasattr(model, "classes_"):
        labels = labels_of(model)
        if model.voting != "soft":
            raise InputError("VotingClassifier gives probabilities only with voting='soft'")
    heads = [head_of(member) for member in model.estimators_]
    weights = model._weights_not_none or [1.0] * len(heads)
    whole = float(np.sum(weights))

    def write(building: Building, part: Part) -> str:
        graph, total = building.graph, ""
        for head, weight in zip(heads, weights, strict=True):
            one = graph.cast(head.write(building, part), "float64", head.dtype or building.dtype)
            one = one if weight == 1 else graph.add("Mul", one, np.float64(weight))
            total = one if not total else graph.add("Add", total, one)
        return graph.add("Div", total, np.float64(whole))

    width = heads[0].width
    return Head(
        "scikit-learn",
        labels,
        width,
        write,
        "float64",
        smooth=all(head.smooth for head in heads),
        narrow=all(head.narrow for head in heads),
        takes_missing=all(head.takes_missing for head in heads),
    )


def _converted(model: Any) -> Head:
    """Describe an estimator that skl2onnx converts."""
    kind = type(model).__name__
    labels: tuple[str, ...] = ()
    if hasattr(model, "classes_"):
        labels = labels_of(model)
        if not hasattr(model, "predict_proba"):
            raise InputError(f"{kind} gives no probabilities: fit it with probability=True")

    def write(building: Building, part: Part) -> str:
        exported = _by_skl2onnx(model, part.size, building.dtype, outputs=bool(labels))
        return building.graph.include(exported, part.name)

    return Head("scikit-learn", labels, len(labels) or 1, write, smooth=True)


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
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "SGDClassifier": _logistic,
    "LinearDiscriminantAnalysis": _logistic,
    "GaussianNB": _naive_bayes,
    "MLPClassifier": _mlp,
    "MLPRegressor": _mlp,
    "VotingClassifier": _voting,
    "VotingRegressor": _voting,
}
