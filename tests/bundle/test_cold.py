"""Starts of fresh processes up to the first answer."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.support.servers import bundle_of

from hasten.bundle.cold import STAGES, Starts, cold_start, differ
from hasten.cli.commands import main
from hasten.cli.tables import starts_table
from hasten.core.scratch import SCRATCH
from hasten.engines.compiled.engine import CompiledC
from hasten.errors import CandidateError, InputError
from hasten.testing import models


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.seconds
def test_each_kind_of_start_is_timed_by_stage(
    exact_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "users"))
    shown = run("bench", exact_bundle, "--cold", "--starts", 1, "--json")
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.stdout)
    kinds = ("empty cache", "filled cache", "no cache")
    assert [row["label"] for row in record["rows"]] == [
        f"original, ONNX Runtime, {kind}" for kind in kinds
    ]
    assert [row["from_cache"] for row in record["rows"]] == [False, True, False]
    for row in record["rows"]:
        assert np.shape(row["stages_ns"]) == (1, len(STAGES))
        assert np.min(row["stages_ns"]) > 0
        assert row["processor_ns"][0] > 0
    assert record["kept_bytes"] > 0
    assert not (tmp_path / "users").exists()  # the user's own cache has no part in it


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    return bundle_of(tmp_path, models.linear_classifier(tmp_path), engine=CompiledC())


@pytest.mark.seconds
def test_a_start_without_a_cache_compiles_each_time(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, script = tmp_path / "log", tmp_path / "cc"
    script.write_text(
        f'#!/bin/sh\n[ ! -e model.c ] || grep -q "int works" model.c || echo >> {log}\nexec cc "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("HASTEN_CC", str(script))
    monkeypatch.setenv(SCRATCH, str(tmp_path / "users"))
    found = cold_start(compiled, starts=2, brief=True)
    assert [row.label for row in found.rows] == ["a label, filled cache", "a label, no cache"]
    assert len(log.read_text()) == 1 + 3  # once for the cache, and in each start without it
    assert not (tmp_path / "users").exists()


def test_starts_that_would_take_too_long_end_before_they_are_timed(compiled: Path) -> None:
    with pytest.raises(
        CandidateError, match=r"left out, because they would take \d+ s or more; to"
    ):
        cold_start(compiled, starts=1000, within_s=60.0)


def test_only_starts_of_the_same_batch_sizes_must_answer_alike() -> None:
    without = {("1, 2", "a"), ("1, 4", "b")}
    assert not differ(without, {("1, 2", "a")})
    assert not differ(without, {("1, 8", "c"), ("1, 4", "b")})
    assert differ(without, {("1, 2", "b")})
    assert differ(without, {("1, 2", "a"), ("1, 2", "b")})
    assert not differ({*without, ("1, 2", "b")}, {("1, 2", "c")})  # each start answers otherwise


def test_the_table_has_medians_by_stage_and_the_ratio_to_the_first_row() -> None:
    first = Starts(
        "one", tuple((n * 10**6, 0, 10**6, 10**6) for n in (8, 9, 1)), (10**6,), from_cache=False
    )
    other = Starts("other", ((10**6, 10**6, 10**6, 2 * 10**6),), (3 * 10**6,), from_cache=True)
    assert starts_table([first, other]).splitlines() == [
        "       interpreter  imports  open  first answer  total  of the first  processors",
        "one    8 ms         0 ms     1 ms  1 ms          10 ms  100%          1 ms",
        "other  1 ms         1 ms     1 ms  2 ms          5 ms   50%           3 ms",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--starts", 3), "--starts needs --cold: add it"),
        (("--cold", "--starts", 0), "--starts must be from 1 to 1000; got 0"),
        (
            ("--cold", "--scenario", "offline"),
            "--cold starts only the bundle: leave out everything except --starts",
        ),
        (
            ("--cold", "--time-limit", "9s"),
            "--cold starts only the bundle: leave out everything except --starts",
        ),
        (
            ("--scenario", "offline", "--time-limit", "9s"),
            "--scenario has runs of a fixed length: leave out --time-limit, and give --duration",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: tuple[object, ...], said: str, exact_bundle: Path
) -> None:
    shown = run("bench", exact_bundle, *words)
    assert (shown.exit_code, shown.stderr) == (2, f"hasten: {said}\n")


def test_without_a_bundle_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle at"):
        cold_start(tmp_path / "none")
