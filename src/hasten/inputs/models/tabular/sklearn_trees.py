"""scikit-learn's trees, forests and boosting as ONNX.

Classic trees round a row to float32 and compare it with float64 thresholds (sklearn/tree/_tree.pyx);
HistGradientBoosting compares in float64 (sklearn/ensemble/_hist_gradient_boosting/_predictor.pyx).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.base import looked_up
from hasten.inputs.models.tabular.building import Building, ColumnBlock
from hasten.inputs.models.tabular.sklearn_models import Head, labels_of, probabilities
from hasten.inputs.models.tabular.sklearn_steps import transform
from hasten.inputs.models.tabular.trees import (
    LEQ,
    MEMBER,
    Tree,
    constant,
    sum_trees,
    wrong_children,
)

_NAME = "scikit-learn"


def rounded_down(thresholds: Array) -> Array:
    """Return float64 thresholds rounded down to float32: a float32 x is at most one as at most the other."""
    near = thresholds.astype(np.float32)
    lower = np.nextafter(near, np.float32(-np.inf))
    return np.where(near > thresholds, lower, near).astype(np.float64)


def _tree(made: Any, values: Array, targets: tuple[int, ...], columns: Sequence[int]) -> Tree:
    """Read a classic tree.

    Args:
        made: The `tree_` of an estimator.
        values: Numbers of each node, of shape `(nodes, len(targets))`; those of leaves count.
        targets: Numbers of the sums.
        columns: Column of each of the tree's features.

    Raises:
        InputError: its nodes aren't a tree: scikit-learn would read memory that isn't theirs.
    """
    inner, leaves = np.flatnonzero(~_is_leaf(made)), np.flatnonzero(_is_leaf(made))
    features = made.feature[inner]
    at = _placed(inner, leaves, made.children_left, made.children_right, features, len(columns))
    missing = getattr(made, "missing_go_to_left", np.zeros(made.node_count, bool))
    return Tree(
        values[leaves],
        targets,
        np.asarray(columns, np.int64)[features].tolist(),
        [LEQ] * len(inner),
        rounded_down(made.threshold[inner]).tolist(),
        {},
        at[made.children_left[inner]].tolist(),
        at[made.children_right[inner]].tolist(),
        np.asarray(missing)[inner].astype(bool).tolist(),
    )


def _is_leaf(made: Any) -> Array:
    """Whether each node of a classic tree is a leaf, as scikit-learn itself tells it."""
    return np.asarray(made.children_left == -1)


def _placed(
    inner: Array, leaves: Array, left: Array, right: Array, features: Array, count: int
) -> Array:
    """Return what a `Tree` calls each node by: the place of an inner node, `~place` of a leaf.

    Args:
        inner: Nodes with children.
        leaves: The other nodes.
        left: Left child of each node.
        right: Right child of each node.
        features: Column of each inner node.
        count: Number of the columns.

    Raises:
        InputError: the nodes aren't a tree.
    """
    nodes = len(inner) + len(leaves)
    children = np.concatenate([left[inner], right[inner]])
    wrong = wrong_children(children, np.arange(1, nodes), features, count)
    if not nodes or (inner.size and inner[0] != 0):
        wrong = "has no root"
    if wrong:
        raise InputError(f"the scikit-learn model is damaged: one of its trees {wrong}")
    at = np.empty(nodes, np.int64)
    at[inner], at[leaves] = np.arange(len(inner)), ~np.arange(len(leaves))
    return at


def _narrow(building: Building, part: ColumnBlock) -> str:
    """Return rows as a classic tree sees them: rounded to float32, then compared in float64."""
    rows = building.graph.cast(part.name, "float32", building.dtype)
    return building.graph.cast(rows, "float64", "float32")


def forest_sums(
    building: Building, part: ColumnBlock, members: Sequence[Any], numbers: Sequence[Array]
) -> str:
    """Return the sums of classic trees' leaves.

    Args:
        building: Where to add to.
        part: Rows of the trees.
        members: Estimators of the trees.
        numbers: Numbers of each tree's nodes, of shape `(nodes, targets)`; those of leaves count.
    """
    width = numbers[0].shape[1]
    trees = [
        _tree(member.tree_, one, tuple(range(width)), range(part.size))
        for member, one in zip(members, numbers, strict=True)
    ]
    return sum_trees(building.graph, _narrow(building, part), trees, width, "float64")


def _takes_missing(model: Any) -> bool:
    from sklearn.utils import get_tags

    return bool(get_tags(model).input_tags.allow_nan)


def _forest(model: Any) -> Head:
    """Describe a tree or a forest: the mean of its trees' leaves."""
    alone = not hasattr(model, "estimators_")
    members = [model] if alone else list(model.estimators_)
    labels = labels_of(model) if hasattr(model, "classes_") else ()
    width = len(labels) or int(model.n_outputs_)

    def leaves(member: Any) -> Array:
        held = member.tree_.value
        return np.asarray(held[:, 0, :width] if labels else held[:, :, 0])

    def write(building: Building, part: ColumnBlock) -> str:
        graph, rows, columns = building.graph, _narrow(building, part), range(part.size)
        numbers = [leaves(member) for member in members]
        whole = all(
            np.isin(one[_is_leaf(m.tree_)], (0, 1)).all()
            for one, m in zip(numbers, members, strict=True)
        )
        if len(labels) == 1:
            numbers = [np.ones_like(one) for one in numbers]
        if len(labels) == 2 and whole:
            trees = [
                _tree(m.tree_, one[:, 1:], (0,), columns)
                for one, m in zip(numbers, members, strict=True)
            ]
            positive = sum_trees(graph, rows, trees, 1, "float64")
            negative = graph.add("Sub", np.float64(len(trees)), positive)
            sums = graph.add("Concat", negative, positive, axis=1)
        else:
            targets = tuple(range(width))
            trees = [
                _tree(m.tree_, one, targets, columns)
                for one, m in zip(numbers, members, strict=True)
            ]
            sums = sum_trees(graph, rows, trees, width, "float64")
        return sums if len(members) == 1 else graph.add("Div", sums, np.float64(len(members)))

    return Head(
        _NAME, labels, width, write, "float64", narrow=True, takes_missing=_takes_missing(model)
    )


