"""LightGBM's models: trees that are compared and summed in float64.

The semantics are those of `Tree::NumericalDecision` and `Tree::CategoricalDecision` in LightGBM's
include/LightGBM/tree.h, and of `ConvertOutput` in its src/objective/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hasten.core.memory_folder import content_of
from hasten.errors import InputError, told, visible
from hasten.inputs.models.tabular.base import (
    LIMITED,
    Library,
    Tabular,
    both_classes,
    check_survives,
    looked_up,
    marked,
    most_memory,
    named_columns,
)
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.lightgbm_text import checked
from hasten.inputs.models.tabular.own_answers import OwnAnswers, Rows, in_frame
from hasten.inputs.models.tabular.trees import LEQ, MEMBER, Tree, apart, sum_trees
from hasten.inputs.pipeline.rows import Row

_ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold, a float32: numbers up to it are zeros to LightGBM."""
_SIGMOID = ("binary", "multiclassova", "cross_entropy", "xentropy")
_EXP = ("poisson", "gamma", "tweedie")
_RAW = (
    "regression",
    "regression_l1",
    "huber",
    "fair",
    "quantile",
    "mape",
    "lambdarank",
    "rank_xendcg",
)
_LOG1P_EXP = ("cross_entropy_lambda", "xentlambda")
_MOST_LINEAR = 2_000_000
"""Largest number of nodes of trees with linear leaves; ONNX Runtime 1.32 takes some 20 s to open as many."""


_READ = (
    LIMITED
    + """
library, booster, size = ctypes.CDLL(sys.argv[2]), ctypes.c_void_p(), ctypes.c_int64()
library.LGBM_GetLastError.restype = ctypes.c_char_p
read = library.LGBM_BoosterLoadModelFromString(content, ctypes.byref(ctypes.c_int()), ctypes.byref(booster))
none = ctypes.c_int64(0), ctypes.byref(size), None
if read or library.LGBM_BoosterDumpModel(booster, 0, -1, 0, *none):
    sys.stdout.buffer.write(b"\\0" + library.LGBM_GetLastError())
elif size.value > (1 << 20) + 100 * len(content):
    sys.stdout.buffer.write(b"\\0it states more trees, leaves or columns than it has")
"""
)
"""Program that reads a file by LightGBM's C interface alone, and tries to write its trees.

Prints why LightGBM can't, after a zero.
"""


