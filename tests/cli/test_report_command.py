"""`hasten report`: the page, the records, and one line for what can't be used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.support.pages import Reading
from tests.support.quick import ROUNDS, quick_runs

from hasten.cli import main
from hasten.testing import models

pytestmark = pytest.mark.seconds


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def bundle(exact_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(exact_bundle, tmp_path / "b.hasten")
    return tmp_path / "b.hasten"


def test_report_writes_the_page_and_says_where(bundle: Path, tmp_path: Path) -> None:
    result = run("report", bundle)
    assert (result.exit_code, result.output) == (0, f"report: {bundle}.html\n")
    assert run("report", bundle, "--out", tmp_path / "r.html").exit_code == 0
    own = (bundle / "report.html").read_bytes()
    assert (tmp_path / "b.hasten.html").read_bytes() == (tmp_path / "r.html").read_bytes() == own


def test_report_prints_the_records_behind_the_page(bundle: Path) -> None:
    result = run("report", bundle, "--json")
    record = json.loads(result.stdout)
    assert record["result"]["status"] == "exact"
    assert record["result"]["outcomes"][0]["fate"] == "baseline"
    assert set(record["figures"]["roles"]) == {"default engine", "fastest exact"}
    assert len(record["figures"]["rounds"]["baseline"]) >= ROUNDS
    assert not bundle.with_name("b.hasten.html").exists()


def test_report_writes_its_charts_instead(bundle: Path, tmp_path: Path) -> None:
    result = run("report", bundle, "--plots", tmp_path / "plots")
    count = len(list((tmp_path / "plots").iterdir()))
    assert (result.exit_code, result.output) == (0, f"plots: {count} files in {tmp_path}/plots\n")
    assert not bundle.with_name("b.hasten.html").exists()
    result = run("report", bundle, "--plots", tmp_path / "plots", "--json")
    assert (result.exit_code, result.stdout) == (2, "")


def test_report_refuses_what_cannot_be_used_in_one_line(bundle: Path, tmp_path: Path) -> None:
    result = run("report", bundle, "--json", "--out", tmp_path / "r.html")
    assert (result.exit_code, result.stdout) == (2, "")
    result = run("report", tmp_path / "none.hasten")
    assert (result.exit_code, result.stderr) == (
        2,
        f"hasten: no bundle at {tmp_path}/none.hasten: no such file or folder\n",
    )
    (bundle / "evidence" / "result.json").write_text("{}")
    result = run("report", bundle)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"hasten: {bundle}: evidence/result.json has 2 bytes, ")


def test_the_page_says_what_was_typed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    words = [
        *("optimize", str(models.linear_classifier(tmp_path)), "--data", str(tmp_path / "x.npz")),
        *("--engine", "onnxruntime", "--max-drop", "5%", "--out", str(tmp_path / "b")),
    ]
    with quick_runs():
        assert run(*words).exit_code == 0
    lines = Reading.of((tmp_path / "b" / "report.html").read_bytes()).rows("again")
    assert f"hasten {' '.join(words)}" in lines
