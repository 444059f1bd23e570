"""CatBoost's models: trees over float32 borders, summed in float64.

The semantics are those of CatBoost's libs/model/: a value goes to the right where it is above the
border, and `nan_value_treatment` says what NaN does: "AsTrue" that it is above all borders, and "AsFalse"
that it is above none, as "AsIs" does too, for a feature that had no NaN in training.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hasten.core.memory_folder import content_of
from hasten.core.target import Target
from hasten.errors import InputError, told
from hasten.inputs.models.tabular.base import Library, Tabular, both_classes, named_columns
from hasten.inputs.models.tabular.catboost_categories import Categories, as_border
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.own_answers import OwnAnswers, Rows
from hasten.inputs.models.tabular.trees import GT, Tree, sum_trees
from hasten.inputs.pipeline.rows import Row

_BINARY = ("Logloss", "CrossEntropy")
_CLASSES = (*_BINARY, "MultiClass", "MultiClassOneVsAll")
_TARGETS = ("MultiRMSE",)
"""Loss functions over several labels of a row."""
_EXP = ("Poisson", "Tweedie", "LogLinQuantile")
_RAW = (
    *("RMSE", "MAE", "Quantile", "MAPE", "Huber", "Expectile", "Lq", *_TARGETS, "MultiQuantile"),
    *(
        "YetiRank",
        "YetiRankPairwise",
        "PairLogit",
        "PairLogitPairwise",
        "QueryRMSE",
        "QuerySoftMax",
    ),
)
_MOST_LEVELS = 16
"""Largest number of levels of a tree with one split a level, as in CatBoost itself."""
_BYTES_PER_BYTE, _BYTES_PER_BRACKET = 7, 72
"""Memory that reading a file in JSON takes: for each byte of it, and more for each list and object."""
_OTHERS = ("text_features", "embedding_features")


class CatBoost(Library):
    """CatBoost: a `CatBoost`, an estimator of its scikit-learn interface, or a file in its own format or JSON."""

    name = "CatBoost"
    module = "catboost"
    suffixes = (".cbm",)
    begins = rb'CBM1|\{\s*"(ctr_data|features_info|model_info|oblivious_trees|scale_and_bias)"'

    def read(self, path: Path) -> Any:
        """Read a file that `save_model` wrote: one in JSON as the record that it is."""
        with path.open("rb") as file:
            begin = file.read(1)
        if begin == b"{":
            return _read_json(path, str(path))
        import catboost

        content = content_of(path)  # once: what is checked is what is loaded
        stated = int.from_bytes(content[4:8], "little")  # CatBoost takes as much memory
        if content[:4] == b"CBM1" and stated > len(content) - 8:
            raise InputError(
                f"{path} is cut short or damaged: its model has {stated:,} bytes, which is more than the file"
            )
        try:
            return catboost.CatBoost().load_model(blob=content)
        except (catboost.CatBoostError, ValueError) as error:
            raise InputError(
                f"{path} can't be read by CatBoost {catboost.__version__}: {told(error)}"
            ) from error

    def describe(self, model: Any) -> Tabular:
        """Describe a `CatBoost`, an estimator, or the record of a file in JSON."""
        record = model if isinstance(model, dict) else _record_of(model)
        features = record["features_info"]
        for kind in _OTHERS:
            if features.get(kind):
                raise InputError(
                    f"CatBoost's {kind.replace('_', ' ')} aren't supported: train without them, or make numbers "
                    "or categories of them before CatBoost"
                )
        loss = str(_loss(record))
        if loss not in (*_CLASSES, *_EXP, *_RAW):
            raise InputError(f"CatBoost's loss function {loss!r:.80} isn't supported")
        floats = features.get("float_features") or []
        words = features.get("categorical_features") or []
        if isinstance(model, dict):
            every = sorted((*floats, *words), key=lambda one: int(one["flat_feature_index"]))
            if [one["flat_feature_index"] for one in every] != list(range(len(every))):
                raise InputError(
                    "the columns of this CatBoost model aren't numbered from 0: the file is damaged"
                )
            names, classes = (
                [one["feature_id"] or str(place) for place, one in enumerate(every)],
                _classes(record),
            )
        else:
            names, classes = model.feature_names_, _classes_of(model)
        columns = named_columns(names, len(names), "f")
        biases = record.get("scale_and_bias", [1, [0]])[1]
        count = len(biases) if isinstance(biases, list) else 1
        labels: tuple[str, ...] = ()
        if loss in _CLASSES:
            known = classes if len(classes) else range(max(2, count))
            labels = tuple(str(one) for one in known)
        hashed = tuple(columns[one["flat_feature_index"]] for one in words)
        dtype: Literal["float32", "float64"] = "float64" if hashed else "float32"
        row = Row(columns, "nan", (), dtype, whole=True, infinite="allow", hashed=hashed)
        width = max(count, len(labels))
        return Tabular(self.name, row, labels, width, "float64", partial(_write, record, loss))

    def own_answers(self, model: Any, described: Tabular) -> OwnAnswers | None:
        """Return the answers of a live model; a file in JSON is never given to CatBoost."""
        if isinstance(model, dict):
            return None
        kind: Any = next(one for one in type(model).__mro__ if one.__name__ == "CatBoost")

        def answer(rows: Rows) -> Any:
            loss = _loss(_record_of(model))
            asked = "Exponent" if loss in _EXP else "RawFormulaVal"
            asked = "Probability" if loss in _CLASSES else asked
            known = [[np.nan if value is None else value for value in row] for row in rows]
            given = known if described.row.hashed else np.array(known, np.float64)
            return kind.predict(model, given, prediction_type=asked)

        return OwnAnswers(answer, 1e-6)


def _read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the record of a model's file in JSON.

    Args:
        path: The file.
        what: Words for it in messages.
    """
    most = Target.host().memory_bytes
    _check_memory(what, path.stat().st_size * _BYTES_PER_BYTE, most)
    content = content_of(path)
    taken = len(content) * _BYTES_PER_BYTE
    taken += _BYTES_PER_BRACKET * (content.count(b"{") + content.count(b"["))
    _check_memory(what, taken, most)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{what} isn't a whole model of CatBoost in JSON: {told(error)}"
        ) from error
    assert isinstance(record, dict)  # it begins with a brace
    return record


