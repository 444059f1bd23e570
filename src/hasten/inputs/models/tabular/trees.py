"""Trees of any library as one node of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.graph import Graph

LEQ, LT, GT, MEMBER = 0, 1, 3, 6
"""Modes of a node, as ai.onnx.ml 5 numbers them: the true side is taken where x <= split, and so on."""


@dataclass
class Tree:
    """Binary tree whose nodes compare one column; a child from 0 is a node, one below 0 the leaf `~child`.

    The first node is the root. A tree without nodes has one leaf.

    Attributes:
        values: Numbers of the leaves, of shape `(leaves, len(targets))`.
        targets: Numbers of the sums that a leaf's numbers are added to.
        columns: Column of each node.
        modes: `LEQ`, `LT`, `GT` or `MEMBER` of each node.
        splits: Number that each node compares with; 0 for a set.
        sets: Whole numbers from 0 of each node that is a `MEMBER`, by the node's place. In the file they
            are 1 larger, and so is what `looked_up` makes of the rows.
        true: Child of each node where its condition holds.
        false: Child of each node where it doesn't.
        missing_true: Whether NaN goes to the true child, for each node.
    """

    values: Array
    targets: tuple[int, ...] = (0,)
    columns: list[int] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    splits: list[float] = field(default_factory=list)
    sets: dict[int, list[int]] = field(default_factory=dict)
    true: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    missing_true: list[bool] = field(default_factory=list)

    def node(self, column: int, mode: int, split: float, missing_true: bool) -> int:
        """Add a node whose children are set later, and return its place."""
        self.columns.append(column)
        self.modes.append(mode)
        self.splits.append(split)
        self.missing_true.append(missing_true)
        self.true.append(0)
        self.false.append(0)
        return len(self.columns) - 1


def constant(value: float, target: int = 0) -> Tree:
    """Return a tree that adds the same number for every row."""
    return Tree(np.array([[value]], np.float64), (target,))


def wrong_children(children: Array, known: Array, columns: Array, count: int) -> str:
    """Say what is wrong with a tree's nodes; "" for sound ones, whose walk from the root ends.

    Args:
        children: Children of all nodes, of both sides.
        known: Places of all children, each once and ascending; the root isn't among them.
        columns: Column of each node.
        count: Number of the columns.
    """
    if not np.array_equal(np.sort(children), known):
        return "has nodes that are nobody's child, or several's"
    if not are_columns(columns, count):
        return f"splits by a column that isn't one of the {count}"
    return ""


def are_columns(places: Array, count: int) -> bool:
    """Whether places are from 0 to below a count."""
    return not places.size or bool(places.min() >= 0 and places.max() < count)


def interpolated(graph: Graph, value: str, knots: Array, heights: Array) -> str:
    """Return what `numpy.interp` gives: straight lines between knots, and level before and behind them.

    A tree finds the line on which a value lies.

    Args:
        graph: Graph to add to.
        value: Name of the values, float64 of shape `[batch, 1]`.
        knots: Values in ascending order, `(n,)`; some may be equal.
        heights: Result at each knot, `(n,)`.
    """
    knots, heights = np.asarray(knots, np.float64), np.asarray(heights, np.float64)
    begins = np.flatnonzero(np.append(np.diff(knots) > 0, True))  # of equal ones, the last
    slopes = np.diff(heights, append=heights[-1])[begins] / np.diff(knots, append=np.inf)[begins]
    # The first of equal knots counts for what lies before them.
    before = np.nextafter(knots[0] - 1, -np.inf)
    lines = np.stack([knots[begins], heights[begins], slopes], axis=1)
    lines = np.concatenate([[[before, heights[0], 0.0]], lines])
    within = graph.add("Clip", value, before, knots[-1])
    line = sum_trees(graph, within, [_steps(lines)], 3, "float64")
    start, height, slope = (
        graph.add("Gather", line, np.array([place], np.int64), axis=1) for place in range(3)
    )
    return graph.add("Add", graph.add("Mul", graph.add("Sub", within, start), slope), height)


def _steps(lines: Array) -> Tree:
    """Return a tree that finds the last of some rows whose first number isn't above the value."""
    tree = Tree(lines, tuple(range(lines.shape[1])))

    def grow(low: int, high: int) -> int:
        if high - low == 1:
            return ~low
        middle = (low + high) // 2
        node = tree.node(0, LT, float(lines[middle, 0]), False)
        tree.true[node] = grow(low, middle)
        tree.false[node] = grow(middle, high)
        return node

    grow(0, len(lines))
    return tree


def apart(tree: Tree) -> list[Tree]:
    """Return a tree for each number that the leaves hold, in order.

    A part of a tree in which all leaves have a zero is one leaf.
    """
    if len(tree.targets) == 1:
        return [tree]
    return [_without_zeros(tree, number) for number in range(len(tree.targets))]


