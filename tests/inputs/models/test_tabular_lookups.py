"""Tables by keys of 64 bits in ONNX, against what they were made from; the models that have them are compiled too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.models.tabular.lookups import Table, look_up

KEYS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)
APART = st.lists(KEYS, unique_by=lambda key: key % 2**33)
"""Keys whose low bits differ, as those of hashes do."""
TABLES = st.lists(st.tuples(APART, st.integers(1, 3)), min_size=1, max_size=4)


def answers(tables: list[Table], keys: Array) -> Array:
    """Return what ONNX Runtime finds for keys, whose halves of 32 bits it gets as numbers."""
    graph = Graph(2 * len(tables), "float64")
    halves = graph.cast("rows", "int64", "float64")
    high, low = (
        graph.add("Gather", halves, np.arange(place, 2 * len(tables), 2), axis=1)
        for place in (0, 1)
    )
    whole = graph.add("Add", graph.add("Mul", high, np.array(1 << 32, np.int64)), low)
    found = look_up(graph, whole, tables)
    width = sum(len(table.numbers) for table in tables)
    # As for models with trees, without which an older opset is written.
    model = graph.finish(found, "numbers", width, "float32", {})
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 21))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rows = np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=2).reshape(len(keys), -1)
    (given_,) = session.run(None, {"rows": rows.astype(np.float64)})
    return np.asarray(given_)


def table_of(keys: Any, rows: int) -> Table:
    """Return a table whose numbers tell the key, the row and the other keys."""
    numbers = np.arange(rows * (len(keys) + 1), dtype=np.float32).reshape(rows, -1)
    return Table(np.array(keys, np.int64), numbers)


@settings(max_examples=15, deadline=None)
@example([([0, 1, -1, 2, -2, 3], 1)], [])  # 0 times any factor is 0
@given(TABLES, st.lists(KEYS, max_size=5))
def test_every_key_has_its_numbers_and_others_have_the_last(
    given_: list[Any], others: list[int]
) -> None:
    tables = [table_of(keys, rows) for keys, rows in given_]
    asked = np.array([*{key for keys, _ in given_ for key in keys}, *others, 0, 1], np.int64)
    keys = np.repeat(asked[:, None], len(tables), axis=1)
    found = answers(tables, keys)
    for row, key in zip(found, asked.tolist(), strict=True):
        wanted = [
            number
            for table in tables
            for number in table.numbers[:, ([*table.keys.tolist(), key]).index(key)]
        ]
        assert row.tolist() == wanted


def test_many_keys_are_found() -> None:
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(-(2**63), 2**63 - 1, 60_000))
    tables = [table_of(keys, 1), table_of(keys[:1000], 1)]
    asked = np.concatenate([keys, rng.integers(-(2**63), 2**63 - 1, 20_000)])
    found = answers(tables, np.repeat(asked[:, None], 2, axis=1))
    assert found[: len(keys), 0].tolist() == list(range(len(keys)))
    assert found[:1000, 1].tolist() == list(range(1000))
    assert (found[len(keys) :, 0] == len(keys)).all()
    assert (found[1000:, 1] == 1000).all()


def test_keys_that_differ_in_their_high_bits_alone_are_refused() -> None:
    keys = np.arange(200, dtype=np.int64) << 55
    with pytest.raises(InputError, match=r"^the keys of its categories can't be told apart"):
        answers([table_of(keys, 1)], keys[:, None])
