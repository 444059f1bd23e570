"""Comparison of decisions: whether a chain decides as its exact models' chain does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.errors import InputError
from hasten.inputs.metrics.detection_f1 import overlaps

LEAST_IOU = 0.5
"""Least overlap of two boxes that are one thing, as intersection over union."""
_OWN = ("box", "class", "label", "score")
_FAR = 0.05
"""Difference that makes another decision where it is a number, relative to the larger one."""


def agrees(decision: Any, exact: Any) -> bool:
    """Whether a decision is that of the exact models, for the one who acts on it.

    Boxes agree if there are as many and each overlaps one of its label by an IoU of 0.5 or more, and
    what was read in the two agrees too. Classes agree if the most likely one is the same. Scores don't
    count. Texts are equal, and other numbers within 5%.

    Raises:
        InputError: a decision is made of arrays, as that of a model without steps after it.
    """
    if isinstance(decision, np.ndarray) or isinstance(exact, np.ndarray):
        raise InputError(
            "a decision that consists of arrays can't be compared: make the bundle with steps "
            "after the model"
        )
    if isinstance(decision, Mapping) and isinstance(exact, Mapping):
        return decision.keys() == exact.keys() and all(
            key == "score" or agrees(decision[key], exact[key]) for key in exact
        )
    if isinstance(decision, list) and isinstance(exact, list):
        return _lists_agree(decision, exact)
    if _number(decision) and _number(exact):
        return math.isclose(decision, exact, rel_tol=_FAR)
    return bool(decision == exact)


def _lists_agree(mine: list[Any], exact: list[Any]) -> bool:
    first = (mine or exact or [None])[0]
    if isinstance(first, Mapping) and "box" in first:
        return len(mine) == len(exact) and _boxes_agree(mine, exact)
    if isinstance(first, Mapping) and "class" in first:
        return bool(mine and exact) and _what(mine[0]) == _what(exact[0])
    return len(mine) == len(exact) and all(map(agrees, mine, exact))


def _boxes_agree(mine: Sequence[Mapping[str, Any]], exact: Sequence[Mapping[str, Any]]) -> bool:
    """Match each exact box to the free one of its label that overlaps it most, best pairs first."""
    corners = [np.array([box["box"] for box in side], np.float64) for side in (mine, exact)]
    overlap = overlaps(*corners)
    for row, one in enumerate(mine):
        overlap[row, [_what(one) != _what(other) for other in exact]] = 0
    for _ in exact:
        row, column = divmod(int(overlap.argmax()), len(exact))
        if overlap[row, column] < LEAST_IOU:
            return False
        if not agrees(_read(mine[row]), _read(exact[column])):
            return False
        overlap[row], overlap[:, column] = -1, -1
    return True


def _what(one: Mapping[str, Any]) -> tuple[Any, Any]:
    return one.get("class"), one.get("label")


def _read(box: Mapping[str, Any]) -> dict[str, Any]:
    """Return what other models said about a box."""
    return {key: value for key, value in box.items() if key not in _OWN}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