def _boosting(model: Any) -> Head:
    """Describe a GradientBoosting model: a start value, then its trees, each times the learning rate."""
    if type(model.init_).__name__ not in ("DummyClassifier", "DummyRegressor", "str"):
        raise InputError(
            f"{type(model).__name__} with init={type(model.init_).__name__} isn't supported"
        )
    labels = labels_of(model) if hasattr(model, "classes_") else ()
    count = model.estimators_.shape[1]
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))[0]

    def scores(building: Building, part: ColumnBlock) -> str:
        graph, rows = building.graph, _narrow(building, part)
        trees = [constant(float(value), target) for target, value in enumerate(start) if value]
        for stage in model.estimators_:
            for target, member in enumerate(stage):
                values = model.learning_rate * member.tree_.value[:, :, 0]
                trees.append(_tree(member.tree_, values, (target,), range(part.size)))
        return sum_trees(graph, rows, trees, count, "float64")

    def write(building: Building, part: ColumnBlock) -> str:
        sums = scores(building, part)
        if not labels:
            return sums
        if model.loss == "exponential":
            sums = building.graph.add("Mul", sums, np.float64(2))
        return probabilities(building, sums, len(labels), "float64")

    width = len(labels) or count
    return Head(_NAME, labels, width, write, "float64", narrow=True, scores=scores)


def _isolation(model: Any) -> Head:
    """Describe an IsolationForest, whose value is its `decision_function`: below 0 for an outlier."""
    from sklearn.ensemble._iforest import _average_path_length

    scale = len(model.estimators_) * float(_average_path_length([model._max_samples])[0])

    def write(building: Building, part: ColumnBlock) -> str:
        graph, rows = building.graph, _narrow(building, part)
        trees = []
        for member, columns in zip(model.estimators_, model.estimators_features_, strict=True):
            made = member.tree_
            lengths = _depths(made) + _average_path_length(made.n_node_samples) - 1
            trees.append(_tree(made, lengths[:, None], (0,), columns))
        depths = sum_trees(graph, rows, trees, 1, "float64")
        rate = graph.add("Div", depths, np.float64(-scale)) if scale else np.full((1, 1), -1.0)
        scores = graph.add("Pow", np.float64(2), rate)
        return graph.add("Sub", np.float64(-model.offset_), scores)

    return Head(_NAME, (), 1, write, "float64", narrow=True, takes_missing=_takes_missing(model))


