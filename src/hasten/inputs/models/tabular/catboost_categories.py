"""CatBoost's own categories: equal to a word, and statistics of the training's answers by word, in ONNX.

The semantics are those of CatBoost's libs/model/: `static_ctr_provider.cpp`, `online_ctr.h` and `hash.h`. A
category is the signed low 32 bits of its text's hash, which the step `row` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.lookups import Table, check_size, look_up

_FACTOR = 0x4906BA494954CB65
"""Factor of the hash that combines the parts of a key."""
_NO_KEY = np.uint64((1 << 64) - 1)
"""Key by which CatBoost's tables mark a place without one."""
_MOST_PARTS = 64
"""Largest number of parts of a key: a tree has up to 16 splits and a combination up to 16 categories."""
_MOST_ELEMENTS = 1 << 22
"""Largest number of parts of all keys together."""
_MEANS = ("BinarizedTargetMeanValue", "FloatTargetMeanValue")
_COUNTS = ("Counter", "FeatureFreq")
_CLASSES = ("Borders", "Buckets")

_MOST_COLUMNS = 100_000
"""Largest number of columns that trees read."""
_Part = tuple[str, int, float]
"""Kind of a part, number of its feature, and the border or the hash that it is compared with."""


class Categories:
    """Columns that trees read: numbers, then bits for words, then statistics.

    Attributes:
        numbers: Place of each feature with numbers in the row, by the feature.
        words: Place of each feature with categories in the row, by the feature.
    """

    def __init__(self, record: Mapping[str, Any], *, targets: int) -> None:
        """Read what a model's record says of its features.

        Args:
            record: Record of the model.
            targets: Number of labels that a row of the training has.

        Raises:
            InputError: its parts don't fit each other, or a part isn't supported.
        """
        _check_told_apart(record, targets)
        features = record["features_info"]
        floats, words = features.get("float_features") or [], features["categorical_features"]
        self._statistics: Sequence[Mapping[str, Any]] = features.get("ctrs") or []
        self._tables: Mapping[str, Any] = record.get("ctr_data") or {}
        self.numbers = {one["feature_index"]: int(one["flat_feature_index"]) for one in floats}
        self.words = {one["feature_index"]: int(one["flat_feature_index"]) for one in words}
        self._missing = {
            one["feature_index"]: one["nan_value_treatment"] == "AsTrue" for one in floats
        }
        self._bits: dict[tuple[int, float], int] = {}
        for one in words:
            for value in one.get("values") or ():
                self._bit(one["feature_index"], value)
        # Splits are numbered: those of numbers, of words, and of statistics.
        self._first = sum(len(one["borders"] or ()) for one in floats)
        self._first += sum(len(one.get("values") or ()) for one in words)
        self._borders = [
            (number, as_border(border))
            for number, one in enumerate(self._statistics)
            for border in one["borders"] or ()
        ]
        self._projections: dict[tuple[_Part, ...], list[int]] = {}
        for number, one in enumerate(self._statistics):
            self._projections.setdefault(self._parts(one["elements"]), []).append(number)
        order = [number for several in self._projections.values() for number in several]
        self._order = {number: place for place, number in enumerate(order)}
        self._width = len(self.numbers) + len(self._bits) + len(order)
        if self._width > _MOST_COLUMNS:
            raise InputError(
                f"CatBoost's trees read {self._width:,} columns: at most {_MOST_COLUMNS:,} are supported"
            )

    def _bit(self, feature: int, value: Any) -> int:
        """Return the number of the bit for a word."""
        return self._bits.setdefault((self._word(feature), float(int(value))), len(self._bits))

    def _word(self, feature: Any) -> int:
        if feature not in self.words:
            raise _damaged(f"it has no categorical feature {feature!r:.20}")
        return int(feature)

    def column(self, split: Mapping[str, Any]) -> tuple[int, float]:
        """Return the column and the border of a split of a word or a statistic.

        Raises:
            InputError: there is none such.
        """
        if split["split_type"] == "OneHotFeature":
            key = self._word(split["cat_feature_index"]), float(int(split["value"]))
            if key not in self._bits:
                raise _damaged("a split asks for a word that isn't among its feature's")
            return len(self.numbers) + self._bits[key], 0.5
        number = split["split_index"] - self._first
        found = self._borders[number] if 0 <= number < len(self._borders) else (0, np.nan)
        if found[1] != as_border(split["border"]):
            raise _damaged(f"its split {number + self._first} isn't one of a statistic")
        return len(self.numbers) + len(self._bits) + self._order[found[0]], found[1]

    def _parts(self, elements: Sequence[Mapping[str, Any]]) -> tuple[_Part, ...]:
        """Return the parts of a key, in their order."""
        if not 0 < len(elements) <= _MOST_PARTS:
            raise _damaged(f"a statistic has {len(elements)} parts")
        parts: list[_Part] = []
        for one in elements:
            kind = one["combination_element"]
            if kind == "float_feature":
                feature = one["float_feature_index"]
                if feature not in self.numbers:
                    raise _damaged(f"it has no feature {feature!r:.20} with numbers")
                parts.append(("above", feature, as_border(one["border"])))
                continue
            feature = self._word(one["cat_feature_index"])
            if kind == "cat_feature_value":
                parts.append(("word", feature, 0.0))
            elif kind == "cat_feature_exact_value":
                self._bit(feature, one["value"])
                parts.append(("equal", feature, float(int(one["value"]))))
            else:
                raise InputError(f"CatBoost's part {kind!r:.40} of a statistic isn't supported")
        return tuple(parts)

    def write(self, graph: Graph, rows: str) -> str:
        """Add the columns that trees read, float64.

        Args:
            graph: Graph to add to.
            rows: Name of the rows, float64.
        """
        columns, numbers, bits = [], "", ""
        if self.numbers:
            taken = _taken(graph, rows, list(self.numbers.values()))
            numbers = graph.cast(taken, "float32", "float64")
            columns.append(numbers)
        if self._bits:
            words = _taken(graph, rows, [self.words[feature] for feature, _ in self._bits])
            bits = graph.add("Equal", words, np.array([value for _, value in self._bits]))
            columns.append(graph.cast(bits, "float32", "bool"))
        if self._projections:
            keys = self._keys(graph, rows, numbers, bits)
            columns.append(look_up(graph, keys, self._filled()))
        if not columns:
            raise _damaged("it has no columns")
        joined = graph.add("Concat", *columns, axis=1) if len(columns) > 1 else columns[0]
        return graph.cast(joined, "float64", "float32")

    def _keys(self, graph: Graph, rows: str, numbers: str, bits: str) -> str:
        """Add the key of each projection, int64 of shape `[batch, projections]`.

        A key is the sum of its parts times powers of one factor, modulo 2 ** 64.
        """
        every = list(dict.fromkeys(part for parts in self._projections for part in parts))
        every.sort(key=lambda part: ("word", "above", "equal").index(part[0]))
        values = []
        if words := [self.words[feature] for kind, feature, _ in every if kind == "word"]:
            values.append(graph.cast(_taken(graph, rows, words), "int64", "float64"))
        if above := [part for part in every if part[0] == "above"]:
            place = {feature: number for number, feature in enumerate(self.numbers)}
            taken = _taken(graph, numbers, [place[feature] for _, feature, _ in above])
            held = graph.add("Greater", taken, np.array([one for *_, one in above], np.float32))
            sides = np.array([self._missing[feature] for _, feature, _ in above])
            if sides.any():
                gone = graph.add("And", graph.add("IsNaN", taken), sides)
                held = graph.add("Or", held, gone)
            values.append(graph.cast(held, "int64", "bool"))
        if equal := [part for part in every if part[0] == "equal"]:
            asked = _taken(graph, bits, [self._bits[feature, value] for _, feature, value in equal])
            values.append(graph.cast(asked, "int64", "bool"))
        parts = graph.add("Concat", *values, axis=1) if len(values) > 1 else values[0]
        return self._summed(graph, parts, every)

    def _summed(self, graph: Graph, parts: str, every: Sequence[_Part]) -> str:
        """Add the sums of parts times powers of the factor."""
        place = {part: number for number, part in enumerate(every)}
        most = max(map(len, self._projections))
        if most * len(self._projections) > _MOST_ELEMENTS:
            raise _damaged(f"its statistics have more than {_MOST_ELEMENTS:,} parts")
        keys = ""
        for turn in range(most):
            places = np.zeros(len(self._projections), np.int64)
            powers = np.zeros(len(self._projections), np.uint64)
            for number, projection in enumerate(self._projections):
                if turn < len(projection):
                    places[number] = place[projection[turn]]
                    powers[number] = pow(_FACTOR, len(projection) + 1 - turn, 1 << 64)
            one = graph.add("Mul", _taken(graph, parts, places.tolist()), powers.view(np.int64))
            keys = graph.add("Add", keys, one) if keys else one
        return keys

    def _filled(self) -> list[Table]:
        """Return the table of each projection."""
        found: list[Table] = []
        size = 0
        for several in self._projections.values():
            # No more than all keys of all tables, for each statistic.
            named = {self._statistics[number]["identifier"] for number in several}
            tables = map(self._named, named)
            keys = sum(len(one["hash_map"]) // max(2, int(one["hash_stride"])) for one in tables)
            size += keys * len(several)
            check_size(size)
            found.append(_table([self._statistic(number) for number in several]))
            size += found[-1].numbers.size - keys * len(several)
        return found

    def _named(self, identifier: Any) -> Mapping[str, Any]:
        """Return a table as the record has it."""
        if identifier not in self._tables:
            raise InputError(
                "this CatBoost model lacks the table of a statistic: it was trained with "
                "final_ctr_computation_mode='Skip', or the file is damaged"
            )
        found: Mapping[str, Any] = self._tables[identifier]
        return found

    def _statistic(self, number: int) -> tuple[Array, Array, np.float32]:
        """Return the keys of a statistic, its number for each of them, and the one for all others."""
        one = self._statistics[number]
        kind, classes = one["ctr_type"], 0
        if kind not in (*_MEANS, *_COUNTS, *_CLASSES):
            raise InputError(f"CatBoost's statistic {kind!r:.40} isn't supported")
        table = self._named(one["identifier"])
        stride, listed = table["hash_stride"], table["hash_map"]
        wanted = 3 if kind in _MEANS else 2
        if kind in _CLASSES:
            wanted, classes = stride, stride - 1
        if stride != wanted or stride < 2 or len(listed) % stride:
            raise _damaged(f"a table of {kind} has {len(listed)} numbers, {stride} for each key")
        keys = np.array([int(key) for key in listed[::stride]], np.uint64)
        kept = keys != _NO_KEY
        counts = np.array(
            [np.array(listed[place::stride], np.float64)[kept] for place in range(1, stride)]
        )
        border = one["target_border_idx"]
        if kind in _CLASSES and not 0 <= border < max(1, classes - (kind == "Borders")):
            raise _damaged(f"a statistic asks for class {border} of {classes}")
        if kind == "Borders" and classes < 2:
            raise _damaged(f"a table of Borders has {classes} class")
        good, total, nothing = counts[0], counts[-1], 0.0
        if kind in _COUNTS:
            nothing = float(table["counter_denominator"])
            total = np.full(len(good), nothing)
        elif kind == "Buckets":
            good, total = counts[border], counts.sum(axis=0)
        elif kind == "Borders":
            good, total = counts[border + 1 :].sum(axis=0), counts.sum(axis=0)
        numbers = _calculated(one, np.append(good, 0), np.append(total, nothing))
        if not np.isfinite(numbers).all():
            raise _damaged(f"a table of {kind} has numbers that aren't finite")
        return keys[kept].view(np.int64), numbers[:-1], numbers[-1]


def as_border(value: Any) -> float:
    """Return a border as CatBoost reads it, in float32; infinite where a damaged file has one that is too large."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _calculated(one: Mapping[str, Any], good: Array, total: Array) -> Array:
    """Return statistics, in float32 as CatBoost calculates them."""
    prior, whole, shift, scale = (
        np.float32(one[name]) for name in ("prior_numerator", "prior_denomerator", "shift", "scale")
    )
    with np.errstate(all="ignore"):  # of a damaged file's numbers
        share = (good.astype(np.float32) + prior) / (total.astype(np.float32) + whole)
        return (share + shift) * scale


def _table(statistics: Sequence[tuple[Array, Array, np.float32]]) -> Table:
    """Return the statistics of one projection, whose tables may have different keys, as one table."""
    keys = np.unique(np.concatenate([one[0] for one in statistics]))
    numbers = np.empty((len(statistics), len(keys) + 1), np.float32)
    for row, (own, values, other) in zip(numbers, statistics, strict=True):
        row[:] = other
        row[np.searchsorted(keys, own)] = values
    return Table(keys, numbers)


def _taken(graph: Graph, value: str, places: Sequence[int]) -> str:
    """Return some columns of a value."""
    return graph.add("Gather", value, np.array(places, np.int64), axis=1)


def _check_told_apart(record: Mapping[str, Any], targets: int) -> None:
    """Refuse statistics of one kind over several divisions of the training's answers.

    CatBoost's JSON has one table for all of them.
    """
    used = {one["ctr_type"] for one in record["features_info"].get("ctrs") or ()}
    if targets > 1 and (divided := used.difference(_COUNTS)):
        raise InputError(
            f"CatBoost's statistics {', '.join(sorted(divided))} aren't supported for a model of {targets} targets, "
            "since CatBoost's JSON has one table for all targets: train with Counter as the only statistic, "
            "or a model for each target"
        )
    params = record["model_info"]["params"].get("cat_feature_params") or {}
    several = [params.get("simple_ctrs"), params.get("combinations_ctrs")]
    several += (params.get("per_feature_ctrs") or {}).values()
    for settings in several:
        known: dict[str, Any] = {}
        for one in settings or ():
            kind, division = one["ctr_type"], one.get("target_binarization")
            if kind in used and known.setdefault(kind, division) != division:
                raise InputError(
                    f"CatBoost's statistics {kind} with several TargetBorderCount aren't supported, since "
                    "CatBoost's JSON has one table for all of them: train with one"
                )


def _damaged(why: str) -> InputError:
    return InputError(f"this CatBoost model doesn't fit together: {why}; the file is damaged")
