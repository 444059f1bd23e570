"""A bundle is untrusted: what `certify` takes from it is refused in one line, or is possible."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.bundles import forge

import hasten
import hasten.optimization.optimize
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.measure.workbench import Bench

SEALED = "evidence/sealed.json"


@pytest.fixture
def crafted(data: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(data[0], tmp_path / "crafted.hasten")


def refused(bundle: Path, data: Path, **asked: Any) -> str:
    with pytest.raises(hasten.IntegrityError) as caught:
        hasten.certify(bundle, data, **asked)
    return str(caught.value)


def judgement(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["certificate"]["judgement"].update(fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (judgement(max_drop=1.5), "max_drop must be between 0 and 1, and it says 1.5"),
        (judgement(max_drop=-1), "max_drop must be between 0 and 1, and it says -1"),
        (judgement(confidence=0), "confidence must be between 0 and 1, and it says 0"),
        (judgement(confidence=1e18), "confidence must be between 0 and 1, and it says 1e+18"),
        (
            judgement(max_drop="5%"),
            "a Judgement record can't be read: Expected `float`, got `str` - at `$.max_drop`",
        ),
        (
            judgement(guard=["net"]),
            "a Judgement record can't be read: Expected `str`, got `array` - at `$.guard`",
        ),
        (
            judgement(guard="none"),
            "a Judgement record can't be read: Invalid enum value 'none' - at `$.guard`",
        ),
        (
            judgement(metric=1),
            "a Judgement record can't be read: Expected `str`, got `int` - at `$.metric`",
        ),
        (
            lambda record: record["certificate"].pop("judgement"),
            "a Judgement record can't be read: Expected `object`, got `null`",
        ),
    ],
)
def test_a_certificate_that_can_not_be_meant_is_refused(
    data: tuple[Path, Path], crafted: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    forge(crafted, change)
    line = f"{crafted}: the certificate is damaged: {said}"
    assert refused(crafted, data[1]) == line
    assert refused(crafted, data[1], max_drop=0.05, confidence=0.9, guard="net") == line


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            {"type": "regression", "tolerance": -1},
            "regression: tolerance -1 and relative 0; give one above 0, as in regression:0.01",
        ),
        (
            {"type": "top1", "output": 5},
            "a Top1 record can't be read: Expected `str | null`, got `int` - at `$.output`",
        ),
        ({}, "a Metric record has no type: {}"),
    ],
)
def test_a_metric_that_can_not_be_meant_is_refused(
    data: tuple[Path, Path], crafted: Path, metric: dict[str, Any], said: str
) -> None:
    forge(crafted, lambda record: record.update(metric=metric))
    assert refused(crafted, data[1]) == f"{crafted}: the metric is damaged: {said}"


@pytest.mark.parametrize("threads", [10**9, -1])
def test_a_crafted_bundle_is_judged_on_no_more_threads_than_there_are(
    data: tuple[Path, Path], crafted: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def change(record: dict[str, Any]) -> None:
        for item in (record["target"], record["exact"]["engine"]):
            item["threads"] = threads

    def opened(bench: Bench, engine: OnnxRuntime, artifact: Artifact, *, fresh: bool) -> None:
        asked.append((engine.threads, bench.target.threads))
        raise hasten.CandidateError("seen enough")

    asked: list[tuple[int | None, int]] = []
    forge(crafted, change)
    monkeypatch.setattr(Bench, "open_built", opened)
    with pytest.raises(hasten.CandidateError):
        hasten.certify(crafted, data[1])
    most = Target.host().threads if threads > 0 else 1
    assert asked == [(most, most)]


HASH = "0" * 64
WHOLE: dict[str, Any] = {"hashes": [HASH], "seen": [HASH], "groups": []}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "Expected `object`, got `array`"),
        ("{}", "Object missing required field `hashes`"),
        (json.dumps({**WHOLE, "hashes": 5}), "Expected `array`, got `int` - at `$.hashes`"),
        (json.dumps({**WHOLE, "seen": [[]]}), "Expected `str`, got `array` - at `$.seen[0]`"),
        (
            json.dumps({**WHOLE, "groups": ["dogs"]}),
            "Expected `str` matching regex '^[0-9a-f]{64}$' - at `$.groups[0]`",
        ),
        (json.dumps(WHOLE)[:-1], "Input data was truncated"),
        pytest.param(
            '{"judged": ' + "[" * 100_000,
            "maximum recursion depth exceeded while deserializing an object",
            id="nested",
        ),
        (
            '{"hashes": ["\xff"]}',
            "Invalid UTF-8 encoded string",
        ),
    ],
)
def test_a_list_of_what_was_seen_that_can_not_be_one_is_refused(
    data: tuple[Path, Path], crafted: Path, text: str, said: str
) -> None:
    forge(crafted, files={SEALED: text.encode("latin-1")})
    found = refused(
        crafted, data[1]
    ).replace(
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",  # before msgspec 0.23
        "Invalid UTF-8 encoded string",
    )
    assert found == f"{crafted}: {SEALED} is damaged: {said}"


def test_a_list_of_what_was_seen_that_is_too_large_is_not_read(
    data: tuple[Path, Path], crafted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.evaluation.seen._SEALED_BYTES", 1000)
    forge(crafted, files={SEALED: b"[" * 1001})
    assert refused(crafted, data[1]) == (
        f"{crafted}: {SEALED} has 1,001 bytes; at most 1,000 are read"
    )


def test_a_bundle_that_does_not_say_what_it_was_made_with_calls_nothing_fresh(
    data: tuple[Path, Path], crafted: Path
) -> None:
    forge(crafted, lambda record: record["files"].pop(SEALED))
    assert refused(crafted, data[1]) == (
        f"{crafted} has no {SEALED}, so the data that it was made with isn't known, and no data "
        "counts as fresh: test the bundle that it was packed from, with its evidence, or make the bundle again"
    )
