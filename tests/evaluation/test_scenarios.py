"""A bundle under load."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.support.quick import quick_runs

import hasten
from hasten.cli import main
from hasten.core.records import to_record
from hasten.evaluation.scenarios import LoadTest, in_words, try_in_words
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.measure.closed_loop import Block
from hasten.measure.scenario import Load, Offer, Scenario
from hasten.measure.under_load import Generator


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("hasten.measure.under_load._TRIES", 2)
    with quick_runs(races=False):
        yield


@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_a_bundle_has_figures_of_a_scenario(exact_bundle: Path, scenario: Scenario) -> None:
    found = hasten.load_test(exact_bundle, scenario, duration_s=0.2)
    assert found.load is not None
    assert found.load.requests >= 100
    assert (found.threads, found.sessions, found.requests) == (1, 1, "4 kept in the bundle")
    assert found.tries == ()


def test_a_server_is_given_the_highest_rate_within_the_bound(exact_bundle: Path) -> None:
    heard: list[Load] = []
    x = np.random.default_rng(0).standard_normal((8, 16), np.float32)
    found = hasten.load_test(
        exact_bundle, "server", latency_bound_s=300.0, data=x, duration_s=0.05, listen=heard.append
    )
    assert found.requests == "samples of the data"
    assert found.load is not None
    assert found.load.holds
    assert found.load.offer.bound_ns == 300 * 10**9
    assert len(found.tries) >= 2
    # The last run is one of its own: nothing that was tried before has its arrivals.
    assert found.load.offer.seed not in {load.offer.seed for load in found.tries}
    assert [load.offer for load in heard] == [
        *(load.offer for load in found.tries),
        found.load.offer,
    ]


def test_a_bound_that_no_request_meets_has_no_rate(exact_bundle: Path) -> None:
    found = hasten.load_test(exact_bundle, "server", latency_bound_s=1e-9, duration_s=0.05)
    assert found.load is None
    assert [load.holds for load in found.tries] == [False]  # one run shows it
    first, *rest = in_words(found)
    assert first.startswith("server: no rate down to ")
    assert first.endswith("/s keeps 99% within 1e-06 ms")
    assert rest[1] == "measured with hasten's own load generator; not an MLPerf result"


class Scripted:
    """A worker that answers 100 requests a second, and whose runs hold as they are told."""

    def __init__(self, *holds: bool) -> None:
        self.holds = list(holds)

    def ask(self, do: str, **command: Any) -> Any:
        if do == "drive":
            return to_record(Block((10**7,) * 100, 10**9))
        offer: Offer = command["offer"]
        held = self.holds.pop(0)
        return to_record(Load(offer, 1000, 1.0, 1.0, 1.0, 1.0, 1.0, 0, held))


def best(samples: Spool, *holds: bool) -> tuple[float | None, list[float]]:
    """The rate that is given, and all that were tried before."""
    worker: Any = Scripted(*holds)
    generator = Generator(worker, samples, "server", 0.1, lambda load: None)
    load = generator.best(10**8, seed=0)
    return (
        None if load is None else load.offer.rate_per_s,
        [one.offer.rate_per_s for one in generator.tries],
    )


def test_a_rate_that_does_not_hold_again_is_not_given_but_one_below_it(tmp_path: Path) -> None:
    samples = write_spool(ArrayDataset({"x": np.zeros((2, 1))}), tmp_path / "samples")
    assert best(samples, True, False, True) == (50.0, [50.0, 75.0])
    rate, tried = best(samples, True, True, False, False, True)
    assert rate == pytest.approx(0.9 * 75)
    assert tried == pytest.approx([50, 75, 75, 0.95 * 75])
    rate, tried = best(samples, True, True, False, False, False, False)
    assert rate is None
    assert len(tried) == 6


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"scenario": "edge"}, "the scenario is single-stream, server or offline: got 'edge'"),
        (
            {"scenario": "server"},
            "the server scenario needs a latency bound: give latency_bound_s=",
        ),
        (
            {"scenario": "offline", "latency_bound_s": 1.0},
            "the scenario offline has no latency bound: leave it out",
        ),
        (
            {"scenario": "server", "latency_bound_s": 0.0},
            "the latency bound is in seconds, above 0 and below 600: got 0.0",
        ),
        (
            {"scenario": "offline", "duration_s": float("nan")},
            "the duration is in seconds, above 0 and below 600: got nan",
        ),
        (
            {"scenario": "offline", "sessions": 2},
            "the sessions share 1 threads, and each needs at least one: got 2",
        ),
        (
            {"scenario": "single-stream", "sessions": 2},
            "the scenario single-stream uses one session: got 2",
        ),
        (
            {"scenario": "offline", "sessions": 0},
            "the sessions share 1 threads, and each needs at least one: got 0",
        ),
    ],
)
def test_what_can_not_be_asked_is_refused(
    exact_bundle: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(hasten.InputError) as error:
        hasten.load_test(exact_bundle, **options)
    assert str(error.value) == why


def load(scenario: Scenario, **offered: Any) -> Load:
    offer = Offer(scenario, 1000, 5.0, 143.2, **offered)
    return Load(offer, 1204, 142.9, 5e6, 5.1e6, 9e6, 14.2e6, 2, True)


@pytest.mark.parametrize(
    ("found", "first"),
    [
        (
            load("server", bound_ns=20_000_000),
            "server: 143.2 requests a second, at random times, with 99% within 20 ms (99% confident "
            "if they are independent; n=1,204: 2 over); p50 5.1 ms, p99 14.2 ms",
        ),
        (load("single-stream"), "single-stream: p90 9 ms, p50 5.1 ms, p99 14.2 ms (n=1,204)"),
        (load("offline"), "offline: 142.9 samples a second (n=1,204)"),
    ],
)
def test_figures_name_the_scenario_and_are_called_no_mlperf_result(found: Load, first: str) -> None:
    test = LoadTest(found.offer.scenario, found, (), 1, 2, "random numbers", ("be quiet",))
    assert in_words(test) == [
        first,
        "2 sessions of 1 thread, batch 1, requests: random numbers",
        "measured with hasten's own load generator; not an MLPerf result",
        "note: be quiet",
    ]


def test_a_p99_of_few_requests_is_not_claimed() -> None:
    few = replace(load("single-stream"), requests=661)
    shown = in_words(LoadTest("single-stream", few, (), 1, 1, "random numbers"))
    assert shown[0] == "single-stream: p90 9 ms, p50 5.1 ms, p99 not established (n=661)"


def test_each_try_is_a_line() -> None:
    assert try_in_words(load("server", bound_ns=20_000_000)) == (
        "server: 143.2/s, 2 of 1,204 over 20 ms: held"
    )
    assert try_in_words(load("offline")) == "offline: 1,204 requests"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_bench_runs_a_scenario(exact_bundle: Path) -> None:
    words = ("--scenario", "server", "--latency-bound", "300s", "--duration", "0.1s")
    shown = run("bench", exact_bundle, *words)
    assert shown.exit_code == 0, shown.output
    first, second, third, *_ = shown.stdout.splitlines()
    assert first.startswith("server: ")
    assert " with 99% within 300000 ms " in first
    assert second == "1 session of 1 thread, batch 1, requests: 4 kept in the bundle"
    assert third.endswith("; not an MLPerf result")
    assert shown.stderr.count("server: ") >= 3


def test_bench_gives_a_scenario_as_json(exact_bundle: Path) -> None:
    words = ("--scenario", "offline", "--duration", "0.1s", "--json")
    record = json.loads(run("bench", exact_bundle, *words).stdout)
    assert (record["scenario"], record["load"]["offer"]["scenario"]) == ("offline", "offline")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ("--latency-bound", "20ms"),
            "--latency-bound, --sessions and --duration need a --scenario: add one",
        ),
        (
            ("--sessions", "2"),
            "--latency-bound, --sessions and --duration need a --scenario: add one",
        ),
        (
            ("--scenario", "offline", "--against", "a.onnx"),
            "a scenario runs only the bundle: leave out --against or --scenario",
        ),
    ],
)
def test_words_that_do_not_go_together_are_refused(
    exact_bundle: Path, words: tuple[str, ...], why: str
) -> None:
    shown = run("bench", exact_bundle, *words)
    assert (shown.exit_code, shown.stderr) == (2, f"hasten: {why}\n")


def test_a_latency_has_a_unit(exact_bundle: Path) -> None:
    shown = run("bench", exact_bundle, "--scenario", "server", "--latency-bound", "20")
    assert shown.exit_code == 2
    assert "'20' is not a latency; write 20ms, 500us, 200ns or 0.02s" in shown.stderr