def _check_memory(what: str, taken_bytes: int, most_bytes: int) -> None:
    """Refuse a file in JSON that takes more memory than there is."""
    if taken_bytes > most_bytes:
        raise InputError(
            f"{what} may take {taken_bytes / (1 << 30):.2g} GiB of memory to read, and this machine has "
            f"{most_bytes / (1 << 30):.2g} GiB: read it on a machine with more, or train a smaller model (with "
            "categories: a smaller max_ctr_complexity, or a larger model_size_reg)"
        )


def _classes_of(model: Any) -> list[Any]:
    """Return the classes of a `CatBoost`; none for one that doesn't classify."""
    import catboost

    try:
        return list(getattr(model, "classes_", ()))
    except catboost.CatBoostError as error:
        raise InputError(
            f"the classes of this CatBoost model can't be read: {told(error)}"
        ) from error


def _record_of(model: Any) -> dict[str, Any]:
    """Return the record of a live model, as its file in JSON has it."""
    if not model.is_fitted():
        raise InputError(f"this {type(model).__name__} isn't fitted: fit it first")
    with tempfile.TemporaryDirectory(prefix="hasten-catboost-") as folder:
        path = Path(folder) / "model.json"
        try:
            model.save_model(str(path), format="json")
        except Exception as error:  # CatBoostError, which isn't imported for a live model
            raise InputError(f"CatBoost can't export this model: {told(error)}") from error
        return _read_json(path, "this CatBoost model as JSON")


def _classes(record: dict[str, Any]) -> list[Any]:
    """Return the classes that a record states, as a live model has them."""
    stated = record["model_info"].get("class_params", {})
    classes = stated.get("class_names", [])
    return list(map(float, classes)) if stated.get("class_label_type") == "Float" else list(classes)


def _loss(record: dict[str, Any]) -> str:
    """Return the name of the loss function, without its settings."""
    params = record["model_info"].get("params")
    if params is None:
        raise InputError(
            "this CatBoost model doesn't state how it was trained, as a sum of models (sum_models) doesn't: give a "
            "model as its training left it"
        )
    loss = params["loss_function"]
    return str(loss["type"] if isinstance(loss, dict) else loss).partition(":")[0]


