"""Area and clock of a design, by synthesis, place and route with open tools."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.engines.fpga import toolchain
from hasten.engines.fpga.design import HARNESS, TOP
from hasten.engines.fpga.parts import FpgaPart
from hasten.errors import CandidateError

_USED = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", re.MULTILINE)
_NETLIST, _COUNTS = "netlist.json", "cells.json"
_AIMED_MHZ = 250
"""Clock to aim at, above what these parts reach, so that the tools keep optimizing."""


@dataclass(frozen=True)
class Routed:
    """Outcome of placing and routing a design on a part.

    Attributes:
        clock_hz: Highest clock that the design runs at.
        used: Amount of each resource that the design takes, with its harness.
        available: Amount of each resource that the part has.
    """

    clock_hz: float
    used: dict[str, int]
    available: dict[str, int]


def synthesize(sources: list[Path], part: FpgaPart, folder: Path, limit_s: float) -> Path:
    """Map a design in its harness to a part's cells.

    Args:
        sources: Verilog files of the design.
        part: Part to map to.
        folder: Folder for the netlist and the log.
        limit_s: Limit on the time in seconds.

    Returns:
        Path of the netlist.

    Raises:
        CandidateError: yosys failed or took too long, or the part has too little logic.
        InputError: yosys isn't installed.
    """
    log = folder / "synthesis.log"
    counts = _yosys(sources, f"{part.synthesis} -top {HARNESS} -json {_NETLIST}", log, limit_s)
    netlist = Path(shutil.move(sources[0].with_name(_NETLIST), folder / _NETLIST))
    logic = counts.get("LUT4", 0) + 2 * counts.get("CCU2C", 0) + counts.get("SB_LUT4", 0)
    if logic > part.luts:
        raise CandidateError(too_large(part, part.logic, logic, part.luts))
    return netlist


def route(
    netlist: Path, part: FpgaPart, folder: Path, *, limit_s: float, seed: int = 1, threads: int = 1
) -> Routed:
    """Place and route a netlist.

    Args:
        netlist: Netlist of yosys, in `folder`.
        part: Part to place on.
        folder: Folder for the report, the configuration and the log.
        limit_s: Limit on the time in seconds.
        seed: Seed of the placement.
        threads: Number of threads for the refinement.

    Raises:
        CandidateError: the design doesn't fit (the message names the resource and the excess),
            can't be routed, or took too long.
        InputError: the router isn't installed.
    """
    report, log = folder / "route.json", folder / "route.log"
    written = "--textcfg" if part.router == "nextpnr-ecp5" else "--asc"
    free = (
        ["--lpf-allow-unconstrained"]
        if part.router == "nextpnr-ecp5"
        else ["--pcf-allow-unconstrained"]
    )
    # The router's default refinement anneals, which takes minutes instead of seconds. Its
    # WebAssembly build has no threads.
    threaded = not toolchain.is_wheel(part.router)
    refined = ("--parallel-refine", "--threads", str(threads)) if threaded else ()
    arguments = [
        *part.options,
        *free,
        *("--json", netlist.name),
        *("--freq", str(_AIMED_MHZ), "--timing-allow-fail"),
        *("--seed", str(seed)),
        *refined,
        *("--report", report.name, written, "configuration.txt"),
    ]
    try:
        toolchain.run(part.router, arguments, folder, log, limit_s=limit_s)
    except CandidateError:
        if log.exists() and (why := _overfull(log.read_text(errors="replace"), part)):
            raise CandidateError(why) from None
        raise
    return _read(json.loads(report.read_text()))


def _yosys(sources: Sequence[Path], command: str, log: Path, limit_s: float) -> dict[str, int]:
    """Run a command of yosys on sources, and count the cells of the result.

    yosys runs in the sources' folder and gets bare file names: its WebAssembly build sees no other
    folder.
    """
    beside = sources[0].parent
    names = " ".join(file.name for file in sources)
    script = f"read_verilog {names}; {command}; tee -q -o {_COUNTS} stat -json"
    toolchain.run("yosys", ["-q", "-p", script], beside, log, limit_s=limit_s)
    found = Path(shutil.move(beside / _COUNTS, log.with_suffix(".json")))
    cells: dict[str, int] = json.loads(found.read_text())["design"]["num_cells_by_type"]
    return cells


def _read(report: dict[str, Any]) -> Routed:
    clocks = [clock["achieved"] for clock in report.get("fmax", {}).values()]
    if not clocks:
        raise CandidateError(
            "the router reports no clock: the design has no path between registers"
        )
    usage = report["utilization"]
    return Routed(
        1e6 * min(clocks),
        {name: int(entry["used"]) for name, entry in usage.items()},
        {name: int(entry["available"]) for name, entry in usage.items()},
    )


def _overfull(log: str, part: FpgaPart) -> str:
    """Return the message about the resource that a router ran out of; "" if there was enough."""
    for name, used, available in _USED.findall(log):
        if int(used) > int(available):
            return too_large(part, name, int(used), int(available))
    return ""


def too_large(part: FpgaPart, resource: str, used: int, available: int) -> str:
    """Return the message that a part has too little of a resource, with the amounts."""
    return (
        f"doesn't fit {part.name}: it needs {used:,} {resource}, "
        f"{used / max(1, available):.1f} times the {available:,} of the part"
    )


def count(sources: list[Path], family: str, folder: Path, limit_s: float) -> dict[str, int]:
    """Count the cells that yosys maps a design to on a family of AMD's; gives no latency.

    Args:
        sources: Verilog files of the design.
        family: Name of the family in yosys: "xc7", "xcup".
        folder: Folder for the log.
        limit_s: Limit on the time in seconds.

    Returns:
        Numbers of lookup tables ("LUT"), carry chains ("CARRY") and registers ("FF").

    Raises:
        CandidateError: yosys failed or took too long.
        InputError: yosys isn't installed.
    """
    inside = [file for file in sources if file.stem != HARNESS]
    command = f"synth_xilinx -family {family} -top {TOP} -noiopad -noclkbuf"
    cells = _yosys(inside, command, folder / f"cells-{family}.log", limit_s)
    kinds = {"LUT": ("LUT",), "CARRY": ("CARRY",), "FF": ("FD",)}
    return {
        kind: sum(n for name, n in cells.items() if name.startswith(prefixes))
        for kind, prefixes in kinds.items()
    }
