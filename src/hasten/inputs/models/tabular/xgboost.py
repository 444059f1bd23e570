"""XGBoost's models: trees that are compared and summed in float32, and sums of products in float32.

The semantics are those of XGBoost's src/predictor/, src/common/categorical.h and src/gbm/gblinear.cc, and of
`PredTransform` and `ProbToMargin` in its src/objective/. The JSON is that of its document "Introduction to Model IO".
"""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.memory_folder import content_of
from hasten.core.tensors import Array
from hasten.errors import InputError, visible
from hasten.inputs.models.tabular.base import (
    LIMITED,
    Library,
    Tabular,
    both_classes,
    check_survives,
    looked_up,
    most_memory,
    named_columns,
)
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.own_answers import OwnAnswers, Rows, in_frame
from hasten.inputs.models.tabular.trees import (
    LT,
    MEMBER,
    Tree,
    constant,
    sum_trees,
    wrong_children,
)
from hasten.inputs.pipeline.rows import Row

_CLASSES = ("binary:logistic", "binary:hinge", "multi:softprob", "multi:softmax")
_SIGMOID = ("binary:logistic", "reg:logistic")
_EXP = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft")
_RAW = (
    *("reg:squarederror", "reg:linear", "reg:squaredlogerror", "reg:absoluteerror"),
    *("reg:pseudohubererror", "reg:quantileerror", "binary:logitraw"),
    *("rank:pairwise", "rank:ndcg", "rank:map"),
)
_ONE = np.float32(1)


_READ = (
    LIMITED
    + """
library, booster = ctypes.CDLL(sys.argv[2]), ctypes.c_void_p()
size, text = ctypes.c_uint64(), ctypes.c_void_p()
library.XGBoosterCreate(None, ctypes.c_uint64(0), ctypes.byref(booster))
saved = ctypes.byref(size), ctypes.byref(text)
if (
    library.XGBoosterLoadModelFromBuffer(booster, content, ctypes.c_uint64(len(content)))
    or library.XGBoosterSaveModelToBuffer(booster, b'{"format": "json"}', *saved)
):
    library.XGBGetLastError.restype = ctypes.c_char_p
    sys.stdout.buffer.write(library.XGBGetLastError())
"""
)
"""Program that reads a file by XGBoost's C interface alone, and writes it: its Python package takes seconds to import.

Prints why XGBoost refuses the file.
"""
_VERSION = re.compile(
    rb'"version"\s*:\s*\[\s*(\d{1,4})\s*,\s*(\d{1,4})'
    rb"|version\[#(?:[iU].|I.{2}|l.{4}|L.{8})[iU](.)[iU](.)",
    re.DOTALL,
)
"""Version of XGBoost in a file in JSON, in digits, or in UBJSON, in bytes."""


class XGBoost(Library):
    """XGBoost: a `Booster`, an estimator of its scikit-learn interface, or a .json or .ubj file."""

    name = "XGBoost"
    module = "xgboost"
    suffixes = (".json", ".ubj")
    begins = (
        rb'\{\s*("version"\s*:\s*\[[\d,\s]*\]\s*,\s*)?"learner"'
        rb"|\{([iU].|I.{2}|l.{4}|L.{8})(learner|version)"
    )
    extra = "xgboost"

    def read(self, path: Path) -> Any:
        """Read a file in JSON or UBJSON that `save_model` wrote."""
        import xgboost

        content = content_of(path)
        if len(content) < 2:
            raise InputError(f"{path} is empty")
        _check_version(path, content)
        # It may crash on a damaged file.
        (library, *_) = xgboost.libpath.find_lib_path()
        if said := check_survives(
            path, self.name, _READ, library, most_memory(content), content=content
        ):
            raise _refused(path, said)
        try:
            return xgboost.Booster(model_file=bytearray(content))  # what was checked
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise _refused(path, str(error)) from error

    def describe(self, model: Any) -> Tabular:
        """Describe a `Booster` or an estimator."""
        booster, best, missing, classes = model, None, np.nan, None
        if hasattr(model, "get_booster"):
            if not model.__sklearn_is_fitted__():
                raise InputError(f"this {type(model).__name__} isn't fitted: fit it first")
            booster, missing = model.get_booster(), model.missing
            best = booster.attr("best_iteration")
            classes = getattr(model, "classes_", None)
        learner = json.loads(bytes(booster.save_raw("json")))["learner"]
        name = str(learner["objective"]["name"])
        if name not in {*_CLASSES, *_SIGMOID, *_EXP, *_RAW}:
            raise InputError(f"XGBoost's objective {name!r} isn't supported")
        facts = learner["learner_model_param"]
        groups = max(1, int(facts["num_class"]), int(facts.get("num_target", 1)))
        labels: tuple[str, ...] = ()
        if name in _CLASSES:
            known = range(max(2, groups)) if classes is None else classes
            labels = tuple(str(one) for one in known)
        iterations = None if best is None else int(best) + 1
        write = partial(_write, learner, groups, iterations, missing)
        return Tabular(self.name, _row(learner), labels, max(groups, len(labels)), "float32", write)

    def own_answers(self, model: Any, described: Tabular) -> OwnAnswers:
        """Return the answers of a live model, which sums in float32."""
        import xgboost

        booster, missing, last = model, np.nan, 0
        if hasattr(model, "get_booster"):
            booster, missing = model.get_booster(), model.missing
            best = booster.attr("best_iteration")
            last = 0 if best is None else int(best) + 1

        def answer(rows: Rows) -> Any:
            given = in_frame(described.row, rows)
            known: dict[str, Any] = {}
            if isinstance(given, np.ndarray):
                known = {
                    "feature_names": booster.feature_names,
                    "feature_types": booster.feature_types,
                }
            data = xgboost.DMatrix(given, missing=missing, enable_categorical=True, **known)
            found = booster.predict(data, iteration_range=(0, last), strict_shape=True)
            if described.width > 2 and found.shape[1] == 1:  # the number of a class
                sums = booster.predict(data, iteration_range=(0, last), output_margin=True)
                powers = np.exp(sums - sums.max(axis=1, keepdims=True))
                return powers / powers.sum(axis=1, keepdims=True)
            return found

        return OwnAnswers(answer, 1e-3)


