"""Parquet files as tables, as pandas and pyarrow write them."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.source import open_data
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.rows import Row

COLUMNS = Row(("age", "city"), "nan", (("city", ("Rome", "Oslo")),))
FRAME = pd.DataFrame(
    {"age": [31.5, None, 7.0], "city": ["Oslo", "Rome", "Oslo"], "good": ["yes", "no", "yes"]}
)


def opened(source: Path | str) -> Dataset:
    inputs = [TensorSpec("x", "float32", ("n", 2))]
    return open_data(
        source, inputs, Pipeline((COLUMNS,), (TopK(labels=("no", "yes"), softmax=False),))
    )


@pytest.mark.parametrize("label", ["", ":good"])
def test_a_parquet_file_gives_what_its_frame_gives(tmp_path: Path, label: str) -> None:
    path = tmp_path / "rows.parquet"
    FRAME.set_index(pd.Index([4, 9, 2])).to_parquet(path)  # the index is no label
    data = opened(f"{path}{label}")
    rows = data.inputs(range(3))["x"]
    assert np.array_equal(rows, np.array([[31.5, 1], [np.nan, 0], [7, 1]]), equal_nan=True)
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]


def test_decimal_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    ages = pa.array([Decimal("31.5"), None, Decimal(7)], pa.decimal128(9, 2))
    parquet.write_table(pa.table({"age": ages, "city": ["Oslo", "Rome", "Oslo"]}), path)
    rows = opened(path).inputs(range(3))["x"]
    assert np.array_equal(rows, np.array([[31.5, 1], [np.nan, 0], [7, 1]]), equal_nan=True)


def test_a_column_that_python_cannot_hold_is_named_only_where_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    late = pa.array([1 << 62] * 3, pa.timestamp("us"))  # far after the year 9999
    parquet.write_table(pa.Table.from_pandas(FRAME).append_column("when", late), path)
    assert opened(f"{path}:good").labels is not None
    with pytest.raises(InputError, match=r"rows.parquet: the column 'when' can't be read: [^\n]+$"):
        opened(f"{path}:when")


def test_a_column_that_comes_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    names = ["age", "age", "city"]
    columns = [pa.array([1.0]), pa.array([2.0]), pa.array(["Oslo"])]
    parquet.write_table(pa.Table.from_arrays(columns, names), path)
    with pytest.raises(InputError, match=r"rows.parquet has the column 'age' twice"):
        opened(path)


def test_a_folder_of_parquet_files_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    FRAME.to_parquet(folder / "part-0.parquet")
    for source in (folder, f"{folder}:good"):
        with pytest.raises(InputError, match="is a folder, but a table is one Parquet file"):
            opened(source)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(InputError, match=r"^can't read .*rows.parquet as a Parquet file: [^\n]+$"):
        opened(path)


def test_without_pyarrow_a_parquet_file_says_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    FRAME.to_parquet(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError) as refused:
        opened(path)
    assert str(refused.value) == (
        f"{path} is a Parquet file, which pyarrow reads: pip install pyarrow, or give a CSV file"
    )


def test_a_model_that_states_no_columns_refuses_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    FRAME.to_parquet(path)
    with pytest.raises(InputError, match="is a table, but nothing states which columns"):
        open_data(f"{path}:good", [TensorSpec("x", "float32", ("n", 2))])