def _depths(made: Any) -> Array:
    """Return the number of nodes from the root to each node, both counted."""
    depths = np.ones(made.node_count)
    for node in range(made.node_count):  # children come after their parent
        for child in (made.children_left[node], made.children_right[node]):
            if child >= 0:
                depths[child] = depths[node] + 1
    return depths


def _histogram(model: Any) -> Head:
    """Describe a HistGradientBoosting model; its columns of categories are encoded first."""
    labels = labels_of(model) if hasattr(model, "classes_") else ()
    start = np.asarray(model._baseline_prediction, np.float64).reshape(-1)
    encoder = getattr(model, "_preprocessor", None)

    def prepare(building: Building, part: ColumnBlock) -> ColumnBlock:
        return part if encoder is None else transform(building, encoder, part)

    def scores(building: Building, part: ColumnBlock) -> str:
        graph = building.graph
        made = prepare(building, part)
        if model._bin_mapper.is_categorical_.shape != (made.size,):
            raise InputError(
                "the scikit-learn model is damaged: it doesn't say of each column whether it has categories"
            )
        trees = [constant(float(value), target) for target, value in enumerate(start) if value]
        for stage in model._predictors:
            trees += [_histogram_tree(one, target, made) for target, one in enumerate(stage)]
        rows = graph.cast(made.name, "float64", building.dtype)
        sets = {tree.columns[place] for tree in trees for place in tree.sets}
        rows = looked_up(graph, rows, sets, made.size, "float64", "given")
        return sum_trees(graph, rows, trees, len(start), "float64")

    def write(building: Building, part: ColumnBlock) -> str:
        sums = scores(building, part)
        if labels:
            return probabilities(building, sums, len(labels), "float64")
        return building.graph.add("Exp", sums) if model.loss in ("poisson", "gamma") else sums

    return Head(
        _NAME,
        labels,
        len(labels) or 1,
        write,
        "float64",
        takes_missing=True,
        takes_infinite=encoder is None,
        prepare=prepare,
        scores=scores,
    )


def _histogram_tree(predictor: Any, target: int, rows: ColumnBlock) -> Tree:
    """Read a tree of histograms.

    Its splits may be values of the training data. Where the last bits of a column differ from the library's, a
    split is raised a little, so that such a value goes left here too.
    """
    nodes = predictor.nodes
    inner, leaves = np.flatnonzero(nodes["is_leaf"] == 0), np.flatnonzero(nodes["is_leaf"])
    split = nodes[inner]
    left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
    at = _placed(inner, leaves, left, right, split["feature_idx"], rows.size)
    sets = {
        int(place): _bits(predictor.raw_left_cat_bitsets[split["bitset_idx"][place]])
        for place in np.flatnonzero(split["is_categorical"])
    }
    return Tree(
        nodes["value"][leaves][:, None],
        (target,),
        split["feature_idx"].tolist(),
        [MEMBER if categorical else LEQ for categorical in split["is_categorical"]],
        [
            0.0 if categorical else float(number) + rows.columns[place].tolerance(float(number))
            for categorical, number, place in zip(
                split["is_categorical"], split["num_threshold"], split["feature_idx"], strict=True
            )
        ],
        sets,
        at[split["left"]].tolist(),
        at[split["right"]].tolist(),
        split["missing_go_to_left"].astype(bool).tolist(),
    )


def _bits(words: Array) -> list[int]:
    """Return the places of the bits that are set in words of 32."""
    return [
        32 * w + bit for w, word in enumerate(words) for bit in range(32) if int(word) >> bit & 1
    ]


HEADS: dict[str, Callable[[Any], Head]] = {
    "DecisionTreeClassifier": _forest,
    "DecisionTreeRegressor": _forest,
    "ExtraTreeClassifier": _forest,
    "ExtraTreeRegressor": _forest,
    "RandomForestClassifier": _forest,
    "RandomForestRegressor": _forest,
    "ExtraTreesClassifier": _forest,
    "ExtraTreesRegressor": _forest,
    "GradientBoostingClassifier": _boosting,
    "GradientBoostingRegressor": _boosting,
    "HistGradientBoostingClassifier": _histogram,
    "HistGradientBoostingRegressor": _histogram,
    "IsolationForest": _isolation,
}
"""Function that describes each model, by the name of its class."""
