"""scikit-learn's estimators that are made of others: calibration, votes, bags, pipelines within them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hasten.errors import InputError
from hasten.inputs.models.tabular.base import CONVERT, both_classes, normalized, sigmoid
from hasten.inputs.models.tabular.building import Building, ColumnBlock
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.sklearn_distributions import expm1, log1p
from hasten.inputs.models.tabular.sklearn_models import (
    Head,
    head_of,
    labels_of,
    probabilities,
    survey,
)
from hasten.inputs.models.tabular.sklearn_steps import transform
from hasten.inputs.models.tabular.sklearn_trees import forest_sums
from hasten.inputs.models.tabular.trees import interpolated

_ROW = np.array([1], np.int64)


def split(model: Any) -> tuple[list[Any], Any]:
    """Return a pipeline's steps before the last, and the last; nested pipelines are flattened."""
    if not hasattr(model, "steps"):
        return [], model
    steps = [step for _, step in model.steps if step is not None and not _passes(step)]
    if not steps:
        raise InputError("the scikit-learn pipeline has no steps that do anything")
    inner, final = split(steps[-1])
    return [*steps[:-1], *inner], final


def _passes(step: Any) -> bool:
    return isinstance(step, str) and step == "passthrough"


def stepped(building: Building, steps: Sequence[Any], part: ColumnBlock) -> ColumnBlock:
    """Add a pipeline's steps before the last."""
    for step in steps:
        part = transform(building, step, part)
    return part


def _pipeline(model: Any) -> Head:
    """Describe a pipeline within another estimator."""
    steps, final = split(model)
    head = head_of(final)
    if not steps:
        return head

    def through(
        write: Callable[[Building, ColumnBlock], Any],
    ) -> Callable[[Building, ColumnBlock], Any]:
        return lambda building, part: write(building, stepped(building, steps, part))

    return replace(
        head,
        write=through(head.write),
        scores=None if head.scores is None else through(head.scores),
        note=through(partial(_noted, head)),
        takes_infinite=False,
    )


def _noted(head: Head, building: Building, part: ColumnBlock) -> None:
    survey(building, part, head)


def _made_of(heads: Sequence[Head], head: Head, parts: Sequence[Any] | None = None) -> Head:
    """Return a head that is as its members are: smooth where all are, and so on.

    Args:
        heads: The members.
        head: The head itself.
        parts: Columns that each member gets; None where all get all.
    """

    def note(building: Building, part: ColumnBlock) -> None:
        for place, member in enumerate(heads):
            survey(building, part if parts is None else building.take(part, parts[place]), member)

    return replace(
        head,
        dtype="float64",
        smooth=head.smooth and all(one.smooth for one in heads),
        narrow=all(one.narrow for one in heads),
        takes_infinite=all(one.takes_infinite for one in heads),
        note=note,
    )


def _wide(
    building: Building,
    head: Head,
    part: ColumnBlock,
    write: Callable[[Building, ColumnBlock], str] | None = None,
) -> str:
    """Return a member's answers, or what else it writes, in float64."""
    name = (write or head.write)(building, part)
    return building.graph.cast(name, "float64", head.dtype or building.dtype)


def _mean(graph: Graph, values: Sequence[str], whole: float) -> str:
    """Return the sum of values, in their order, divided by a number."""
    total = values[0]
    for value in values[1:]:
        total = graph.add("Add", total, value)
    return graph.add("Div", total, np.float64(whole))


def _voting(model: Any) -> Head:
    """Describe a vote: the mean of the members' probabilities or numbers, weighted."""
    labels: tuple[str, ...] = ()
    if hasattr(model, "classes_"):
        labels = labels_of(model)
        if model.voting != "soft":
            raise InputError("VotingClassifier gives probabilities only with voting='soft'")
    heads = [head_of(member) for member in model.estimators_]
    for head, member in zip(heads, model.estimators_, strict=True):
        if labels and head.scored:
            raise InputError(
                f"VotingClassifier with {type(split(member)[1]).__name__} isn't supported: it gives scores, not "
                "probabilities, so scikit-learn can't vote either; give it members that have predict_proba"
            )
    weights = model._weights_not_none or [1.0] * len(heads)

    def write(building: Building, part: ColumnBlock) -> str:
        members = [_wide(building, head, part) for head in heads]
        members = [
            one if weight == 1 else building.graph.add("Mul", one, np.float64(weight))
            for one, weight in zip(members, weights, strict=True)
        ]
        return _mean(building.graph, members, float(np.sum(weights)))

    return _made_of(heads, Head("scikit-learn", labels, heads[0].width, write, smooth=True))


