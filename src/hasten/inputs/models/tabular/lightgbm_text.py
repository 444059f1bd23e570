"""Check of LightGBM's text files, whose lengths and places its own reader doesn't look at before it uses them.

Source: LightGBM's `Tree::Tree(const char*, size_t*)` in src/io/tree.cpp, and its src/boosting/gbdt_model_text.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

_END = b"\nend of trees"
_SPLITS = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
_MORE_OF_SPLITS = ("split_gain", "internal_value", "internal_weight", "internal_count")
_MORE_OF_LEAVES = ("leaf_weight", "leaf_count", "leaf_const", "num_features")
_CATEGORICAL = 1
"""Bit of a split's `decision_type`."""


def checked(path: Path, content: bytes) -> str:
    """Return what LightGBM is to read of a file.

    That is all but the settings for training, the importances, and the trees' sizes, by which it would jump from
    one to the next.

    Raises:
        InputError: the file is cut short, or a tree isn't one.
    """
    if content[:5] != b"tree\n":
        raise InputError(f"{path} isn't a model of LightGBM: its first line isn't `tree`")
    body, end, rest = content.partition(_END)
    if not end:
        raise InputError(f"{path} is cut short: it has no line `end of trees`")
    head, *trees = body.split(b"\nTree=")
    try:
        columns = int(_fields(head)[b"max_feature_idx"]) + 1
        for number, tree in enumerate(trees):
            if wrong := _wrong(_fields(tree), columns):
                raise InputError(f"{path} is damaged: its tree {number} {wrong}")
        categories = re.search(rb"\npandas_categorical:[^\n]*", rest)
        head = re.sub(rb"\ntree_sizes=[^\n]*", b"", head)
        kept = (
            b"\nTree=".join((head, *trees))
            + end
            + b"\n"
            + (categories[0] + b"\n" if categories else b"")
        )
        return kept.decode()
    except (KeyError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged: it can't be read as text of LightGBM ({error!r:.80})"
        ) from error


def _fields(text: bytes) -> dict[bytes, bytes]:
    return dict(line.split(b"=", 1) for line in text.splitlines() if b"=" in line)


def _wrong(tree: dict[bytes, bytes], columns: int) -> str:
    """Say what is wrong with a tree; "" for a sound one."""
    leaves = int(tree[b"num_leaves"])
    if leaves < 1:
        return f"has {leaves} leaves"
    counts = dict.fromkeys(_SPLITS if leaves > 1 else (), leaves - 1) | {"leaf_value": leaves}
    counts |= {name: leaves - 1 for name in _MORE_OF_SPLITS if leaves > 1 and name.encode() in tree}
    counts |= {name: leaves for name in _MORE_OF_LEAVES if tree.get(name.encode())}
    for name, count in counts.items():
        if (found := _count(tree[name.encode()])) != count:
            return f"has {found} numbers in {name}, but {leaves} leaves need {count}"
    if leaves == 1:
        return ""
    children = np.concatenate([_integers(tree[name]) for name in (b"left_child", b"right_child")])
    if not np.array_equal(np.sort(children), np.r_[-leaves:0, 1 : leaves - 1]):
        return "has nodes that are nobody's child, or several's"
    used = _integers(tree[b"split_feature"])
    if used.min() < 0 or used.max() >= columns:
        return f"splits by a column that isn't one of the {columns}"
    return _wrong_sets(tree)


def _wrong_sets(tree: dict[bytes, bytes]) -> str:
    """Say what is wrong with a tree's sets of categories; "" for sound ones."""
    count = int(tree.get(b"num_cat", b"0"))
    places = np.array(tree[b"threshold"].split(), np.float64)[
        _integers(tree[b"decision_type"]) & _CATEGORICAL == 1
    ]
    if places.size and not (places.min() >= 0 and places.max() < count):
        return f"splits by a set of categories that isn't one of its {count}"
    if not count:
        return ""
    bounds = _integers(tree[b"cat_boundaries"])
    if len(bounds) != count + 1 or bounds[0] != 0 or (np.diff(bounds) < 0).any():
        return "has sets of categories whose bounds aren't in order"
    if _count(tree[b"cat_threshold"]) != bounds[-1]:
        return "has sets of categories that are cut short"
    return ""


def _count(values: bytes) -> int:
    return len(values.split())


def _integers(values: bytes) -> Array:
    return np.array(values.split(), np.int64)
