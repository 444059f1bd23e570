"""Projects for AMD's tools, for those who own them: RTL for Vivado and C++ for Vitis HLS."""

from __future__ import annotations

import shutil
from pathlib import Path

from hasten.engines.fpga.design import TOP, Design
from hasten.engines.fpga.program import FpgaProgram

PART = "xcvu13p-flga2577-2-e"
"""Part that the scripts name; users replace it by their own."""


def write_projects(program: FpgaProgram, design: Design, folder: Path) -> list[Path]:
    """Write scripts and sources for AMD's tools, which hasten itself never runs.

    Args:
        program: Program that the design computes.
        design: Design whose RTL lies in `folder / "rtl"`.
        folder: Folder of the design.

    Returns:
        Paths of the files.
    """
    from da4ml.codegen import HLSModel, VerilogModel

    project = folder / "project"
    VerilogModel(design.pipeline, TOP, project, print_latency=False, part_name=PART).write()
    script = (project / "build_vivado_prj.tcl").read_text()
    for inside in ("src/static/", "src/memfiles/", "src/"):
        script = script.replace(f"${{prj_root}}/{inside}", "${prj_root}/rtl/")
    (folder / "build_vivado_prj.tcl").write_text(script)
    shutil.move(project / "src" / f"{TOP}.xdc", folder / "rtl" / f"{TOP}.xdc")
    shutil.rmtree(project)
    vitis = folder / "vitis"
    HLSModel(program.logic, TOP, vitis, flavor="vitis", print_latency=False, part_name=PART).write()
    for left_out in (
        "src/static",
        "sim",
        "model",
    ):  # headers that Vitis brings, and files that are kept elsewhere
        shutil.rmtree(vitis / left_out)
    written = [p for p in sorted(vitis.rglob("*")) if p.is_file()]
    return [folder / "build_vivado_prj.tcl", folder / "rtl" / f"{TOP}.xdc", *written]
