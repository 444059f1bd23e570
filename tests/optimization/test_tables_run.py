"""Whole runs with models that look numbers up: what ships refuses those beyond the tables."""

from pathlib import Path

import numpy as np
import pytest
from tests.support.nominal_times import Asked, nominal_times
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.core.lookups import Lookup
from hasten.errors import InputError
from hasten.testing import models

IDS = np.random.default_rng(0).integers(0, 20, (1500, 6))


def tokens(folder: Path, name: str, rows: int, ids: str = "ids") -> Path:
    """Write a classifier of six tokens; the smaller table has the first rows of the larger one."""
    text = f"""tokens (int64[batch, 6] {ids}) => (float[batch, 4] logits) {{
        whole = Cast <to = 6> ({ids})
        found = Gather(table, whole)
        row = ReduceMean <axes = [1], keepdims = 0> (found)
        logits = MatMul(row, w) }}"""
    path = folder / f"{name}.onnx"
    return models.write(path, text, {"w": (64, 4), "table": (rows, 64)})


def refused(bundle: Path, number: int) -> str:
    ids = IDS[:1].copy()
    with hasten.load(bundle) as loaded:
        assert loaded(ids)["logits"].shape == (1, 4)
        ids[0, 3] = number
        with pytest.raises(InputError) as error:
            loaded(ids)
    return str(error.value)


@pytest.mark.parametrize("engine", ["openvino", "compiled"])
@pytest.mark.parametrize("data", [IDS[:400], None], ids=["data", "made up"])
def test_a_run_states_the_tables_of_the_original(
    engine: str, data: np.ndarray | None, tmp_path: Path
) -> None:
    with quick_runs(races=False):
        hasten.optimize(
            tokens(tmp_path, "tokens", 50),
            data,
            max_drop=0.2,
            metric="agreement",
            engines=(engine,),
            out=tmp_path / "b.hasten",
        )
    assert read(tmp_path / "b.hasten").lookups == (Lookup("ids", (1, 1), (50,)),)
    assert "50, and the table that it looks up has 50 rows:" in refused(tmp_path / "b.hasten", 50)


def test_a_smaller_model_with_a_smaller_table_refuses_what_it_lacks(tmp_path: Path) -> None:
    def latencies_of(asked: Asked) -> list[int]:
        return [100_000 if Path(asked["artifact"]["path"]).stem == "small" else 800_000]

    with quick_runs(passes=True, races=False), nominal_times(latencies_of):
        result = hasten.optimize(
            tokens(tmp_path, "tokens", 50),
            IDS,
            max_drop=0.3,
            metric="agreement",
            small_model=tokens(tmp_path, "small", 20, "numbers"),
            engines=("openvino",),
            passes=(),
            out=tmp_path / "b.hasten",
        )
    assert result.winner.label.startswith("small model"), result.why
    assert "20, and the table that it looks up has 20 rows:" in refused(tmp_path / "b.hasten", 20)


@pytest.mark.parametrize("engines", [("openvino",), ("onnxruntime", "openvino")])
def test_data_with_numbers_beyond_the_table_is_refused(
    engines: tuple[str, ...], tmp_path: Path
) -> None:
    with quick_runs(races=False), pytest.raises(InputError) as error:
        hasten.optimize(
            tokens(tmp_path, "tokens", 15),
            IDS[:400],
            max_drop=0.2,
            metric="agreement",
            engines=engines,
            out=tmp_path / "b.hasten",
        )
    assert str(error.value).startswith(
        "the data doesn't suit the model: input 'ids' has the number 1"
    )
    assert not (tmp_path / "b.hasten").exists()
