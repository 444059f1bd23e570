"""Area and clock of a design, by synthesis, place and route with open tools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.errors import CandidateError
from hasten.fpga import toolchain
from hasten.fpga.design import HARNESS, TOP
from hasten.fpga.parts import Part

_USED = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", re.MULTILINE)
_AIMED_MHZ = 250
"""Above what these parts reach, so that the tools don't rest."""


@dataclass(frozen=True)
class Routed:
    """A design on a part.

    Attributes:
        clock_hz: The highest that it runs at.
        used: Of each resource, how much it takes, the harness included.
        available: Of each resource, how much there is.
    """

    clock_hz: float
    used: dict[str, int]
    available: dict[str, int]


def synthesize(sources: list[Path], part: Part, folder: Path, limit_s: float) -> Path:
    """Map a design in its harness to a part's cells.

    Args:
        sources: Verilog files.
        part: For which.
        folder: Where netlist and log go.
        limit_s: How long it may take.

    Returns:
        The netlist.

    Raises:
        CandidateError: yosys failed or took too long, or the part has too little logic.
        InputError: yosys isn't installed.
    """
    netlist, counts = folder / "netlist.json", folder / "cells.json"
    script = (
        f"read_verilog {_names(sources)}; "
        f"{part.synthesis} -top {HARNESS} -json {_quoted(netlist)}; "
        f"tee -q -o {_quoted(counts)} stat -json"
    )
    toolchain.run(
        "yosys",
        ["-q", "-p", script],
        sources[0].parent,
        folder / "synthesis.log",
        limit_s=limit_s,
    )
    cells = json.loads(counts.read_text())["design"]["num_cells_by_type"]
    logic = cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0) + cells.get("SB_LUT4", 0)
    if logic > part.luts:
        raise CandidateError(too_large(part, part.logic, logic, part.luts))
    return netlist


def route(
    netlist: Path, part: Part, folder: Path, *, limit_s: float, seed: int = 1, threads: int = 1
) -> Routed:
    """Place and route a netlist.

    Args:
        netlist: yosys's.
        part: For which.
        folder: Where report, configuration and log go.
        limit_s: How long it may take.
        seed: Of the placement.
        threads: Of the refinement.

    Raises:
        CandidateError: it doesn't fit (which resource, by how much), can't be routed, or took too
            long.
        InputError: the router isn't installed.
    """
    folder = folder.resolve()
    report, log = folder / "route.json", folder / "route.log"
    written = "--textcfg" if part.router == "nextpnr-ecp5" else "--asc"
    free = (
        ["--lpf-allow-unconstrained"]
        if part.router == "nextpnr-ecp5"
        else ["--pcf-allow-unconstrained"]
    )
    arguments = [
        *part.options,
        *free,
        *("--json", str(netlist.resolve())),
        *("--freq", str(_AIMED_MHZ), "--timing-allow-fail"),
        *("--seed", str(seed)),
        # The router's own refinement anneals: minutes where this takes seconds.
        *("--parallel-refine", "--threads", str(threads)),
        *("--report", str(report), written, str(folder / "configuration.txt")),
    ]
    try:
        toolchain.run(part.router, arguments, folder, log, limit_s=limit_s)
    except CandidateError:
        if log.exists() and (why := _overfull(log.read_text(errors="replace"), part)):
            raise CandidateError(why) from None
        raise
    return _read(json.loads(report.read_text()))


def _names(sources: Sequence[Path]) -> str:
    """Files as yosys's commands take them, which run beside them."""
    return " ".join(f'"{file.name}"' for file in sources)


def _quoted(path: Path) -> str:
    """A path as yosys's commands take it.

    Raises:
        CandidateError: it has a quotation mark in it, which they don't take at all.
    """
    if '"' in str(path.resolve()):
        raise CandidateError(f"yosys can't write to a path with a quotation mark: {path}")
    return f'"{path.resolve()}"'


def _read(report: dict[str, Any]) -> Routed:
    clocks = [clock["achieved"] for clock in report.get("fmax", {}).values()]
    if not clocks:
        raise CandidateError("the router states no clock: the design has no path between registers")
    usage = report["utilization"]
    return Routed(
        1e6 * min(clocks),
        {name: int(entry["used"]) for name, entry in usage.items()},
        {name: int(entry["available"]) for name, entry in usage.items()},
    )


def _overfull(log: str, part: Part) -> str:
    """Say which resource a part has too little of, where that is why a router gave up."""
    for name, used, available in _USED.findall(log):
        if int(used) > int(available):
            return too_large(part, name, int(used), int(available))
    return ""


def too_large(part: Part, resource: str, used: int, available: int) -> str:
    """Say which resource a part has too little of, and by how much."""
    return (
        f"doesn't fit {part.name}: it needs {used:,} {resource} of {available:,} "
        f"({used / max(1, available):.1f} times)"
    )


def count(sources: list[Path], family: str, folder: Path, limit_s: float) -> dict[str, int]:
    """Count the cells that yosys maps a design to on a family of AMD's: counts, and no latency.

    Args:
        sources: Verilog files.
        family: yosys's name: "xc7", "xcup".
        folder: Where the log goes.
        limit_s: How long it may take.

    Returns:
        Lookup tables, carry chains and registers.

    Raises:
        CandidateError: yosys failed or took too long.
        InputError: yosys isn't installed.
    """
    found = folder / f"cells-{family}.json"
    script = (
        f"read_verilog {_names([file for file in sources if file.stem != HARNESS])}; "
        f"synth_xilinx -family {family} -top {TOP} -noiopad -noclkbuf; "
        f"tee -q -o {_quoted(found)} stat -json"
    )
    toolchain.run(
        "yosys", ["-q", "-p", script], sources[0].parent, folder / f"{family}.log", limit_s=limit_s
    )
    cells: dict[str, int] = json.loads(found.read_text())["design"]["num_cells_by_type"]
    kinds = {"LUT": ("LUT",), "CARRY": ("CARRY",), "FF": ("FD",)}
    return {
        kind: sum(n for name, n in cells.items() if name.startswith(prefixes))
        for kind, prefixes in kinds.items()
    }
