"""The whole run for an FPGA, on real data with real tools: the tutorial's, from its own code blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support import tasks
from tests.support.tutorials import TUTORIALS, follow

import hasten
from hasten.engines.fpga import toolchain
from hasten.errors import InputError
from hasten.reporting.evidence import gathered
from hasten.reporting.result import Estimates, Result

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")
pytest.importorskip("markdown_it", reason="needs markdown-it-py, which rich brings")
pytestmark = pytest.mark.skipif(
    any(toolchain.find(tool) is None for tool in ("verilator", "yosys", "nextpnr-ecp5")),
    reason="needs Debian's verilator, yosys and nextpnr-ecp5",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A 30-6-2 network for the breast-cancer data on the smallest ECP5, as the tutorial makes it."""
    home = tmp_path_factory.mktemp("run")
    follow(TUTORIALS / "fpga.md", home)
    bundle = home / "empty" / "cancer.hasten"
    return replace(gathered(bundle).result, bundle=bundle)  # the command was given a relative path


def estimates(made: Result) -> Estimates:
    assert made.estimates is not None
    return made.estimates


def test_a_small_network_becomes_a_certified_design(made: Result) -> None:
    assert made.status == "certified", made.why
    assert made.why.startswith("95% confident that top-1 accuracy falls by at most ")
    shipped = made.shipped
    assert shipped is not None
    assert shipped.source == "place-and-route"
    assert shipped.latency_ns == pytest.approx(
        1e3 * shipped.figures["cycles"] / shipped.figures["clock_mhz"]
    )
    assert made.within_budget is True
    assert (
        "samples that judged it as its fixed-point program did, bit for bit"
        in estimates(made).compared
    )


def test_only_designs_have_latencies_and_the_frontier_is_of_designs(made: Result) -> None:
    assert all(
        (row.latency_ns is not None) == (row.source == "place-and-route")
        for row in estimates(made).rows
    )
    frontier = [row for row in estimates(made).rows if row.frontier]
    assert frontier
    areas = [row.figures[estimates(made).area] for row in frontier]
    assert areas == sorted(areas, reverse=True)
    latencies = [row.latency_ns or 0.0 for row in frontier]
    assert latencies == sorted(latencies)


def test_the_bundle_holds_rtl_constraints_test_bench_projects_and_the_routers_report(
    made: Result,
) -> None:
    kept = {str(p.relative_to(made.bundle / "model")) for p in (made.bundle / "model").rglob("*")}
    assert {
        *(
            "design.json",
            "program.json",
            "ports.json",
            "design.lpf",
            "rtl/network.v",
            "rtl/harness.v",
        ),
        *("test_bench/test_bench.v", "test_bench/answers.mem", "build_vivado_prj.tcl"),
        *("vitis/build_vitis_prj.tcl", "device/route.json", "device/configuration.txt"),
    } <= kept


def test_the_bundle_answers_by_its_rtl_as_the_certificate_says(made: Result) -> None:
    _, (x, y) = tasks.cancer()
    with hasten.load(made.bundle) as design:
        right = [int(design({"input": row[None]})["output"].argmax()) for row in x[:100]] == y[:100]
    assert np.mean(right) > 0.9


def test_the_report_says_where_each_figure_comes_from(made: Result) -> None:
    page = (made.bundle / "report.html").read_text()
    assert "From place-and-route, not from a measurement. Within the budget of 500 ns." in page
    assert "Latency against area" in page
    again = hasten.report(made.bundle, made.bundle.parent / "again.html")
    assert again.read_text() == page
    record = json.loads((made.bundle / "evidence" / "result.json").read_bytes())
    assert record["estimates"]["device"] == "fpga:ecp5-25k"


def test_a_device_that_is_not_there_by_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        hasten.optimize("no.onnx", "no.npz", target="fpga:spartan", out=tmp_path / "x.hasten")
    assert str(error.value).startswith("no FPGA is called 'spartan'; choose one of: ecp5-85k, ")