def _check_version(path: Path, content: bytes) -> None:
    """Refuse a file that a newer version wrote: XGBoost reads what it knows of it, and says nothing of the rest."""
    import xgboost

    stated = list(_VERSION.finditer(content))
    if not stated:
        return
    last = stated[-1]
    newest = tuple(map(int, last.group(1, 2))) if last[1] else tuple(map(ord, last.group(3, 4)))
    here = tuple(int(part) for part in xgboost.__version__.split(".")[:2])
    if newest > here:
        raise InputError(
            f"{path} was saved by XGBoost {newest[0]}.{newest[1]}, which is newer than the installed "
            f"{xgboost.__version__}: pip install 'xgboost>={newest[0]}.{newest[1]}'"
        )


def _refused(path: Path, said: str) -> InputError:
    """Return the error for a file that XGBoost refuses with a message, often with a trace of calls."""
    import xgboost

    lines = said.strip().splitlines() or ["no reason given"]
    first = next((line for line in lines if "Error" in line), lines[0])
    return InputError(
        f"{path} can't be read by XGBoost {xgboost.__version__}: it is cut short, its "
        f"version is too new, or it isn't an XGBoost model ({visible(first.strip()):.200})"
    )


def _row(learner: dict[str, Any]) -> Row:
    """Return the step that reads a row: columns whose categories are known take them."""
    count = int(learner["learner_model_param"]["num_feature"])
    columns = named_columns(learner.get("feature_names") or None, count, "f")
    linear = learner["gradient_booster"]["name"] == "gblinear"
    cats = [] if linear else _booster(learner)["model"].get("cats", {}).get("enc", [])
    words = []
    for column, encoded in zip(columns, cats, strict=False):
        values = encoded.get("values", [])
        offsets = encoded.get("offsets")
        # XGBoost 3.2 counts letters and stores bytes, so words that aren't ASCII are cut there. Such a
        # column takes the categories' numbers.
        if values and (not offsets or min(values) >= 0):
            words.append((column, tuple(_texts(values, offsets) if offsets else values)))
    return Row(columns, "nan", tuple(words), whole=True)


def _texts(values: list[int], offsets: list[int]) -> list[str]:
    """Return texts that are stored as bytes, one after the other."""
    whole = np.array(values).astype(np.uint8).tobytes()
    return [whole[start:end].decode() for start, end in pairwise(offsets)]


def _booster(learner: dict[str, Any]) -> dict[str, Any]:
    """Return the trees' record; that of dart holds it one level deeper."""
    found: dict[str, Any] = learner["gradient_booster"]
    if found["name"] not in ("gbtree", "dart"):
        raise InputError(
            f"XGBoost's booster {found['name']!r} isn't supported; the supported ones are gbtree, dart and gblinear"
        )
    return found["gbtree"] if found["name"] == "dart" else found


def _write(
    learner: dict[str, Any],
    groups: int,
    iterations: int | None,
    missing: float,
    graph: Graph,
    rows: str,
) -> str:
    """Add the trees or the products, and what turns their sums into answers."""
    name = learner["objective"]["name"]
    begin = _margins(str(learner["learner_model_param"]["base_score"]), groups, name)
    if missing is not None and not np.isnan(missing):
        gone = graph.add("Equal", rows, np.float32(missing))
        rows = graph.add("Where", gone, np.float32(np.nan), rows)
    if learner["gradient_booster"]["name"] == "gblinear":
        sums = _products(learner, begin, graph, rows)
    else:
        sums = _trees(learner, begin, iterations, graph, rows)
    if name in _SIGMOID:
        scores = graph.add("Sigmoid", sums)
        return both_classes(graph, scores, "float32") if name in _CLASSES else scores
    if name.startswith("multi:"):
        return graph.add("Softmax", sums, axis=1)
    if name in _EXP:
        return graph.add("Exp", sums)
    if name == "binary:hinge":
        above = graph.add("Greater", sums, np.float32(0))
        return both_classes(graph, graph.cast(above, "float32", "bool"), "float32")
    return sums