class LightGBM(Library):
    """LightGBM: a `Booster`, an estimator of its scikit-learn interface, or a text file."""

    name = "LightGBM"
    module = "lightgbm"
    suffixes = (".txt",)
    begins = rb"tree\n"

    def read(self, path: Path) -> Any:
        """Read a text file that `save_model` wrote."""
        import lightgbm

        content = content_of(path)
        stated = re.match(rb"tree\nversion=v(\d{1,9})\n", content[:64])
        if stated and int(stated[1]) > int(lightgbm.__version__.partition(".")[0]):
            raise InputError(
                f"{path} was saved by LightGBM {int(stated[1])} or a later one, which is newer than the installed "
                f"{lightgbm.__version__}: pip install 'lightgbm>={int(stated[1])}'"
            )
        text = survived(path, content)
        try:
            return lightgbm.Booster(model_str=text.decode())
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise _refused(path, told(error)) from error

    def describe(self, model: Any) -> Tabular:
        """Describe a `Booster` or an estimator."""
        classes = None
        booster = model
        if hasattr(model, "booster_") or hasattr(model, "_Booster"):
            if getattr(model, "_Booster", None) is None:
                raise InputError(f"this {type(model).__name__} isn't fitted: fit it first")
            booster, classes = model.booster_, getattr(model, "classes_", None)
        dump = booster.dump_model()
        name, settings = _objective(dump)
        count, there = int(dump["num_tree_per_iteration"]), len(dump["tree_info"])
        if not there:
            raise InputError("this LightGBM model has no trees: train it first")
        if not 0 < count <= there:
            raise InputError(
                f"this LightGBM model states {count:,} trees for each iteration, but it has {there:,}: the file is damaged"
            )
        row = _row(dump)
        classified = name in ("binary", "multiclass", "multiclassova")
        labels: tuple[str, ...] = ()
        if classified:
            known = range(max(2, count)) if classes is None else classes
            labels = tuple(str(one) for one in known)
        kinds: dict[int, set[str]] = {}
        sums = _Sums(count, len(row.columns))
        trees = [
            _tree(one["tree_structure"], number % count, sums, kinds)
            for number, one in enumerate(dump["tree_info"])
        ]
        for column, several in kinds.items():
            if "Zero" in several and len(several) > 1:
                raise InputError(
                    f"in LightGBM's column {row.columns[column]!r}, zero means missing for some "
                    "trees only, which isn't supported: train all trees with the same "
                    "zero_as_missing"
                )
        if sums.factors and any("Zero" in several for several in kinds.values()):
            raise InputError(
                "LightGBM's linear_tree with zero_as_missing isn't supported: train without one of them"
            )
        divisor = len(trees) // count if dump.get("average_output") else 1
        answers = partial(_answers, name=name, settings=settings)
        if sums.factors:
            trees = _with_one_number(trees)
            # The product of an infinite number with no factor isn't a number.
            row = replace(row, infinite="refuse")
        write = partial(_write, trees, kinds, sums, divisor)
        return Tabular(
            self.name,
            row,
            labels,
            max(count, len(labels)),
            "float64",
            partial(write, answers),
            scores=partial(write, _sums),
        )

    def own_answers(self, model: Any, described: Tabular) -> OwnAnswers:
        """Return the answers of a live model."""
        booster = getattr(model, "booster_", model)
        sets = [values for values in booster.pandas_categorical or () if values]
        originals = dict(zip((column for column, _ in described.row.words), sets, strict=False))

        def answer(rows: Rows) -> Any:
            return booster.predict(in_frame(described.row, rows, originals))

        return OwnAnswers(answer, 1e-6)


@dataclass
class _Sums:
    """Sums over trees: of leaves, and for `linear_tree` of the factors of columns, which are multiplied then.

    Attributes:
        count: Number of sums of leaves.
        columns: Number of columns.
        factors: Sum of leaves and column of each further sum.
    """

    count: int
    columns: int
    factors: dict[tuple[int, int], int] = field(default_factory=dict)

    def of(self, target: int, column: int) -> int:
        """Return the number of the sum of a column's factors."""
        return self.factors.setdefault((target, column), self.count + len(self.factors))

    def added(self, graph: Graph, rows: str, trees: list[Tree]) -> str:
        """Add the sums of trees, and of what their factors make of the rows."""
        all_sums = sum_trees(graph, rows, trees, self.count + len(self.factors), "float64")
        if not self.factors:
            return all_sums
        present = graph.add("Where", graph.add("IsNaN", rows), np.float64(0), rows)
        made = []
        for target in range(self.count):
            value = graph.add("Gather", all_sums, np.array([target]), axis=1)
            own = [
                (column, place) for (one, column), place in self.factors.items() if one == target
            ]
            if own:
                columns, places = (np.array(each) for each in zip(*own, strict=True))
                factors = graph.add("Gather", all_sums, places, axis=1)
                products = graph.add("Mul", factors, graph.add("Gather", present, columns, axis=1))
                value = graph.add("Add", value, graph.add("ReduceSum", products, np.array([1])))
            made.append(value)
        return graph.add("Concat", *made, axis=1)


