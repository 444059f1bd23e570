"""Which architectures fit a budget: only what was measured and fits, and what is the fastest if none does."""

import contextlib
import dataclasses
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.lightening.conftest import float_alone
from tests.support.quick import quick_runs

from hasten.cli import main
from hasten.core.progress import Progress
from hasten.core.target import Target
from hasten.engines.null import Null
from hasten.errors import InputError
from hasten.lightening.architectures.building import multiply_adds
from hasten.lightening.prospects import Prospect
from hasten.lightening.shortlisting import Shortlist
from hasten.lightening.shortlisting import shortlist as run
from hasten.lightening.shortlisting.cache import LatencyCache, Measured
from hasten.lightening.shortlisting.estimates import Estimates, _guess
from hasten.lightening.shortlisting.options import Option, options
from hasten.lightening.shortlisting.search import Search, nothing_fits, slow_kinds
from hasten.lightening.shortlisting.untrained import written

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

SHAPE = (3, 16, 16)
QUICK: Any = {
    "engines": ("onnxruntime",),
    "architectures": ("lcnet-s8",),
    "target": Target.host().with_threads(1),
}


def found(
    folder: Path,
    budget_s: float = 10.0,
    listen: list[Progress] | None = None,
    *,
    int8: bool = False,
    **options: Any,
) -> Shortlist:
    """Return the shortlist; without `int8`, networks that are measured are so in float alone."""
    heard: list[Progress] = [] if listen is None else listen
    asked = QUICK | options
    with contextlib.ExitStack() as quick:
        quick.enter_context(quick_runs())
        if not int8:
            quick.enter_context(float_alone())
        return run("classify", 4, SHAPE, budget_s, cache=folder, listen=heard.append, **asked)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    found(folder, time_limit_s=math.inf, int8=True)
    return folder


@pytest.mark.seconds
def test_only_what_fits_is_on_the_list_and_the_most_promising_of_a_family(cache: Path) -> None:
    result = found(cache)
    (one,) = result.entries
    assert one.family == "lcnet"
    assert one.promise == max(entry.promise for entry in result.measured)
    assert one.prospect.latency_ns <= result.budget_ns == 10e9
    assert one.madds > 0 < one.parameters
    assert result.complete


def test_a_tight_budget_leaves_out_what_takes_longer(cache: Path) -> None:
    every = found(cache).measured
    between = (every[0].prospect.latency_ns + every[-1].prospect.latency_ns) / 2
    result = found(cache, between / 1e9)
    assert all(entry.prospect.latency_ns <= between for entry in result.entries)
    assert result.entries


def test_a_second_call_reads_what_the_first_one_measured(cache: Path) -> None:
    told: list[Progress] = []
    first, second = found(cache), found(cache, listen=told)
    assert told == []  # nothing was written or timed
    assert first == second


