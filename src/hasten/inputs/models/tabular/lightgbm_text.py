"""Check of LightGBM's text files, whose lengths and places its own reader doesn't look at before it uses them.

Source: LightGBM's `Tree::Tree(const char*, size_t*)` in src/io/tree.cpp, and its src/boosting/gbdt_model_text.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError, visible
from hasten.inputs.models.tabular.trees import are_columns, wrong_children

_TREE = b"\nTree="
END = b"\nend of trees"
"""Line after the last tree."""
_SPLITS = (b"split_feature", b"threshold", b"decision_type", b"left_child", b"right_child")
_MORE_OF_SPLITS = (b"split_gain", b"internal_value", b"internal_weight", b"internal_count")
_MORE_OF_LEAVES = (b"leaf_weight", b"leaf_count", b"leaf_const", b"num_features")
_CATEGORICAL = 1
"""Bit of a split's `decision_type`."""
_INTEGERS = re.compile(rb" *(-?\d{1,18}( +-?\d{1,18})* *)?")


def checked(path: Path, content: bytes) -> bytes:
    """Return what LightGBM is to read of a file: its head, its trees, and the categories of pandas.

    The settings for training and the importances are left out, and the trees' sizes, by which LightGBM jumps from
    one to the next, are those that they have.

    Raises:
        InputError: the file is cut short, or a tree isn't one.
    """
    content = content.replace(b"\r\n", b"\n")
    if content[:5] != b"tree\n":
        raise InputError(f"{path} isn't a model of LightGBM: its first line isn't `tree`")
    body, end, rest = content.partition(END)
    if not end:  # LightGBM 2.1 and older wrote none
        old = re.search(rb"\nfeature importances:", content)
        if old is None or b"\ntree_sizes=" in content:
            raise InputError(f"{path} is cut short: it has no line `end of trees`")
        body, end, rest = content[: old.start()], END, content[old.start() :]
    head, *trees = body.split(_TREE)
    try:
        columns = _integer(_head(head)[b"max_feature_idx"]) + 1
        for number, tree in enumerate(trees):
            if wrong := _wrong(_fields(tree), columns):
                raise InputError(f"{path} is damaged: its tree {number} {wrong}")
        categories = re.search(rb"\npandas_categorical:[^\n]*", rest)
        sizes = b" ".join(b"%d" % (len(_TREE) + len(tree)) for tree in trees)
        head = re.sub(rb"\ntree_sizes=[^\n]*", b"\ntree_sizes=" + sizes, head)
        kept = _TREE.join((head, *trees)) + end + b"\n"
        kept += categories[0] + b"\n" if categories else b""
        kept.decode()
        return kept
    except KeyError as error:
        raise InputError(f"{path} is damaged: it has no {error.args[0].decode()}") from error
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: it can't be read as text of LightGBM ({visible(str(error)):.120})"
        ) from error


def _head(text: bytes) -> dict[bytes, bytes]:
    """Return the fields of a file's head; of a field that comes twice, the last counts."""
    return dict(line.split(b"=", 1) for line in text.split(b"\n") if b"=" in line)


def _fields(text: bytes) -> dict[bytes, bytes]:
    """Return the fields of a tree, one a line, which an empty line ends.

    Raises:
        ValueError: a line is no field, or a field comes twice, so that LightGBM might read another one.
    """
    _, _, text = text.partition(b"\n")  # the tree's number
    lines, _, after = text.partition(b"\n\n")
    if after.strip(b"\n"):
        raise ValueError("a tree goes on behind an empty line")
    every = lines.strip(b"\n").split(b"\n")
    if (odd := next((line for line in every if b"=" not in line), None)) is not None:
        raise ValueError(f"a tree has the line {odd[:40]!r}, which is no field")
    fields = [line.split(b"=", 1) for line in every]
    found = dict(fields)
    if len(found) != len(fields):
        raise ValueError("a tree has a field twice")
    return found


def _wrong(tree: dict[bytes, bytes], columns: int) -> str:
    """Say what is wrong with a tree; "" for a sound one."""
    leaves = _integer(tree[b"num_leaves"])
    if leaves < 1:
        return f"has {leaves} leaves"
    counts = dict.fromkeys(_SPLITS if leaves > 1 else (), leaves - 1) | {b"leaf_value": leaves}
    counts |= {name: leaves - 1 for name in _MORE_OF_SPLITS if leaves > 1 and name in tree}
    counts |= {name: leaves for name in _MORE_OF_LEAVES if tree.get(name)}
    for name, count in counts.items():
        if (found := _count(tree[name])) != count:
            return f"has {found} numbers in {name.decode()}, but {leaves} leaves need {count}"
    if wrong := _wrong_linear(tree, columns):
        return wrong
    if leaves == 1:
        return ""
    children = np.concatenate([_integers(tree[name]) for name in (b"left_child", b"right_child")])
    known, split = np.r_[-leaves:0, 1 : leaves - 1], _integers(tree[b"split_feature"])
    return wrong_children(children, known, split, columns) or _wrong_sets(tree)


def _wrong_linear(tree: dict[bytes, bytes], columns: int) -> str:
    """Say what is wrong with the linear models of a tree's leaves; "" for sound ones, or where there are none."""
    used = _integers(tree.get(b"leaf_features", b""))
    counts = _integers(tree.get(b"num_features", b""))
    if not _integer(tree.get(b"is_linear", b"0")) and not used.size:
        return ""
    if (counts < 0).any() or not counts.sum() == used.size == _count(tree.get(b"leaf_coeff", b"")):
        return "has linear models of leaves that are cut short"
    if not are_columns(used, columns):
        return f"has a linear model of a column that isn't one of the {columns}"
    return ""


def _wrong_sets(tree: dict[bytes, bytes]) -> str:
    """Say what is wrong with a tree's sets of categories; "" for sound ones."""
    count = _integer(tree.get(b"num_cat", b"0"))
    is_set = _integers(tree[b"decision_type"]) & _CATEGORICAL == 1
    if is_set.any():
        words = np.array(tree[b"threshold"].split())[is_set]
        places = _integers(b" ".join(words.tolist()))
        if not are_columns(places, count):
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


def _integer(value: bytes) -> int:
    found = _integers(value)
    if found.size != 1:
        raise ValueError(f"{value[:40]!r} isn't one whole number")
    return int(found[0])


def _integers(values: bytes) -> Array:
    """Return whole numbers, as LightGBM reads them: Python would take 1_0 for 10, too.

    Raises:
        ValueError: they are something else.
    """
    if not _INTEGERS.fullmatch(values):
        raise ValueError(f"{values[:40]!r} isn't whole numbers")
    return np.array(values.split(), np.int64)
