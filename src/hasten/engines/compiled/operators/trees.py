"""Sums over a forest of decision trees."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import lanes, walks
from hasten.engines.compiled.operators.forests import Forest
from hasten.engines.compiled.operators.rankings import Splits
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_COMBINE = {
    "sum": "all += one;",
    "minimum": "all = one < all ? one : all;",
    "maximum": "all = one > all ? one : all;",
}
_UNSAID = 1000
"""Steps through a forest whose plan doesn't say them."""
_MOST_UNSAID = 10_000_000
"""Largest number of steps that such a forest may have: tens of milliseconds for a row."""
_MOST_SETS = 1 << 20
MOST_TREES = 100_000
"""Largest number of trees of a forest: a call keeps a number for each of them."""


@dataclass(frozen=True)
class Trees(Operation):
    """For each target, the leaf values of one row's trees, combined in order.

    A node stands before its low subtree, which stands before its high one: see `Forest`.

    Attributes:
        input: Row, float32 or float64.
        output: One number for each target, of the same type.
        features: Column that each node looks at, as int32; -1 for leaves.
        thresholds: Number of each node above which a row goes high, of the input's type.
        nan_high: Whether NaN goes high at each node, as uint8.
        set_of: Number of each node's set, whose numbers go high, as int32; -1 for a threshold.
        sets: All sets' sorted numbers, one set after another, of the input's type.
        bounds: Where each set begins in `sets`, and where the last one ends, as int32.
        columns: Tree and target of each column of values, as int32, ordered by target.
        values: Value of each leaf of the column's tree, column after column, of the input's type.
        combine: Way in which a target's values become one number; without values it is 0.
        steps: Nodes on the longest ways through all trees together; an older plan doesn't say.
    """

    task: ClassVar[Kind] = "arithmetic"

    input: str
    output: str
    features: str
    thresholds: str
    nan_high: str
    set_of: str
    sets: str
    bounds: str
    columns: str
    values: str
    combine: Literal["sum", "minimum", "maximum"]
    steps: int = _UNSAID

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, *self._constants)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.steps

    @cached_property
    def _constants(self) -> tuple[str, ...]:
        nodes = (self.features, self.thresholds, self.nan_high, self.set_of)
        return (*nodes, self.sets, self.bounds, self.columns, self.values)

    def check(self, plan: Plan) -> None:
        """Check sizes and types; what the constants say is checked by `emit` before it writes."""
        given = plan.tensor(self.input)
        if given.dtype not in ("float32", "float64"):
            self.refuse(f"a row of {given.dtype}")
        if not 0 < self.steps <= max(_UNSAID, plan.tensor(self.features).size):
            self.refuse(f"{self.steps} steps through {plan.tensor(self.features).size} nodes")
        self.check_sizes(plan, given.dtype, (self.output, plan.tensor(self.output).size))
        nodes = self.constant(plan, self.features).size
        types = (given.dtype, "uint8", "int32", given.dtype, "int32", "int32", given.dtype)
        self.check_sizes(plan, "int32", (self.features, nodes), (self.set_of, nodes))
        self.check_sizes(plan, given.dtype, (self.thresholds, nodes))
        self.check_sizes(plan, "uint8", (self.nan_high, nodes))
        for name, dtype in zip(self._constants[1:], types, strict=True):
            if self.constant(plan, name).dtype != dtype:
                self.refuse(f"{name!r} must be {dtype}")

    def emit(self, writer: Writer) -> None:
        """Write C.

        Raises:
            IntegrityError: the nodes aren't trees, or speak of columns, sets or values that aren't there.
        """
        nodes = {name: writer.constant(name) for name in self._constants}
        features = nodes[self.features]
        forest = Forest.grow(features < 0)
        splits = self._splits(
            writer.plan.tensor(self.input).size, nodes, np.flatnonzero(features >= 0)
        )
        starts, columns = self._columns(writer.plan.tensor(self.output).size, nodes, forest)
        steps = int((forest.depths + 1).sum())
        if steps > (_MOST_UNSAID if self.steps == _UNSAID else self.steps):
            self.refuse(f"{steps:,} steps through its trees, where the plan says {self.steps:,}")
        kind = C_TYPES[writer.plan.tensor(self.input).dtype]
        writer.line(f"const {kind} *x = {writer.read(self.input)};")
        if not lanes.emit(writer, kind, forest, splits):
            walks.emit(writer, kind, forest, splits)
        self._emit_sums(writer, kind, nodes[self.values], starts, columns)

    def _splits(self, width: int, nodes: dict[str, Array], inner: Array) -> Splits:
        """Return the inner nodes, which were checked for rows of some columns."""
        feature, members = nodes[self.features][inner], nodes[self.set_of][inner]
        bounds, numbers = nodes[self.bounds], nodes[self.sets]
        if feature.max(initial=0) >= width:
            self.refuse(f"column {feature.max()} of a row of {width}")
        if members.max(initial=-1) >= len(bounds) - 1 or members.min(initial=-1) < -1:
            self.refuse("a set that doesn't exist")
        ends = np.concatenate([[0], bounds, [len(numbers)]])
        if (np.diff(ends) < 0).any():
            self.refuse("a set lies outside the numbers of the sets")
        if len(bounds) > _MOST_SETS:
            self.refuse(f"{len(bounds) - 1:,} sets, where {_MOST_SETS - 1:,} are the most")
        sets = tuple(numbers[a:b] for a, b in itertools.pairwise(bounds))
        if any(not np.all(one[1:] > one[:-1]) or np.isnan(one).any() for one in sets):
            self.refuse("the numbers of a set aren't in order")
        threshold = nodes[self.thresholds][inner]
        if np.isnan(threshold).any():
            self.refuse("a threshold is NaN")
        return Splits(feature, threshold, nodes[self.nan_high][inner] != 0, members, sets)

    def _columns(
        self, targets: int, nodes: dict[str, Array], forest: Forest
    ) -> tuple[Array, Array]:
        """Return where each column of values begins, and its tree and one of the targets, which were checked."""
        columns = nodes[self.columns]
        if len(columns) % 2 or len(forest.starts) > MOST_TREES:
            self.refuse(f"{len(forest.starts):,} trees, {len(columns)} numbers of columns")
        columns = columns.reshape(-1, 2)
        tree, target = columns.T
        if tree.min() < 0 or tree.max() >= len(forest.starts):
            self.refuse("a column belongs to a tree that doesn't exist")
        if target.min() < 0 or target.max() >= targets:
            self.refuse("a column belongs to a target that doesn't exist")
        if (np.diff(target) < 0).any():
            self.refuse("the columns aren't ordered by their target")
        ends = np.cumsum(forest.leaves[tree])
        if ends[-1] != len(nodes[self.values]):
            self.refuse(f"{len(nodes[self.values])} values for {ends[-1]} leaves")
        return np.concatenate([[0], ends[:-1]]), columns

    def _emit_sums(
        self, writer: Writer, kind: str, values: Array, starts: Array, columns: Array
    ) -> None:
        """Write the combination, in the columns' order, of the leaves whose numbers are in `at`."""
        targets = writer.plan.tensor(self.output).size
        ends = np.searchsorted(columns[:, 1], np.arange(targets), "right")
        table, begins = writer.table(values), writer.table(starts.astype(np.int32))
        trees, stops = (
            writer.table(one.astype(np.int32))
            for one in (np.ascontiguousarray(columns[:, 0]), ends)
        )
        target = writer.write(self.output)
        writer.line("i32 n = 0;")
        with writer.loops((targets,)):
            writer.line(f"const i32 stop = {stops}[i0];")
            writer.line(f"if (n == stop) {{ {target}[i0] = 0; continue; }}")
            first = (
                "0" if self.combine == "sum" else f"{table}[{begins}[n] + at[place[{trees}[n]]]]"
            )
            writer.line(f"{kind} all = {first};")
            with writer.block("for (; n < stop; n++)"):
                writer.line(f"const {kind} one = {table}[{begins}[n] + at[place[{trees}[n]]]];")
                writer.line(_COMBINE[self.combine])
            writer.line(f"{target}[i0] = all;")
