"""ONNX's ensembles of decision trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.scores import classified, scaled, transformed
from hasten.engines.compiled.operators.forests import MOST_DEPTH, Forest
from hasten.engines.compiled.operators.trees import Trees
from hasten.engines.compiled.values import Value

_MODES = (
    "BRANCH_LEQ",
    "BRANCH_LT",
    "BRANCH_GTE",
    "BRANCH_GT",
    "BRANCH_EQ",
    "BRANCH_NEQ",
    "BRANCH_MEMBER",
)
"""Modes of nodes, by the numbers that `TreeEnsemble` has for them."""
_LEAF = "LEAF"
_TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
"""Post-transforms by the numbers that ONNX Runtime 1.32 reads in `TreeEnsemble`; ONNX's text has 1 and 2
the other way round."""
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_COMBINE = {"AVERAGE": "sum", "SUM": "sum", "MIN": "minimum", "MAX": "maximum"}


_Split = tuple[int, float, bool, int]
"""Column, -1 for a leaf; threshold; whether NaN goes high; number of the set, -1 for none."""
_LEAF_SPLIT: _Split = (-1, 0.0, False, -1)


@dataclass
class _Nodes:
    """Nodes of an ensemble as ONNX has them, with children by their place in the lists.

    Attributes:
        modes: Mode of each node.
        features: Column of each node.
        values: Number that each node compares with.
        true: Child where the comparison holds.
        false: Child where it doesn't.
        tracks: Whether NaN counts as if the comparison held.
        leaves: Targets and weights of each leaf.
        roots: Root of each tree.
        sets: Numbers of each `BRANCH_MEMBER` node.
    """

    modes: Sequence[str]
    features: Sequence[int]
    values: Array
    true: Sequence[int]
    false: Sequence[int]
    tracks: Sequence[int]
    leaves: Mapping[int, list[tuple[int, float]]]
    roots: Sequence[int]
    sets: Mapping[int, Array] = field(default_factory=dict)


@dataclass
class _Splits:
    """Inner nodes as `Trees` has them, by their place in the lists.

    Attributes:
        nodes: Column, threshold, side of NaN and set of each one.
        low: Low child of each one.
        high: High child of each one.
        sets: Number of each set.
    """

    nodes: list[_Split]
    low: list[int]
    high: list[int]
    sets: dict[tuple[float, ...], int] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Node, nodes: _Nodes, dtype: str) -> _Splits:
        """Turn the modes of all nodes into thresholds and sets."""
        modes = np.asarray(nodes.modes)
        if unknown := set(nodes.modes) - {*_MODES, _LEAF}:
            node.refuse(f"one of its modes is {min(unknown)!r}")
        values = np.asarray(nodes.values).astype(dtype)
        strict = np.isin(modes, ("BRANCH_LT", "BRANCH_GTE"))
        below = np.isin(modes, ("BRANCH_LEQ", "BRANCH_LT"))
        true, false = np.asarray(nodes.true), np.asarray(nodes.false)
        tracks = np.asarray(nodes.tracks) != 0
        next_below = np.nextafter(values, values.dtype.type(-np.inf))
        thresholds = np.where(strict, next_below, values)
        split = zip(
            nodes.features, thresholds.tolist(), (tracks != below).tolist(), [-1] * len(modes),
            strict=True,
        )  # fmt: skip
        low, high = np.where(below, true, false), np.where(below, false, true)
        made = cls(list(split), low.tolist(), high.tolist())
        apart = np.isin(modes, ("BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER"))
        apart |= np.isnan(values) | (strict & (values == -np.inf))
        for place in np.flatnonzero(apart & (modes != _LEAF)).tolist():
            made._categorize(place, nodes, values[place])
        return made

    def _categorize(self, place: int, nodes: _Nodes, value: Any) -> None:
        """Turn a node into a question for a set."""
        mode, feature = nodes.modes[place], nodes.features[place]
        true, false = nodes.true[place], nodes.false[place]
        nan_true = bool(nodes.tracks[place])
        if mode in ("BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER"):
            numbers = nodes.sets[place] if mode == "BRANCH_MEMBER" else np.asarray([value])
            members = self._set(numbers[~np.isnan(numbers)].astype(value.dtype))
            differs = mode == "BRANCH_NEQ"  # it holds for NaN, which differs from everything
            self.low[place], self.high[place] = (true, false) if differs else (false, true)
            self.nodes[place] = (feature, 0.0, nan_true and not differs, members)
            return
        # The comparison has one result, but for NaN: nothing is in an empty set.
        holds = mode == "BRANCH_GTE" and not np.isnan(value)
        self.low[place], self.high[place] = (true, false) if holds else (false, true)
        self.nodes[place] = (feature, 0.0, nan_true != holds, self._set(np.zeros(0)))

    def _set(self, numbers: Array) -> int:
        """Return the number of a set."""
        known = tuple(np.unique(numbers).tolist())
        return self.sets.setdefault(known, len(self.sets))

    def tree(self, node: Node, modes: Sequence[str], root: int) -> tuple[list[_Split], list[int]]:
        """Return the nodes of a tree in preorder, low children first, and its leaves from the left."""
        found: list[_Split] = []
        leaves: list[int] = []
        waiting = [(root, 0)]
        most = len(modes)
        while waiting:
            place, depth = waiting.pop()
            if not 0 <= place < most or len(found) > 2 * most or depth > MOST_DEPTH:
                node.refuse("its nodes aren't trees, or are too deep")
            if modes[place] == _LEAF:
                leaves.append(place)
                found.append(_LEAF_SPLIT)
            else:
                found.append(self.nodes[place])
                waiting.append((self.high[place], depth + 1))
                waiting.append((self.low[place], depth + 1))
        return found, leaves


def _ensemble(node: Node, nodes: _Nodes, targets: int, aggregate: str) -> Value:
    """Append the operation of an ensemble; return its sums, of shape `(1, targets)`."""
    row = node.input(0)
    if row.dtype not in ("float32", "float64") or len(row.shape) != 2 or row.shape[0] != 1:
        node.refuse(f"its rows are {row.dtype}, of shape {list(row.shape)}")
    splits = _Splits.of(node, nodes, row.dtype)
    known: dict[tuple[_Split, ...], int] = {}
    every: list[_Split] = []
    columns: list[tuple[int, int, Array]] = []
    for root in nodes.roots:
        found, leaves = splits.tree(node, nodes.modes, root)
        key = tuple(found)
        if key not in known:
            known[key] = len(known)
            every += found
        for target, values in _columns(node, nodes, leaves, targets, aggregate).items():
            columns.append((known[key], target, values))
    columns.sort(key=lambda column: column[1])
    if not columns:
        node.refuse("it has no leaves")
    bounds = np.cumsum([0, *map(len, splits.sets)], dtype=np.int32)
    numbers = [one for members in splits.sets for one in members]
    graph, dtype = node.graph, row.dtype
    result = graph.new(dtype, (1, targets), row.batch)
    names = [
        graph.store(np.asarray(one, kind))
        for one, kind in (
            *zip(zip(*every, strict=True), ("int32", dtype, "uint8", "int32"), strict=True),
            (numbers or [0.0], dtype),
            (bounds, "int32"),
            (np.ravel([column[:2] for column in columns]), "int32"),
            (np.concatenate([column[2] for column in columns]), dtype),
        )
    ]
    forest = Forest.grow(np.asarray([split[0] < 0 for split in every]))
    steps = int((forest.depths + 1).sum())
    graph.add(Trees(graph.tensor(row), result.tensor, *names, _COMBINE[aggregate], steps))  # type: ignore[arg-type,call-arg]
    return result


def _columns(
    node: Node, nodes: _Nodes, leaves: Sequence[int], targets: int, aggregate: str
) -> dict[int, Array]:
    """Return the values of a tree's leaves for each target that it has any for."""
    made: dict[int, Array] = {}
    counts: dict[int, int] = {}
    for number, place in enumerate(leaves):
        for target, weight in nodes.leaves.get(place, ()):
            if target not in made:
                made[target] = np.zeros(len(leaves))
            made[target][number] += weight
            counts[target] = counts.get(target, 0) + 1
    for target in made:
        if not 0 <= target < targets:
            node.refuse(f"it names target {target} of {targets}")
        if counts[target] != len(leaves) and aggregate in ("MIN", "MAX"):
            node.refuse(f"{aggregate} of leaves that don't have each target")
    return made