def _calibrated(model: Any) -> Head:
    """Describe a CalibratedClassifierCV: the mean of its folds' calibrated probabilities."""
    labels = labels_of(model)
    folds = model.calibrated_classifiers_
    heads = [head_of(fold.estimator) for fold in folds]
    decides = [hasattr(fold.estimator, "decision_function") for fold in folds]
    for head, fold, does in zip(heads, folds, decides, strict=True):
        if fold.method not in ("sigmoid", "isotonic"):
            raise InputError(
                f"CalibratedClassifierCV with method={fold.method!r} isn't supported; the supported ones "
                "are sigmoid and isotonic"
            )
        if does and head.scores is None:
            raise InputError(
                f"CalibratedClassifierCV of {type(fold.estimator).__name__} isn't supported: {CONVERT}"
            )
        if len(fold.estimator.classes_) != len(labels):
            raise InputError(
                "CalibratedClassifierCV with a fold that lacks a class isn't supported: calibrate with "
                "more rows of each class, or with a smaller cv"
            )

    def calibrated(building: Building, part: ColumnBlock, head: Head, fold: Any, does: bool) -> str:
        graph = building.graph
        scores = _wide(building, head, part, head.scores if does else None)
        if not does and len(labels) == 2:
            scores = graph.add("Gather", scores, _ROW, axis=1)
        each = []
        for place, calibrator in enumerate(fold.calibrators):
            one = scores
            if len(fold.calibrators) > 1:
                one = graph.add("Gather", scores, np.array([place], np.int64), axis=1)
            each.append(_curve(graph, calibrator, one))
        if len(labels) == 2:
            return both_classes(graph, each[0], "float64")
        return normalized(graph, graph.add("Concat", *each, axis=1), 1 / len(labels))

    def write(building: Building, part: ColumnBlock) -> str:
        members = [
            calibrated(building, part, head, fold, does)
            for head, fold, does in zip(heads, folds, decides, strict=True)
        ]
        return _mean(building.graph, members, float(len(members)))

    smooth = all(fold.method == "sigmoid" for fold in folds)
    return _made_of(heads, Head("scikit-learn", labels, len(labels), write, smooth=smooth))


def _curve(graph: Graph, calibrator: Any, scores: str) -> str:
    """Return the probabilities that a calibrator gives scores of shape `[batch, 1]`."""
    if hasattr(calibrator, "a_"):
        sums = graph.add("Mul", scores, np.float64(-calibrator.a_))
        return sigmoid(graph, graph.add("Sub", sums, np.float64(calibrator.b_)), "float64")
    return interpolated(graph, scores, calibrator.X_thresholds_, calibrator.y_thresholds_)


def _one_vs_rest(model: Any) -> Head:
    """Describe a OneVsRestClassifier: each member's probability of its class, divided by their sum."""
    if model.multilabel_:
        raise InputError("OneVsRestClassifier with several labels per row isn't supported")
    labels = labels_of(model)
    heads = [head_of(member) for member in model.estimators_]
    if any(not hasattr(member, "predict_proba") for member in model.estimators_):
        return _scored(model, labels, heads)

    def write(building: Building, part: ColumnBlock) -> str:
        graph = building.graph
        each = [graph.add("Gather", _wide(building, h, part), _ROW, axis=1) for h in heads]
        if len(each) == 1:
            return both_classes(graph, each[0], "float64")
        return normalized(graph, graph.add("Concat", *each, axis=1), 0)

    # Where all of several members' probabilities are next to 0, small changes of them decide.
    smooth = len(heads) == 1
    return _made_of(heads, Head("scikit-learn", labels, len(labels), write, smooth=smooth))


def _scored(model: Any, labels: tuple[str, ...], heads: Sequence[Head]) -> Head:
    """Describe a OneVsRestClassifier of members without probabilities: their scores."""
    if any(head.scores is None for head in heads):
        raise InputError(f"{type(model).__name__} with members that give no scores isn't supported")

    def scores(building: Building, part: ColumnBlock) -> str:
        each = [_wide(building, head, part, head.scores) for head in heads]
        return each[0] if len(each) == 1 else building.graph.add("Concat", *each, axis=1)

    def write(building: Building, part: ColumnBlock) -> str:
        return both_scores(building.graph, scores(building, part), len(labels), "float64")

    head = Head("scikit-learn", labels, len(labels), write, smooth=True, scores=scores, scored=True)
    return _made_of(heads, head)


def both_scores(graph: Graph, scores: str, classes: int, dtype: str) -> str:
    """Return a score for each class: of two classes 0 and the score of the second."""
    if classes != 2:
        return scores
    none = graph.add("Mul", scores, np.zeros((), dtype))
    return graph.add("Concat", none, scores, axis=1)


def _bagging(model: Any) -> Head:
    """Describe a bag: the mean of its members' probabilities or numbers, each of some columns."""
    labels = labels_of(model) if hasattr(model, "classes_") else ()
    for member in model.estimators_ if labels else ():
        if not hasattr(member, "predict_proba") or len(member.classes_) != len(labels):
            raise InputError(
                "BaggingClassifier with a member that gives no probabilities, or that lacks a class, "
                "isn't supported"
            )
    heads = [head_of(member) for member in model.estimators_]
    columns = list(model.estimators_features_)

    def write(building: Building, part: ColumnBlock) -> str:
        members = [
            _wide(building, head, building.take(part, some))
            for head, some in zip(heads, columns, strict=True)
        ]
        return _mean(building.graph, members, float(len(members)))

    head = Head("scikit-learn", labels, heads[0].width, write, smooth=True)
    return replace(_made_of(heads, head, columns), takes_infinite=False)


