"""The FPGAs that designs are placed and routed for, by open tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FpgaPart:
    """One FPGA in one package.

    Attributes:
        name: The vendor's.
        synthesis: yosys's command for its family.
        router: The program that places and routes for its family.
        options: The part, for that program.
        logic: What holds logic, by that program's name for it.
        luts: How many there are of it.
    """

    name: str
    synthesis: str
    router: str
    options: tuple[str, ...]
    logic: str
    luts: int


def _ecp5(size: str, luts: int, grade: int) -> FpgaPart:
    return FpgaPart(
        f"Lattice LFE5U-{size.upper()[:-1]}F-{grade}, CABGA381",
        "synth_ecp5",
        "nextpnr-ecp5",
        (f"--{size}", "--package", "CABGA381", "--speed", str(grade), "--router", "router2"),
        "TRELLIS_COMB",
        luts,
    )


def _ice40(name: str, device: str, package: str, luts: int) -> FpgaPart:
    options = (f"--{device}", "--package", package)
    return FpgaPart(name, "synth_ice40", "nextpnr-ice40", options, "ICESTORM_LC", luts)


# Sizes: Lattice FPGA-DS-02012, table 1.1; FPGA-DS-02029, table 2.1; FPGA-DS-02008, table 2.1; the
# routers' own count of ECP5's is two for each of the 20 KiB..84 KiB rows' slices.
PARTS: Mapping[str, FpgaPart] = {
    "ecp5-85k": _ecp5("85k", 83640, 6),
    "ecp5-45k": _ecp5("45k", 43848, 6),
    "ecp5-25k": _ecp5("25k", 24288, 6),
    "ecp5-85k-8": _ecp5("85k", 83640, 8),
    "ecp5-45k-8": _ecp5("45k", 43848, 8),
    "ecp5-25k-8": _ecp5("25k", 24288, 8),
    "ice40-hx8k": _ice40("Lattice iCE40HX8K, CT256", "hx8k", "ct256", 7680),
    "ice40-up5k": _ice40("Lattice iCE40UP5K, SG48", "up5k", "sg48", 5280),
}
"""Of `fpga:NAME`, by name."""
