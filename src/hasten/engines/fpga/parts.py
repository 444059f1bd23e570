"""FPGAs for which open tools place and route designs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FpgaPart:
    """FPGA in a particular package.

    Attributes:
        name: Name that the vendor gives it.
        synthesis: Command of yosys for its family.
        router: Program that places and routes for its family.
        options: Options by which the router selects the part.
        logic: Name of its logic cells in the router's report.
        luts: Number of its logic cells.
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


# Sizes: Lattice FPGA-DS-02012, table 1.1; FPGA-DS-02029, table 2.1; FPGA-DS-02008, table 2.1; for
# the ECP5 the routers count two for each of the slices in the 20 KiB..84 KiB rows.
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
"""FPGA parts by the NAME in `fpga:NAME`."""