def survived(path: Path, content: bytes) -> bytes:
    """Return what LightGBM is to read of a text, which a process of its own has read: it may crash on a damaged one.

    Args:
        path: File that has the text, for messages.
        content: The text.

    Raises:
        InputError: the text is cut short, or LightGBM can't read it.
    """
    import lightgbm

    text = checked(path, content)
    library = lightgbm.basic._LIB._name  # type: ignore[attr-defined]
    most = most_memory(content)
    said = check_survives(path, LightGBM.name, _READ, library, most, content=text)
    _, refused, reason = said.partition("\0")  # before it, there may be warnings
    if refused:
        raise _refused(path, visible(reason.strip())[:200])
    return text


def _refused(path: Path, said: str) -> InputError:
    return InputError(f"{path} can't be read by LightGBM: {said}")


def _objective(dump: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the objective's name and settings, as in "binary sigmoid:1"."""
    name, *words = str(dump.get("objective", "custom")).split() or ["custom"]
    settings = {key: value for key, _, value in (word.partition(":") for word in words)}
    known = (*_SIGMOID, *_EXP, *_RAW, *_LOG1P_EXP, "multiclass", "custom")
    if name not in known:
        raise InputError(
            f"LightGBM's objective {name!r} isn't supported; the supported ones are {', '.join(known)}"
        )
    return name, settings


def _row(dump: dict[str, Any]) -> Row:
    """Return the step that reads a row: columns of pandas's categories take their categories."""
    names = dump["feature_names"]
    columns = named_columns(names, len(names), "Column_")
    sets = dump.get("pandas_categorical") or []
    infos = dump.get("feature_infos", {})
    categorical = [column for column in columns if infos.get(column, {}).get("values")]
    if sets and len(sets) != len(categorical):
        raise InputError(
            f"LightGBM's model has the categories of {len(sets)} columns but splits on "
            f"{len(categorical)} columns with categories, so it isn't clear which categories "
            "belong to which column: train without columns that have only one value"
        )
    words = tuple(
        (column, tuple(map(_word, values)))
        for column, values in zip(categorical, sets, strict=bool(sets))
        if values
    )
    unseen: tuple[tuple[str, Literal["missing", "other"]], ...] = tuple(
        (column, "missing") for column, _ in words
    )
    return Row(columns, "nan", words, "float64", unseen=unseen, whole=True, infinite="allow")


def _word(category: Any) -> str | float:
    """Return a category as a word; true and false are the numbers 1 and 0."""
    if isinstance(category, bool):
        return int(category)
    return category if isinstance(category, (str, int, float)) else str(category)


def _write(
    trees: list[Tree],
    kinds: dict[int, set[str]],
    sums_of: _Sums,
    divisor: int,
    answers: Callable[[Graph, str], str],
    graph: Graph,
    rows: str,
) -> str:
    """Add the trees and what turns their sums into answers.

    Args:
        trees: The trees.
        kinds: Kind of each column's splits: "set", or what they do about missing values.
        sums_of: The sums.
        divisor: Number of iterations that a random forest averages; 1 elsewhere.
        answers: Function that turns sums into answers.
        graph: Graph to add to.
        rows: Name of the rows.
    """
    sets = {column for column, several in kinds.items() if "set" in several}
    zeros = {column for column, several in kinds.items() if "Zero" in several}
    size = sums_of.columns
    rows = looked_up(graph, rows, sets, size, "float64", "truncated")
    if zeros:
        near = graph.add("LessOrEqual", graph.add("Abs", rows), np.float64(_ZERO))
        gone = graph.add("And", near, marked(zeros, size))
        rows = graph.add("Where", gone, np.float64(np.nan), rows)
    sums = sums_of.added(graph, rows, trees)
    if divisor > 1:
        sums = graph.add("Div", sums, np.float64(divisor))
    return answers(graph, sums)


def _sums(graph: Graph, sums: str) -> str:
    """Leave sums as they are."""
    return sums


def _answers(graph: Graph, sums: str, name: str, settings: dict[str, str]) -> str:
    """Turn sums into answers, as the objective does."""
    if name == "multiclass":
        return graph.add("Softmax", sums, axis=1)
    if name in _SIGMOID:
        steepness = float(settings.get("sigmoid", 1))
        if steepness != 1:
            sums = graph.add("Mul", sums, np.float64(steepness))
        scores = graph.add("Sigmoid", sums)
        return both_classes(graph, scores, "float64") if name == "binary" else scores
    if name in _EXP:
        return graph.add("Exp", sums)
    if name in _LOG1P_EXP:
        return graph.add("Log", graph.add("Add", graph.add("Exp", sums), np.float64(1)))
    if name == "regression" and "sqrt" in settings:
        return graph.add("Mul", graph.add("Mul", graph.add("Sign", sums), sums), sums)
    return sums


def _tree(root: dict[str, Any], target: int, sums: _Sums, kinds: dict[int, set[str]]) -> Tree:
    """Read a tree of `dump_model`, and note what each column's splits do about missing values.

    A leaf of `linear_tree` is a number and factors of columns, or another number for rows that miss one of
    these columns, which nodes before it find out.
    """
    tree = Tree(np.empty(0))
    leaves: list[tuple[float, dict[int, float]]] = []
    pending: list[tuple[dict[str, Any], list[int], int]] = [(root, [0], 0)]
    while pending:
        node, parent, place = pending.pop()
        if "split_feature" not in node:
            leaves.append((float(node["leaf_value"]), {}))
            if columns := node.get("leaf_features"):
                for column in columns:
                    made = tree.node(int(column), LEQ, np.inf, False)
                    parent[place], tree.false[made] = made, ~(len(leaves) - 1)
                    parent, place = tree.true, made
                factors = map(float, node["leaf_coeff"])
                leaves.append((float(node["leaf_const"]), dict(zip(columns, factors, strict=True))))
            elif "leaf_const" in node:
                leaves[-1] = float(node["leaf_const"]), {}
            parent[place] = ~(len(leaves) - 1)
            continue
        column = int(node["split_feature"])
        if node["decision_type"] == "==":
            made = tree.node(column, MEMBER, 0.0, False)
            tree.sets[made] = [int(one) for one in node["threshold"].split("||")]
            kinds.setdefault(column, set()).add("set")
        else:
            threshold, missing = _threshold(float(node["threshold"])), node["missing_type"]
            # A column that had no missing values in training takes them as zeros.
            left = threshold >= 0 if missing == "None" else bool(node["default_left"])
            made = tree.node(column, LEQ, threshold, left)
            kinds.setdefault(column, set()).add(missing)
        parent[place] = made
        pending += [(node["right_child"], tree.false, made), (node["left_child"], tree.true, made)]
    used = sorted({column for _, factors in leaves for column in factors})
    tree.targets = (target, *(sums.of(target, column) for column in used))
    tree.values = np.array(
        [[value, *(factors.get(column, 0.0) for column in used)] for value, factors in leaves]
    )
    return tree


def _with_one_number(trees: list[Tree]) -> list[Tree]:
    """Return trees whose leaves hold one number each: a tree for each column that has a factor in some leaf.

    Raises:
        InputError: they have more nodes than a runtime opens in reasonable time.
    """
    found: list[Tree] = []
    nodes = 0
    for tree in trees:
        found += (parts := apart(tree))
        nodes += sum(len(part.columns) for part in parts)
        if nodes > _MOST_LINEAR:
            raise InputError(
                f"this model with LightGBM's linear_tree has more than {_MOST_LINEAR:,} nodes in ONNX, since a "
                "tree is repeated for each column that its leaves multiply: train fewer or smaller trees, or "
                "without linear_tree"
            )
    return found


def _threshold(given: float) -> float:
    """Return the threshold that sends numbers as near to zero as LightGBM's zeros where zero goes.

    LightGBM drops such numbers from a row before its trees see it: see
    `RowPairFunctionFromDenseMatric` in its src/c_api.cpp.
    """
    if -_ZERO <= given < 0:
        return float(np.nextafter(-_ZERO, -1))
    return max(given, _ZERO) if given >= 0 else given