def _products(learner: dict[str, Any], begin: Array, graph: Graph, rows: str) -> str:
    """Add the sums of gblinear: of products with the values that aren't missing.

    XGBoost 3.2 begins each sum with the first of its start values.
    """
    weights = np.array(learner["gradient_booster"]["model"]["weights"], np.float32)
    count = int(learner["learner_model_param"]["num_feature"])
    weights = weights.reshape(count + 1, len(begin))  # the last row is added to each sum
    present = graph.add("Where", graph.add("IsNaN", rows), np.float32(0), rows)
    return graph.add("Add", graph.add("MatMul", present, weights[:-1]), weights[-1] + begin[0])


def _trees(
    learner: dict[str, Any], begin: Array, iterations: int | None, graph: Graph, rows: str
) -> str:
    """Add the sums of trees."""
    model, groups = _booster(learner)["model"], len(begin)
    kept = len(model["trees"])
    if iterations is not None:
        each = groups * int(model["gbtree_model_param"].get("num_parallel_tree", 1))
        kept = min(kept, iterations * max(1, each))
    scales = learner["gradient_booster"].get("weight_drop") or [1.0] * kept
    size = int(learner["learner_model_param"]["num_feature"])
    trees = [constant(float(value), group) for group, value in enumerate(begin) if value]
    trees += [
        _tree(tree, int(group), scale, size)
        for tree, group, scale in zip(
            model["trees"][:kept], model["tree_info"][:kept], scales[:kept], strict=True
        )
    ]
    sets = {tree.columns[place] for tree in trees for place in tree.sets}
    rows = looked_up(graph, rows, sets, size, "float32", "floor")
    return sum_trees(graph, rows, trees or [constant(0.0)], groups, "float32")


def _margins(base: str, groups: int, name: str) -> Array:
    """Return the sums' start values: the objective's inverse of base_score, in float32."""
    values = np.array(json.loads(base if base.startswith("[") else f"[{base}]"), np.float32)
    values = np.broadcast_to(values, (groups,)) if len(values) == 1 else values
    if name in _SIGMOID:
        return np.asarray(-np.log(_ONE / values - _ONE), np.float32)
    if name in _EXP:
        return np.asarray(np.log(values), np.float32)
    return np.asarray(values, np.float32)


def _tree(tree: dict[str, Any], group: int, scale: float, size: int) -> Tree:
    """Read a tree; a category in a node's set goes right, as every number does that isn't below.

    Args:
        tree: Its record.
        group: Number of the sum that its leaves are added to.
        scale: Factor of its leaves.
        size: Number of the columns.

    Raises:
        InputError: its nodes aren't a tree.
    """
    if int(tree["tree_param"].get("size_leaf_vector") or 1) > 1:
        raise InputError(
            "XGBoost's multi_output_tree isn't supported: train with one_output_per_tree"
        )
    sets = _sets(tree)
    left, right = tree["left_children"], tree["right_children"]
    inner = [place for place, child in enumerate(left) if child != -1]
    leaves = [place for place, child in enumerate(left) if child == -1]
    children = np.array([side[place] for side in (left, right) for place in inner], np.int64)
    columns = np.array([tree["split_indices"][place] for place in inner], np.int64)
    # Some nodes may be nobody's child: those that pruning deleted.
    known = np.intersect1d(children, np.arange(1, len(left)))
    wrong = wrong_children(children, known, columns, size)
    if not left or (inner and inner[0] != 0):
        wrong = "has no root"
    if wrong:
        raise InputError(f"the XGBoost model is damaged: one of its trees {wrong}")
    at = {place: number for number, place in enumerate(inner)}
    at |= {place: ~number for number, place in enumerate(leaves)}
    conditions = np.array(tree["split_conditions"], np.float32)
    made = Tree((conditions[leaves] * np.float32(scale))[:, None], (group,))
    for place in inner:
        default = bool(tree["default_left"][place])
        one, other = at[left[place]], at[right[place]]
        if place in sets:
            node = made.node(tree["split_indices"][place], MEMBER, 0.0, not default)
            made.sets[node] = sets[place]
            one, other = other, one
        else:
            node = made.node(tree["split_indices"][place], LT, float(conditions[place]), default)
        made.true[node], made.false[node] = one, other
    return made


def _sets(tree: dict[str, Any]) -> dict[int, list[int]]:
    """Return the categories of each node that splits by them."""
    categories = tree.get("categories", [])
    return {
        node: categories[start : start + size]
        for node, start, size in zip(
            tree.get("categories_nodes", []),
            tree.get("categories_segments", []),
            tree.get("categories_sizes", []),
            strict=True,
        )
    }