def test_fresh_measures_again(cache: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    own = shutil.copytree(cache, tmp_path / "own")
    found(own, listen=told, fresh=True, time_limit_s=0.1)
    assert any(one.outcome for one in told)


def test_a_budget_that_nothing_meets_names_the_fastest(cache: Path) -> None:
    with pytest.raises(InputError) as refused:
        found(cache, 1e-9)
    text = str(refused.value)
    assert text.startswith(
        "no architecture of the catalogue answers 3x16x16 in 1e-06 ms on this machine: the fastest "
        "is lcnet-s"
    )
    least_ms = float(text.partition(" ms; give at least that")[0].rpartition(" ")[2])
    assert found(cache, least_ms / 1e3).entries


def test_a_search_that_was_cut_short_says_so_of_the_fastest(cache: Path) -> None:
    entries = found(cache).entries
    may = options("classify", SHAPE, ("lcnet-s8",))["lcnet"][0]
    text = str(nothing_fits(SHAPE, 1e-9, entries[:1], {}, untimed=7, may=may))
    assert text.startswith("none of the 1 networks that could be timed within the time limit")
    assert (
        f"and 7 weren't timed: others may fit, such as {may.name}. The fastest so far is " in text
    )
    assert text.endswith("call again to continue, or give a longer time limit")


class Slow(Search):
    """A search on a host that is slower than was thought, and on which each measurement takes 10 s."""

    taken_s = 10.0
    clock: float
    usual: Prospect

    def _measure(self, batch: Sequence[Option]) -> None:
        self.clock += self.taken_s * len(batch)
        for option in batch:
            ns = 10 * _guess(option)  # the host is ten times as slow as was thought
            self._note(option, Measured(1, 1, dataclasses.replace(self.usual, latency_ns=ns)))


@pytest.mark.parametrize("insists", [True, False])
def test_while_nothing_fits_and_something_may_a_slow_host_only_takes_longer(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insists: bool
) -> None:
    families = options("classify", SHAPE, ("lcnet-s8", "mobilenetv4-small-s8", "resnet10-s8"))
    search = Slow(
        families=families,
        classes=4,
        input_shape=SHAPE,
        budget_ns=10.5 * min(_guess(one) for own in families.values() for one in own),
        engines=("onnxruntime",),
        target=QUICK["target"],
        cache=LatencyCache.of(tmp_path, 4, SHAPE, ("onnxruntime",), QUICK["target"]),
        fresh=True,
        folder=tmp_path,
        deadline=10.0,
        latest=1000.0 if insists else 10.0,
        listen=lambda _: None,
    )
    search.clock = 0.0
    search.usual = found(cache).entries[0].prospect
    monkeypatch.setattr(time, "monotonic", lambda: search.clock)
    estimates = Estimates(families, search.budget_ns)
    search.run(estimates)
    fitting = [one for one in search.entries() if one.prospect.latency_ns <= search.budget_ns]
    assert bool(fitting) == insists


@pytest.mark.parametrize(
    "name",
    ["lcnet-s8", pytest.param("mobileone-s0-s8", marks=pytest.mark.seconds), "vit-tiny-s8"],
)
def test_what_is_written_takes_as_many_products_as_the_catalogue_counts(
    tmp_path: Path, name: str
) -> None:
    (own,) = options("classify", (3, 32, 32), (name,)).values()
    option = min(own, key=lambda one: one.madds)
    one = written(option, 4, (3, 32, 32), tmp_path)
    counted = multiply_adds(option.architecture, 4, (3, 32, 32), option.width, option.pixels)
    assert (one.madds, one.parameters) == counted


def test_a_cache_that_cannot_be_read_is_measured_anew(cache: Path, tmp_path: Path) -> None:
    own = shutil.copytree(cache, tmp_path / "own")
    files = list((own / "prospects").iterdir())
    for file in files:
        file.write_text("{}")
    assert found(own, time_limit_s=0.1).entries
    assert any(file.stat().st_size > 10 for file in files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", 4, SHAPE, 0.0), "the budget is in seconds, above 0: got 0.0"),
        (("classify", 0, SHAPE, 1.0), "a network needs at least 1 class: got 0"),
        (
            ("classify", 4, (16, 16), 1.0),
            "a sample is (channels, height, width), each above 0: got (16, 16)",
        ),
        (("segment", 4, SHAPE, 1.0), "the task is classify or detect: got 'segment'"),
        (
            ("classify", 4, (3, 6, 6), 1.0),
            "an input of 3x6x6 is too small for these architectures: give a longer side of 8 pixels "
            "or more",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        run(*arguments, cache=tmp_path)  # type: ignore[arg-type]
    assert str(refused.value) == message


def test_a_detector_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        options("classify", SHAPE, ("ssdlite",))
    assert str(refused.value) == "the architecture ssdlite can't classify"


def test_what_to_measure_next_follows_from_what_was_measured() -> None:
    """A world in which latency is what multiply-adds say, three times what is guessed at first."""
    families = options("classify", (3, 64, 64), ("lcnet", "resnet10"))
    estimates = Estimates(families, budget_ns=1e6)
    batch = estimates.first(("resnet10", "lcnet"))
    looks = 0
    while batch:
        for option in batch:
            estimates.learn(option, 0.045 * option.madds)
            looks += 1
        batch = estimates.next(6, 0.5)
    for name, own in families.items():
        fitting = [one for one in own if 0.045 * one.madds <= 1e6]
        best = max(one.promise for one in fitting)
        known = [one.promise for one, ns in estimates.taken[name].items() if ns <= 1e6]
        assert best - max(known) < 3
    assert looks <= 8


def test_a_way_far_behind_on_all_networks_is_not_tried_again() -> None:
    def prospect(best: str, others: dict[str, float]) -> Prospect:
        return Prospect(best, "f32", 1.0, 1.0, 1.0, 1, Null(), (), others=others)

    best = "original, ONNX Runtime"
    first = prospect(best, {"int8 (NNCF), OpenVINO": 2.0, "original, LiteRT": 1.1})
    second = prospect(best, {"int8 (NNCF, zero points), OpenVINO": 3.0, "original, LiteRT": 4.0})
    assert slow_kinds([first, second, None]) == {"int8, OpenVINO"}


def test_the_command_prints_a_table_and_json(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "host", lambda: QUICK["target"])  # as in the cache
    words = ["shortlist", "--classes", "4", "--input", "3x16x16", "--budget", "10s"]
    words += ["--engine", "onnxruntime", "--architecture", "lcnet-s8", "--cache", str(cache)]
    shown = CliRunner().invoke(main, [*words, "--top", "3"])
    assert shown.exit_code == 0, shown.output
    assert "architecture" in shown.stdout
    assert "lcnet-s8" in shown.stdout
    record = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert record["entries"][0]["family"] == "lcnet"


def test_a_shape_of_another_form_is_refused_in_one_line() -> None:
    words = ["shortlist", "--classes", "4", "--input", "64x64", "--budget", "2ms"]
    refused = CliRunner().invoke(main, words, prog_name="hasten")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "hasten: Invalid value for '--input': '64x64' is not a shape; write channels x height x width: "
        "3x64x64; see hasten shortlist --help\n"
    )
