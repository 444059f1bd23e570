"""Shape of a forest of binary trees, from the list of its nodes in preorder.

Each node stands before its low subtree, which stands before its high one, so that the list says by itself
which nodes are whose children. No list can speak of a child that isn't there, or of a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import IntegrityError

MOST_DEPTH = 4096
"""Longest way from a root to a leaf that is taken."""


@dataclass(frozen=True)
class Forest:
    """Trees, whose inner nodes send a row low or high, and whose leaves are numbered from 0 in each tree.

    Attributes:
        leaf: Whether each node is a leaf, in preorder, tree after tree.
        starts: First node of each tree.
        high: High child of each inner node; its low child is the next node. 0 for leaves.
        depth: Number of nodes above each node.
    """

    leaf: Array
    starts: Array
    high: Array
    depth: Array

    @classmethod
    def grow(cls, leaf: Array) -> Forest:
        """Find the trees in a list of nodes.

        Args:
            leaf: Whether each node is a leaf, as bool of shape `(nodes,)`.

        Raises:
            IntegrityError: the list isn't one of whole trees, or one of them is too deep.
        """
        nodes = len(leaf)
        level = np.cumsum(np.where(leaf, -1, 1)) if nodes else np.zeros(1, np.int64)
        lowest = np.minimum.accumulate(level)
        trees = -int(level[-1])
        if trees < 1 or (nodes > 1 and lowest[-2] <= level[-1]):
            raise IntegrityError("the plan is damaged: trees: the nodes aren't whole trees")
        ends = np.searchsorted(-lowest, np.arange(1, trees + 1))
        starts = np.concatenate([[0], ends[:-1] + 1])
        # The low subtree of a node ends where the level is first one lower than at the node.
        inner = np.flatnonzero(~leaf)
        order = np.argsort(level, kind="stable")
        keys = (level[order] + trees) * nodes + order
        ends = keys[np.searchsorted(keys, (level[inner] - 1 + trees) * nodes + inner)] % nodes
        high = np.zeros(nodes, np.int64)
        high[inner] = ends + 1
        return cls(leaf, starts, high, _depths(leaf, starts, high))

    @cached_property
    def leaves_before(self) -> Array:
        """Leaves of a node's own tree that stand before the node: a leaf's number."""
        before = np.cumsum(self.leaf) - self.leaf
        return np.asarray(before - before[self.starts][self.tree])

    @cached_property
    def tree(self) -> Array:
        """Number of each node's tree."""
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    @cached_property
    def sizes(self) -> Array:
        """Nodes of each tree."""
        return np.diff(np.append(self.starts, len(self.leaf)))

    @cached_property
    def leaves(self) -> Array:
        """Leaves of each tree."""
        return np.asarray((self.sizes + 1) // 2)

    @cached_property
    def depths(self) -> Array:
        """Depth of each tree's deepest leaf."""
        return np.maximum.reduceat(self.depth, self.starts)

    @cached_property
    def mean_depths(self) -> Array:
        """Mean depth of each tree's leaves."""
        return np.asarray(np.add.reduceat(self.depth * self.leaf, self.starts) / self.leaves)


def _depths(leaf: Array, starts: Array, high: Array) -> Array:
    depth = np.zeros(len(leaf), np.int64)
    front = starts
    for level in range(MOST_DEPTH + 1):
        depth[front] = level
        inner = front[~leaf[front]]
        if not inner.size:
            return depth
        front = np.concatenate([inner + 1, high[inner]])
    raise IntegrityError(f"the plan is damaged: trees: a tree is deeper than {MOST_DEPTH}")