def _numbers(node: Node, name: str) -> Array:
    """Return numbers from a list, or from a tensor under the name with `_as_tensor`."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    return np.ravel(np.asarray(node.attributes.get(name, []) if tensor is None else tensor, "f8"))


def _listed(node: Node, leaf: str) -> _Nodes:
    """Return the nodes of the operators of version 1 and 3, whose leaves' lists begin with a word."""
    a = node.attributes
    keys = list(zip(a["nodes_treeids"], a["nodes_nodeids"], strict=True))
    places = {key: place for place, key in enumerate(keys)}
    modes = [_text(one) for one in a["nodes_modes"]]
    ends = {}
    for side in ("true", "false"):
        ends[side] = [
            -1 if mode == _LEAF else places.get((key[0], child), -1)
            for mode, key, child in zip(modes, keys, a[f"nodes_{side}nodeids"], strict=True)
        ]
    inner = [place for place, mode in enumerate(modes) if mode != _LEAF]
    children = {ends[side][place] for side in ends for place in inner}
    roots = [place for place in range(len(keys)) if place not in children]
    leaves: dict[int, list[tuple[int, float]]] = {}
    for tree, own, target, weight in zip(
        a[f"{leaf}_treeids"],
        a[f"{leaf}_nodeids"],
        a[f"{leaf}_ids"],
        _numbers(node, f"{leaf}_weights").tolist(),
        strict=True,
    ):
        leaves.setdefault(places[(tree, own)], []).append((target, weight))
    values = _numbers(node, "nodes_values")
    if len(values) != len(keys) or len(places) != len(keys):
        node.refuse("its lists of nodes differ in length")
    tracks = a.get("nodes_missing_value_tracks_true") or [0] * len(keys)
    features = a["nodes_featureids"]
    return _checked(
        node, _Nodes(modes, features, values, ends["true"], ends["false"], tracks, leaves, roots)
    )


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