def _without_zeros(tree: Tree, number: int) -> Tree:
    """Return a tree with one of the leaves' numbers, and one leaf for each part that only has zeros there."""
    values = tree.values[:, number]
    nothing = [False] * len(tree.columns)

    def is_zero(child: int) -> bool:
        return nothing[child] if child >= 0 else bool(values[~child] == 0)

    walk = _walk(tree, tree.true, tree.false)
    for place in reversed(walk):  # children before their parents
        nothing[place] = is_zero(tree.true[place]) and is_zero(tree.false[place])
    kept = [place for place in walk if not nothing[place]]
    at = {place: number for number, place in enumerate(kept)}
    weights: list[float] = []

    def moved(child: int) -> int:
        if child in at:
            return at[child]
        weights.append(0.0 if child >= 0 else float(values[~child]))
        return ~(len(weights) - 1)

    found = Tree(np.empty(0), (tree.targets[number],))
    for place in kept:
        made = found.node(
            tree.columns[place], tree.modes[place], tree.splits[place], tree.missing_true[place]
        )
        found.true[made], found.false[made] = moved(tree.true[place]), moved(tree.false[place])
        if place in tree.sets:
            found.sets[made] = tree.sets[place]
    if not kept:
        weights = [0.0 if tree.columns else float(values[0])]
    found.values = np.array(weights, tree.values.dtype)[:, None]
    return found


def _walk(tree: Tree, last: list[int], first: list[int]) -> list[int]:
    """Return a tree's nodes from the root on, those of one side first.

    Raises:
        InputError: the walk doesn't end.
    """
    walk: list[int] = []
    pending = [0] if tree.columns else []
    while pending:
        place = pending.pop()
        walk.append(place)
        if len(walk) > len(tree.columns):
            raise InputError("the model is damaged: a tree of it leads back to one of its nodes")
        pending += [child for child in (last[place], first[place]) if child >= 0]
    return walk


def sum_trees(graph: Graph, rows: str, trees: Sequence[Tree], targets: int, dtype: str) -> str:
    """Add the node that sums trees, and return its output of shape `[batch, targets]`.

    Args:
        graph: Graph to add to.
        rows: Name of the rows, of shape `[batch, columns]` and the type `dtype`.
        trees: The trees, in the order in which they are summed.
        targets: Number of sums.
        dtype: "float32" or "float64": type of comparisons, leaves and sums.

    A leaf of TreeEnsemble has one target, so a tree whose leaves hold several numbers is taken `apart`.
    """
    node: dict[str, list[int]] = {
        f"nodes_{name}": []
        for name in (
            *("featureids", "truenodeids", "trueleafs", "falsenodeids", "falseleafs"),
            "missing_value_tracks_true",
        )
    }
    modes: list[int] = []
    splits: list[float] = []
    members: list[float] = []
    leaves: list[Array] = []
    leaf_targets: list[int] = []
    roots: list[int] = []
    for tree in trees:
        for one in apart(tree):
            first, leaf = len(modes), len(leaf_targets)
            whole = _ordered(one) if one.columns else _split_leaf(one)
            roots.append(first)
            node["nodes_featureids"] += whole.columns
            node["nodes_missing_value_tracks_true"] += map(int, whole.missing_true)
            modes += whole.modes
            splits += whole.splits
            for side, children in (("true", whole.true), ("false", whole.false)):
                node[f"nodes_{side}nodeids"] += [
                    c + first if c >= 0 else ~c + leaf for c in children
                ]
                node[f"nodes_{side}leafs"] += [int(c < 0) for c in children]
            for place in range(len(whole.modes)):
                if whole.modes[place] == MEMBER:
                    members += [*(float(one + 1) for one in whole.sets[place]), np.nan]
            leaves.append(whole.values[:, 0])
            leaf_targets += [*whole.targets] * len(whole.values)
    sets = {"membership_values": np.array(members, dtype)} if members else {}
    return graph.add(
        "TreeEnsemble",
        rows,
        domain="ai.onnx.ml",
        aggregate_function=1,
        post_transform=0,
        n_targets=targets,
        tree_roots=roots,
        nodes_modes=np.array(modes, np.uint8),
        nodes_splits=np.array(splits, dtype),
        leaf_targetids=leaf_targets,
        leaf_weights=np.concatenate(leaves).astype(dtype),
        **node,
        **sets,
    )


def _split_leaf(tree: Tree) -> Tree:
    """Return a tree of one leaf with a node before it, since a TreeEnsemble has no other."""
    return Tree(tree.values, tree.targets, [0], [LEQ], [0.0], {}, [-1], [-1], [False])


def _ordered(tree: Tree) -> Tree:
    """Return a tree whose nodes come as a walk meets them, true sides first.

    ONNX Runtime reads sets in the order of the nodes, as ONNX says, and onnx's evaluator in that of the walk.
    """
    if not tree.sets:
        return tree
    walk = _walk(tree, tree.false, tree.true)
    at = {place: number for number, place in enumerate(walk)}
    return Tree(
        tree.values,
        tree.targets,
        [tree.columns[place] for place in walk],
        [tree.modes[place] for place in walk],
        [tree.splits[place] for place in walk],
        {at[place]: members for place, members in tree.sets.items()},
        [at.get(tree.true[place], tree.true[place]) for place in walk],
        [at.get(tree.false[place], tree.false[place]) for place in walk],
        [tree.missing_true[place] for place in walk],
    )
