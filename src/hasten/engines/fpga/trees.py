"""Ensembles of decision trees as comparisons and choices between constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from hasten.core.tensors import Array
from hasten.errors import NotCovered


@dataclass(frozen=True)
class Ensemble:
    """Trees of an ONNX node, an `ai.onnx.ml` TreeEnsembleClassifier or TreeEnsembleRegressor.

    Attributes:
        node: Name of the node, for messages.
        branches: Feature, threshold, and the next node if the feature is at most that (or less,
            where `strict`) and if not, by (tree, node).
        leaves: Weights of the targets, `(targets,)`, by (tree, node).
        strict: Whether the comparison is "less than" instead of "at most".
        base: Initial sum of each target, `(targets,)`.
        classes: Labels of a classifier; empty for a regressor.
        transform: Final function of the sums: "NONE", "LOGISTIC", "SOFTMAX".
        positive: Whether a classifier's only sum is a probability, so that its two classes meet at
            0.5.
    """

    node: str
    branches: Mapping[tuple[int, int], tuple[int, float, int, int]]
    leaves: Mapping[tuple[int, int], Array]
    strict: bool
    base: Array
    classes: tuple[int, ...]
    transform: str
    positive: bool

    def sums(self, features: Sequence[Any], bits: int, hardware: Any) -> list[Any]:
        """Return the sum of each target.

        Args:
            features: Rounded features, as da4ml's variables.
            bits: Width of the largest leaf, sign bit included.
            hardware: Hardware costs, as da4ml's configuration.
        """
        from da4ml.trace import FixedVariable, FixedVariableArray

        largest = max(float(np.abs(w).max()) for w in self.leaves.values()) or 1.0
        step = 2.0 ** (np.ceil(np.log2(largest)) - (bits - 1))
        roots = sorted({tree for tree, _ in (*self.branches, *self.leaves)})

        def grown(tree: int, node: int, target: int) -> Any:
            if (tree, node) in self.leaves:
                value = float(np.round(self.leaves[tree, node][target] / step) * step)
                return FixedVariable.from_const(value, hwconf=hardware)
            feature, threshold, below, above = self.branches[tree, node]
            variable = features[feature]
            places = float(variable.step)
            least = np.floor(threshold / places) * places + places  # least number above it
            if self.strict and threshold / places == np.floor(threshold / places):
                least = threshold
            condition = (variable - float(least)).is_negative()
            return condition.msb_mux(grown(tree, below, target), grown(tree, above, target))

        found = []
        for target in range(len(self.base)):
            each = [grown(tree, 0, target) for tree in roots]
            total = np.sum(FixedVariableArray(np.array(each, dtype=object), hwconf=hardware))
            base = float(np.round(self.base[target] / step) * step)
            found.append(total + base if base else total)
        return found


def read(node: onnx.NodeProto) -> Ensemble:
    """Read a node's trees.

    Raises:
        CandidateError: the trees are of a kind that has no fixed-point form.
    """
    given: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind = "class" if node.op_type == "TreeEnsembleClassifier" else "target"
    modes = {m.decode() for m in given["nodes_modes"]} - {"LEAF"}
    transform = given.get("post_transform", b"NONE").decode()
    known = ("NONE", "LOGISTIC", "SOFTMAX") if kind == "class" else ("NONE",)
    if len(modes) > 1 or not modes <= {"BRANCH_LEQ", "BRANCH_LT"} or transform not in known:
        raise NotCovered(
            f"trees that compare by {', '.join(sorted(modes))} and end in {transform} (node "
            f"{node.name!r}) have no fixed-point form"
        )
    if given.get("aggregate_function", b"SUM") != b"SUM":
        raise NotCovered(f"trees that aren't summed (node {node.name!r}) have no fixed-point form")
    if given.get("classlabels_strings"):
        raise NotCovered(f"the labels of trees (node {node.name!r}) must be integers")
    places = list(zip(given["nodes_treeids"], given["nodes_nodeids"], strict=True))
    branches = {
        place: (feature, float(value), below, above)
        for place, mode, feature, value, below, above in zip(
            places,
            given["nodes_modes"],
            given["nodes_featureids"],
            given["nodes_values"],
            given["nodes_truenodeids"],
            given["nodes_falsenodeids"],
            strict=True,
        )
        if mode != b"LEAF"
    }
    ids = list(given[f"{kind}_ids"])
    classes = tuple(int(c) for c in given.get("classlabels_int64s", ()))
    one_sum = kind == "class" and len(classes) == 2 and len(set(ids)) == 1
    count = 1 if one_sum else (len(classes) or int(given.get("n_targets", 1)))
    leaves = {place: np.zeros(count) for place in places if place not in branches}
    weights = given[f"{kind}_weights"]
    for tree, inner, target, weight in zip(
        given[f"{kind}_treeids"], given[f"{kind}_nodeids"], ids, weights, strict=True
    ):
        leaves[tree, inner][0 if one_sum else target] += weight
    base = np.array(given.get("base_values") or [0.0] * count, np.float64)
    return Ensemble(
        node=node.name,
        branches=branches,
        leaves=leaves,
        strict=modes == {"BRANCH_LT"},
        base=base[-1:] if one_sum else base,
        classes=classes,
        transform=transform,
        positive=one_sum and transform == "NONE" and min(weights) >= 0,
    )