def _write(record: dict[str, Any], loss: str, graph: Graph, rows: str) -> str:
    """Add the trees and what turns their sums into answers."""
    scale, biases = record.get("scale_and_bias", [1, [0]])
    bias = np.atleast_1d(np.asarray(biases, np.float64))
    columns = _Columns.of(record, len(bias) if loss in _TARGETS else 1)
    if "oblivious_trees" in record:
        trees = [_oblivious(one, len(bias), columns) for one in record["oblivious_trees"]]
    else:
        trees = [_nested(one, len(bias), columns) for one in record["trees"]]
    for name, values in (
        ("scale_and_bias", np.append(bias, np.float64(scale))),
        *(("a leaf", tree.values) for tree in trees),
        *(("a border", np.array(tree.splits)) for tree in trees),
    ):
        if not np.isfinite(values).all():
            raise InputError(
                f"this CatBoost model gives no answers, since {name} isn't a finite number: its training went wrong, "
                "or its file is damaged"
            )
    if columns.categories:
        rows = columns.categories.write(graph, rows)
    else:
        rows = graph.cast(rows, "float64", "float32")
    sums = sum_trees(graph, rows, trees, len(bias), "float64")
    if scale != 1:
        sums = graph.add("Mul", sums, np.float64(scale))
    if bias.any():
        sums = graph.add("Add", sums, bias)
    if loss in _BINARY:
        return both_classes(graph, graph.add("Sigmoid", sums), "float64")
    if loss == "MultiClass":
        return graph.add("Softmax", sums, axis=1)
    if loss == "MultiClassOneVsAll":
        return graph.add("Sigmoid", sums)
    return graph.add("Exp", sums) if loss in _EXP else sums


@dataclass(frozen=True)
class _Columns:
    """Columns that trees read.

    Attributes:
        numbers: Column of each feature with numbers, by the feature.
        missing: Whether NaN is above all borders, by the feature.
        categories: The other columns; None where there are none.
    """

    numbers: dict[int, int]
    missing: dict[int, bool]
    categories: Categories | None

    @classmethod
    def of(cls, record: dict[str, Any], targets: int) -> _Columns:
        """Return the columns of a model with some number of labels for each row of the training."""
        features = record["features_info"]
        floats = features.get("float_features") or []
        words = features.get("categorical_features")
        categories = Categories(record, targets=targets) if words else None
        places = {one["feature_index"]: int(one["flat_feature_index"]) for one in floats}
        if categories:  # which begin with the numbers alone
            places = {feature: place for place, feature in enumerate(places)}
        missing = {one["feature_index"]: one["nan_value_treatment"] == "AsTrue" for one in floats}
        return cls(places, missing, categories)

    def split(self, tree: Tree, split: dict[str, Any]) -> int:
        """Add a node for a split."""
        kind = split["split_type"]
        if kind == "FloatFeature":
            feature = split["float_feature_index"]
            border = as_border(split["border"])
            return tree.node(self.numbers[feature], GT, border, self.missing[feature])
        if self.categories is None or kind not in ("OneHotFeature", "OnlineCtr"):
            raise InputError(f"CatBoost's split {kind!r:.40} isn't supported")
        column, border = self.categories.column(split)
        return tree.node(column, GT, border, False)


def _oblivious(record: dict[str, Any], targets: int, columns: _Columns) -> Tree:
    """Read a tree whose levels have one split each: split i sets bit i of the leaf's place."""
    splits = record["splits"] or []
    values = np.array(record["leaf_values"], np.float64).reshape(-1, targets)
    if len(splits) > _MOST_LEVELS or len(values) != 1 << len(splits):
        raise InputError(
            f"a tree of CatBoost has {len(splits)} levels, but {len(values)} leaves: the file is damaged"
        )
    tree = Tree(values, tuple(range(targets)))

    def grow(level: int, leaf: int) -> int:
        if level == len(splits):
            return ~leaf
        node = columns.split(tree, splits[level])
        tree.true[node] = grow(level + 1, leaf | 1 << level)
        tree.false[node] = grow(level + 1, leaf)
        return node

    grow(0, 0)
    return tree


def _nested(record: dict[str, Any], targets: int, columns: _Columns) -> Tree:
    """Read a tree of nodes within nodes, as Lossguide and Depthwise grow them."""
    tree = Tree(np.empty(0), tuple(range(targets)))
    leaves: list[Any] = []
    pending: list[tuple[dict[str, Any], list[int], int]] = [(record, [0], 0)]
    while pending:
        node, parent, place = pending.pop()
        if "split" not in node:
            leaves.append(node["value"])
            parent[place] = ~(len(leaves) - 1)
            continue
        parent[place] = made = columns.split(tree, node["split"])
        pending += [(node["left"], tree.false, made), (node["right"], tree.true, made)]
    tree.values = np.array(leaves, np.float64).reshape(-1, targets)
    return tree
