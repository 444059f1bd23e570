"""What the command line says of devices, and of bundles for those that aren't here."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import parser
from tests.support import ragged, tasks
from tests.support.quick import quick_runs

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.cli.card import details
from hasten.core.devices import at_hand
from hasten.core.invocation import Invocation
from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.engines.estimates import Estimate
from hasten.errors import InputError, IntegrityError
from hasten.evaluation.doctor import target_in_words
from hasten.reporting.estimate_rows import columns, headline, latency_of
from hasten.reporting.result import Asked, EstimateRow, Estimates, Result
from hasten.testing import models

WITHOUT_FPGA = pytest.mark.skipif(
    importlib.util.find_spec("da4ml") is not None, reason="the extra fpga is installed"
)


@pytest.fixture
def quick() -> Iterator[None]:
    with quick_runs():
        yield


def said(*arguments: object) -> str:
    """Run a command that must end with 2, and return its one line."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_a_target_that_there_is_none_of_is_refused(tmp_path: Path) -> None:
    line = said("optimize", "m.onnx", "--data", "e.npz", "--target", "gpu")
    assert line.startswith(
        "hasten: no target is called 'gpu'; the targets are: host, cuda, tpu, fpga, "
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("--objective", "p99"), ("--small-model", "small.onnx"), ("--latency-bound", "5ms")],
)
def test_what_needs_the_device_is_refused_without_it(option: str, value: str) -> None:
    line = said("optimize", "m.onnx", "--data", "e.npz", "--target", "fpga", option, value)
    assert line == (
        f"hasten: {option} needs measured latencies, but fpga:ecp5-85k isn't available: leave it "
        "out"
    )


@WITHOUT_FPGA
def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    line = said(
        "optimize", models.linear_classifier(tmp_path), "--data", "e.npz", "--target", "fpga"
    )
    wanted = "a design for an FPGA needs da4ml: pip install 'hasten[fpga]'"
    assert line == f"hasten: no engine to try: {wanted}"
    assert target_in_words("fpga") == f"FPGA, absent: {wanted}"
    assert not list(tmp_path.glob("*.work"))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is not None,
    reason="the extra gpu is installed",
)
def test_an_engine_that_needs_the_device_makes_nothing_without_it(tmp_path: Path) -> None:
    """torch and ONNX Runtime are here, and run on GPUs that are here."""
    wanted = "TensorRT for RTX isn't installed (No module named 'tensorrt_rtx_bindings'): pip install 'hasten[gpu]'"
    assert target_in_words("cuda") == f"NVIDIA GPU, absent: {wanted}"
    model = models.linear_classifier(tmp_path)
    line = said("optimize", model, "--data", "e.npz", "--target", "cuda:sm80")
    assert line == f"hasten: no engine to try: {wanted}"


def test_doctor_lists_every_target_in_one_line_each() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    lines = dict(line.split(":", 1) for line in result.output.splitlines())
    for name in ("cuda", "tpu", "fpga", "npu", "igpu", "qnn", "litert", "coreml"):
        assert any(word in lines[name] for word in ("present", "compile-only", "absent")), name


@pytest.mark.seconds
def test_a_small_network_for_an_interpreter_elsewhere_is_made_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs hasten[litert]")
    monkeypatch.chdir(tmp_path)
    _, (x, y) = tasks.digits()
    made = hasten.optimize(tasks.small_cnn(10), ({"input": x}, y), target="litert", max_drop=0.05)
    assert made.status == "uncertified"
    assert made.why.startswith(
        "judged on this host; the last bits of answers may differ on a LiteRT interpreter"
    )
    assert made.why.endswith(
        "to certify it there, run on the device: hasten certify model.hasten --data new.npz --max-drop 5%"
    )
    shipped = made.shipped
    assert shipped is not None
    assert (shipped.latency_ns, shipped.unit) == (None, "bytes")
    assert "int8" in shipped.label
    with pytest.raises(InputError) as error:
        hasten.bench(made.bundle)
    assert str(error.value) == (
        "litert isn't available, and its stand-in on this host says nothing about its speed: see "
        "the figures of the device's own tools in the bundle's report"
    )
    with pytest.warns(UserWarning, match="not certified here: judged on this host"):
        loaded = hasten.load(made.bundle)
    with loaded as model:
        assert model({"input": x[:1]})["output"].shape == (1, 10)
    shown = CliRunner().invoke(main, ["inspect", str(made.bundle)])
    assert "made for:     litert" in shown.output
    told = CliRunner().invoke(main, ["report", str(made.bundle), "--json"])
    assert json.loads(told.stdout)["result"]["estimates"]["winner"] == shipped.label
    page = hasten.report(made.bundle).read_text()
    assert "No latency is known before it runs on the device." in page