def _checked(node: Node, nodes: _Nodes) -> _Nodes:
    """Return nodes whose columns lie within the row."""
    width = node.input(0).shape[-1]
    for mode, feature in zip(nodes.modes, nodes.features, strict=True):
        if mode != _LEAF and not 0 <= feature < width:
            node.refuse(f"it reads column {feature} of rows of {width}")
    return nodes


def _regressor(node: Node) -> None:
    aggregate = node.attributes.get("aggregate_function", "SUM")
    targets = node.attributes.get("n_targets", 1)
    nodes = _listed(node, "target")
    total = _finished(node, _ensemble(node, nodes, targets, aggregate), aggregate, len(nodes.roots))
    base = _numbers(node, "base_values")
    transformed(node, total, base, node.attributes.get("post_transform", "NONE"), "float32")


def _classifier(node: Node) -> None:
    labels = node.attributes.get("classlabels_int64s") or node.attributes.get("classlabels_strings")
    if not labels:
        node.refuse("it has no labels")
    nodes = _listed(node, "class")
    classes = len(labels)
    given = {target for leaf in nodes.leaves.values() for target, _ in leaf}
    weights = [weight for leaf in nodes.leaves.values() for _, weight in leaf]
    positive = all(weight >= 0 for weight in weights)
    total = _ensemble(node, nodes, classes, "SUM")
    classified(
        node, total, labels, _numbers(node, "base_values"), given, positive,
        node.attributes.get("post_transform", "NONE"),
    )  # fmt: skip


def _finished(node: Node, total: Value, aggregate: str, trees: int) -> Value:
    """Append what follows the sums of an aggregate."""
    if aggregate not in _AGGREGATES:
        node.refuse(f"its aggregate is {aggregate!r}")
    if aggregate != "AVERAGE":
        return total
    return scaled(node, total, trees)


def _ensemble_5(node: Node) -> None:
    a = node.attributes
    inner, modes = len(a["nodes_featureids"]), [_MODES[int(one)] for one in a["nodes_modes"]]
    targets, weights = a["leaf_targetids"], np.ravel(a["leaf_weights"]).tolist()
    ends = {}
    for side in ("true", "false"):
        ends[side] = [
            child + inner if leaf else child
            for child, leaf in zip(a[f"nodes_{side}nodeids"], a[f"nodes_{side}leafs"], strict=True)
        ]
    leaves = {
        inner + place: [pair] for place, pair in enumerate(zip(targets, weights, strict=True))
    }
    members = _sets(node, modes)
    none = [0] * len(weights)
    tracks = a.get("nodes_missing_value_tracks_true") or [0] * inner
    nodes = _Nodes(
        [*modes, *[_LEAF] * len(none)],
        [*a["nodes_featureids"], *none],
        np.concatenate([np.ravel(a["nodes_splits"]), none]),
        ends["true"] + none,
        ends["false"] + none,
        [*tracks, *none],
        leaves,
        a["tree_roots"],
        members,
    )
    aggregate = _AGGREGATES[a.get("aggregate_function", 1)]
    total = _ensemble(node, _checked(node, nodes), a.get("n_targets", 1), aggregate)
    total = _finished(node, total, aggregate, len(nodes.roots))
    transform = _TRANSFORMS[a.get("post_transform", 0)]
    transformed(node, total, np.zeros(0), transform, node.input(0).dtype)


def _sets(node: Node, modes: Sequence[str]) -> dict[int, Array]:
    """Return the numbers of each `BRANCH_MEMBER` node: they stand in one list, and NaN ends each."""
    places = [place for place, mode in enumerate(modes) if mode == "BRANCH_MEMBER"]
    if not places:
        return {}
    numbers = np.ravel(node.attributes["membership_values"])
    ends = np.flatnonzero(np.isnan(numbers))
    parts = [part[~np.isnan(part)] for part in np.split(numbers, ends)][: len(ends)]
    if len(parts) < len(places):
        parts.append(np.split(numbers, ends)[-1][1:] if len(ends) else numbers)
    if len(parts) != len(places):
        node.refuse(f"it has {len(parts)} sets for {len(places)} nodes")
    return dict(zip(places, parts, strict=True))


LOWERINGS: Mapping[str, Callable[[Node], None]] = {
    "TreeEnsembleRegressor": _regressor,
    "TreeEnsembleClassifier": _classifier,
    "TreeEnsemble": _ensemble_5,
}
"""Lowering of each operator."""
