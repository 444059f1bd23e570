"""The examples whose data are rows: what their pages promise, on the real data, with short runs."""

import importlib.util
import json
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.quick import quick_runs

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


def ran(name: str, folder: Path) -> tuple[ModuleType, dict[str, Any]]:
    """Run an example from its file; return the module and what it would print."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    with quick_runs():
        return module, module.run(folder / f"{name}.hasten", "normal", rounds=3)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, dict[str, Any]]:
    pytest.importorskip("torch")
    return ran("clinic", tmp_path_factory.mktemp("clinic"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, dict[str, Any]]:
    for module in ("torch", "uvicorn"):
        pytest.importorskip(module)
    return ran("desk", tmp_path_factory.mktemp("desk"))


def test_the_clinic_certifies_sensitivity_on_malignant_tumors_that_nothing_has_seen(
    clinic: tuple[ModuleType, dict[str, Any]],
) -> None:
    module, found = clinic
    _, (trained, _), (judging, malignant) = module.data()
    seen = {row.tobytes() for row in trained}
    assert not any(row.tobytes() in seen for row in judging)
    assert found["kind"] == "fresh data"
    assert found["n"] == (malignant == 1).sum() == 149
    assert found["passed"]
    assert found["certificate"] == (
        "95% confident that at most 3% of inputs go from right to wrong (n=149: 0 lost, 0 gained)"
    )
    assert found["sensitivity"] > 0.9
    assert found["decided otherwise by torch"] == 0


def test_the_clinic_leaves_few_rows_to_a_person_and_misses_no_more(
    clinic: tuple[ModuleType, dict[str, Any]],
) -> None:
    counts = clinic[1]["decisions"]
    assert 0 < counts["abstained"] < 0.05 * counts["rows"]
    assert counts["missed"] <= counts["missed if it never abstained"]
    assert counts["false alarms"] <= counts["false alarms if it never abstained"]


def test_the_clinic_records_every_answer_in_python_and_served(
    clinic: tuple[ModuleType, dict[str, Any]],
) -> None:
    module, found = clinic
    assert found["served as in Python"]
    file = Path(found["audit"])
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 3 * 60 + 20
    columns, _, (x, _) = module.data()
    rows = [json.dumps(dict(zip(columns, row, strict=True))).encode() for row in x.tolist()]
    bundle = file.parent / "clinic.hasten"
    digest = json.loads((bundle / "manifest.json").read_text())["digest"]
    for row, record in zip(rows[:20], records[-20:], strict=True):
        assert record["input"] == sha256(row).hexdigest()
        assert record["bundle"] == digest
        assert {"score", "threshold", "abstained"} <= record["decision"].keys()
        assert record["latency_us"] > 0
        assert record["time"].endswith("+00:00")


def test_an_answer_that_fails_is_recorded_too(
    clinic: tuple[ModuleType, dict[str, Any]], tmp_path: Path
) -> None:
    module, found = clinic
    bundle = Path(found["audit"]).parent / "clinic.hasten"

    def fails(row: bytes) -> Any:
        raise ValueError(f"no such row: {row.decode()}")

    audit = module.Audit(tmp_path / "audit.jsonl", bundle, fails)
    with pytest.raises(ValueError, match=r"^no such row: x$"):
        audit(b"x")
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()  # before it is closed
    assert json.loads(line)["decision"] == {"error": "no such row: x"}
    audit.close()


def test_the_desk_keeps_its_decisions_and_its_calibration(
    desk: tuple[ModuleType, dict[str, Any]],
) -> None:
    _, found = desk
    assert found["kind"] == "fresh data"
    assert found["passed"]
    assert found["certificate"] == (
        "95% confident that at most 1% of inputs go from right to wrong (n=500: 0 lost, 0 gained)"
    )
    assert found["changed"] == 0
    assert found["largest move"] < 1e-5
    errors = found["calibration error"]
    assert errors["bundle"] == pytest.approx(errors["torch"], abs=1e-4)
    assert errors["torch"] < 0.1
    assert found["served as in Python"]


def test_the_desk_takes_words_and_decides_without_what_no_decision_may_rest_on(
    desk: tuple[ModuleType, dict[str, Any]],
) -> None:
    module, found = desk
    row = json.loads(module.data()[2][0])
    assert isinstance(row["purpose"], str)
    assert not {"personal_status_and_sex", "foreign_worker", "age_in_years"} & row.keys()
    assert len(row) == len(module.step().columns) == 17
    for ways in found["taken"].values():
        assert set(ways) == {"torch, eager", "hasten"}
