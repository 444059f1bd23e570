"""Sizes and counters that an exporter fixed although they aren't fixed, and why, as an exported file's metadata says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hasten.errors import visible

if TYPE_CHECKING:
    import onnx

    from hasten.core.tensors import TensorSpec

BATCH = "hasten.batch"
"""Key of the batch: "open", or its size and the reason, as in "1: why"."""
LENGTH = "hasten.length"
"""Key of the number of tokens or sound samples, in dimension 1, which is there only if that isn't open."""

STATES = "hasten.states"
"""Key of the names of what a call of the original changes in it, with commas, if there is any."""

_CHANGES = (
    "a call of the model changes {names} in it, and the exported file keeps what it had: if its answers depend on that, give "
    "it as an input and an output, or leave it out of forward"
)
_SIZE = re.compile(r"([0-9]{1,18}): (.+)", re.DOTALL)
_AXES = {
    BATCH: (0, "the exported batch is {size}, so a server can't batch requests: {why}"),
    LENGTH: (1, "the exported model takes samples of length {size} alone: {why}"),
}


def note(proto: onnx.ModelProto, key: str, value: str) -> None:
    """Write an entry into a file's metadata."""
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, value


def reason(proto: onnx.ModelProto, key: str) -> str:
    """Return why a size was fixed; empty where the file doesn't say so."""
    found = _SIZE.fullmatch(dict(_entries(proto)).get(key, ""))
    return found[2] if found else ""


def words(proto: onnx.ModelProto, inputs: Iterable[TensorSpec]) -> list[str]:
    """Return what an exporter fixed, one line for people each; none where the file has that dimension open."""
    said = dict(_entries(proto))
    sizes = {
        axis: {spec.shape[axis] for spec in inputs if len(spec.shape) > axis}
        for axis, _ in _AXES.values()
    }
    found = []
    for key, (axis, line) in _AXES.items():
        known = _SIZE.fullmatch(said.get(key, ""))
        if known and int(known[1]) in sizes[axis]:
            found.append(line.format(size=known[1], why=visible(known[2])))
    if STATES in said:
        found.append(_CHANGES.format(names=visible(said[STATES][:200])))
    return found


def _entries(proto: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    for entry in proto.metadata_props:
        yield entry.key, entry.value