def _ada_boost(model: Any) -> Head:
    """Describe an AdaBoostClassifier of trees: weighted votes, then a softmax."""
    labels = labels_of(model)
    count = len(labels)
    for member in model.estimators_:
        kind = type(member).__name__
        if kind not in ("DecisionTreeClassifier", "ExtraTreeClassifier"):
            raise InputError(f"AdaBoostClassifier of {kind} isn't supported, only of trees")
        if len(member.classes_) != count or count == 1:
            raise InputError("AdaBoostClassifier with a tree that lacks a class isn't supported")
    weights = model.estimator_weights_[: len(model.estimators_)]

    def votes(member: Any, weight: float) -> Any:
        values = member.tree_.value[:, 0, :]
        chosen = np.eye(count, dtype=bool)[values.argmax(axis=1)]
        return np.where(chosen, weight, -1 / (count - 1) * weight)

    def decided(building: Building, part: ColumnBlock) -> str:
        leaves = [votes(m, w) for m, w in zip(model.estimators_, weights, strict=True)]
        sums = forest_sums(building, part, model.estimators_, leaves)
        return building.graph.add("Div", sums, np.float64(model.estimator_weights_.sum()))

    def scores(building: Building, part: ColumnBlock) -> str:
        graph, sums = building.graph, decided(building, part)
        if count > 2:
            return sums
        signed = graph.add("Mul", sums, np.array([[-1.0, 1.0]]))
        return graph.add("ReduceSum", signed, _ROW)

    def write(building: Building, part: ColumnBlock) -> str:
        graph, found = building.graph, scores(building, part)
        if count == 2:
            halves = graph.add("Mul", found, np.array([[-0.5, 0.5]]))
            return graph.add("Softmax", halves, axis=1)
        return probabilities(
            building, graph.add("Div", found, np.float64(count - 1)), count, "float64"
        )

    return Head("scikit-learn", labels, count, write, "float64", narrow=True, scores=scores)


_BACK = {np.exp: "Exp", np.sqrt: "Sqrt", np.log: "Log", np.abs: "Abs", np.tanh: "Tanh"}


def _transformed_target(model: Any) -> Head:
    """Describe a TransformedTargetRegressor: its regressor's numbers, and the way back."""
    head = head_of(model.regressor_)
    back = _way_back(model.transformer_)

    def write(building: Building, part: ColumnBlock) -> str:
        return back(building.graph, _wide(building, head, part))

    return _made_of([head], replace(head, write=write, smooth=True, scores=None))


def _way_back(step: Any) -> Callable[[Graph, str], str]:
    """Return what adds a transformer's `inverse_transform` to a graph, in float64."""
    kind = type(step).__name__
    if kind == "FunctionTransformer":
        return partial(_function_back, step.inverse_func)
    scale, shift = getattr(step, "scale_", None), None
    if kind == "StandardScaler":
        scale, shift = (step.scale_ if step.with_std else None, step.mean_)
        shift = shift if step.with_mean else None
    elif kind == "RobustScaler":
        scale = scale if step.with_scaling else None
        shift = step.center_ if step.with_centering else None
    elif kind == "MinMaxScaler":
        return lambda graph, value: graph.add(
            "Div", graph.add("Sub", value, step.min_[None]), step.scale_[None]
        )
    elif kind != "MaxAbsScaler":
        raise InputError(
            f"TransformedTargetRegressor with the transformer {kind} isn't supported; the supported ones "
            "are FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler and StandardScaler"
        )

    def back(graph: Graph, value: str) -> str:
        if scale is not None:
            value = graph.add("Mul", value, np.asarray(scale, np.float64)[None])
        if shift is not None:
            value = graph.add("Add", value, np.asarray(shift, np.float64)[None])
        return value

    return back


def _function_back(function: Any, graph: Graph, value: str) -> str:
    if function is None:
        return value
    if function is np.expm1:
        return expm1(graph, value)
    if function is np.log1p:
        return log1p(graph, value)
    if function is np.square:
        return graph.add("Mul", value, value)
    if not isinstance(function, np.ufunc) or function not in _BACK:
        named = getattr(function, "__name__", type(function).__name__)
        raise InputError(
            f"TransformedTargetRegressor's inverse_func {named!r} isn't supported; the supported ones are "
            "numpy's exp, expm1, log, log1p, sqrt, square, abs and tanh"
        )
    return graph.add(_BACK[function], value)


def _frozen(model: Any) -> Head:
    return head_of(model.estimator)


HEADS: dict[str, Callable[[Any], Head]] = {
    "AdaBoostClassifier": _ada_boost,
    "BaggingClassifier": _bagging,
    "BaggingRegressor": _bagging,
    "CalibratedClassifierCV": _calibrated,
    "FrozenEstimator": _frozen,
    "OneVsRestClassifier": _one_vs_rest,
    "Pipeline": _pipeline,
    "TransformedTargetRegressor": _transformed_target,
    "VotingClassifier": _voting,
    "VotingRegressor": _voting,
}
"""Function that describes each model, by the name of its class."""