def test_samples_that_differ_in_shape_are_refused_for_a_device_that_takes_one(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs hasten[litert]")
    data, out = tmp_path / "e.npz", tmp_path / "b.hasten"
    hasten.save_ragged(data, ragged.sentences(60))
    line = said(
        *("optimize", ragged.encoder(tmp_path), "--data", data, "--target", "litert", "--out", out)
    )
    assert line == (
        "hasten: samples differ in shape (dimension 1 of ids and mask from 3 to 21 (median 8, nine in ten up to "
        "16)), and a model for litert has one shape: pad, crop or resize them to one"
    )
    assert not out.exists()


def summing(folder: Path) -> Path:
    """A classifier with an operator that LiteRT's converter knows nothing of."""
    text = """<ir_version: 10, opset_import: ["": 17]>
        summing (float[batch, 16] x) => (float[batch, 16] logits)
        <int64 axis = {1}> { logits = CumSum(x, axis) }"""
    onnx.save(parser.parse_model(text), folder / "summing.onnx")
    return folder / "summing.onnx"


@pytest.mark.seconds
def test_where_nothing_for_the_device_ships_the_command_says_why_and_the_bundle_is_this_hosts(
    tmp_path: Path, quick: None
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs hasten[litert]")
    x = np.random.default_rng(0).standard_normal((60, 16), dtype=np.float32)
    np.savez(tmp_path / "e.npz", x=x)
    out = tmp_path / "b.hasten"
    run = CliRunner().invoke(
        main,
        [
            *("optimize", str(summing(tmp_path)), "--data", str(tmp_path / "e.npz")),
            *("--target", "litert", "--out", str(out)),
        ],
    )
    assert run.exit_code == 1, (run.output, run.exception)
    title, *lines = run.stdout.splitlines()
    assert title == "Nothing for the device ships"
    assert lines[0].split(":", 1) == [
        "ships",
        "  nothing for litert (LiteRT interpreter elsewhere); the bundle holds the original, for this host",
    ]
    (why,) = (line for line in lines if line.startswith("exact:"))
    begins, failed, ends = why.split("; ")
    assert begins.endswith("no model for the device is accurate enough")
    assert failed.startswith("original, LiteRT reference kernels: ")
    assert "CumSum" in failed
    assert "failed:" not in failed
    assert ends == "the bundle holds the original, for this host"
    label, _, reason = failed.partition(": ")
    assert f"- {label[0].upper()}{label[1:]} was skipped: {reason.removesuffix('.')}." in lines
    assert read(out).target == Target.host()
    shown = CliRunner().invoke(main, ["inspect", str(out)])
    assert "made for:" not in shown.output
    assert "this machine: matches the one it was made on" in shown.output
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hasten.load(out) as model:
            assert np.allclose(model(x[:1])["logits"], x[:1].cumsum(1), atol=1e-5)
    assert hasten.bench(out, rounds=4).bundle.label
    assert "Nothing for the device ships." in hasten.report(out).read_text()


ASKED = Asked(Invocation(), "top_k", "top-1 accuracy", "net", 0.01, 0.95, 0, 10, 20)
ROW = EstimateRow(
    "small",
    "place-and-route",
    "+0.00 points lost on 10 samples",
    latency_ns=91.7,
    rank=91.7,
    unit="ns",
    figures={"cells": 5800.0, "clock_mhz": 109.1},
    limits={"cells": 83640.0},
    frontier=True,
)
ESTIMATES = Estimates(
    device="fpga:ecp5-85k",
    noun="FPGA",
    rows=(ROW, EstimateRow("large", "none", "failed: doesn't fit")),
    winner="small",
    compared="the RTL answered 30 samples as its program did",
    area="cells",
)
RESULT = Result(
    bundle=Path("m.hasten"),
    status="certified",
    why="95% confident",
    judgement=None,
    population="these",
    rows=(),
    spread=0.0,
    threads=1,
    tried={},
    notes=(),
    seconds=1.0,
    asked=ASKED,
    budget_ns=90.0,
    estimates=ESTIMATES,
)


def test_a_latency_stands_only_beside_what_was_placed_and_routed_or_measured() -> None:
    compiled = replace(
        ROW, label="compiled", source="compiler estimate", latency_ns=None, unit="cycles"
    )
    table = columns(replace(ESTIMATES, rows=(ROW, compiled)))
    assert table[1][:4] == ("ships", "small", "91.7 ns", "place-and-route")
    assert table[2][:5] == ("frontier", "compiled", "none", "compiler estimate", "92 cycles")
    assert table[1][5] == "5,800 of 83,640 (7%)"


def test_an_estimate_with_a_latency_is_refused_and_never_printed_as_one() -> None:
    said = (
        "only a measurement or place-and-route gives a latency: got 91.7 ns of the source "
        "'compiler estimate'; leave it out"
    )
    with pytest.raises(ValueError) as error:
        Estimate("compiler estimate", latency_ns=91.7)
    assert str(error.value) == said
    with pytest.raises(ValueError) as error:
        replace(ROW, source="compiler estimate")
    assert str(error.value) == said
    for cls, record in (
        (Estimate, {"source": "none", "latency_ns": 1.0}),
        (EstimateRow, crafted()),
    ):
        with pytest.raises(IntegrityError, match="only a measurement or place-and-route"):
            from_record(cls, record)
    forced = replace(ROW)
    object.__setattr__(forced, "source", "compiler estimate")
    assert latency_of(forced) == "none"
    told = replace(ESTIMATES, rows=(forced,))
    assert headline(replace(RESULT, estimates=told)) == "Made for fpga:ecp5-85k, certified"
    assert "91.7 ns" not in str(columns(told))


def crafted() -> dict[str, Any]:
    """A record that calls a compiler's estimate a latency."""
    return {**to_record(ROW), "source": "compiler estimate"}


def test_the_summary_says_that_a_budget_was_missed_and_what_failed() -> None:
    lines = details(RESULT).splitlines()
    assert "Budget: OVER the budget of 90 ns." in lines
    assert "Failed: large: doesn't fit" in lines
    assert "Compared: the RTL answered 30 samples as its program did." in lines


def test_an_unknown_device_of_a_bundle_is_this_host() -> None:
    odd = Target.host().with_device("quantum:1", present=True)
    assert at_hand(odd).kind == "host"
