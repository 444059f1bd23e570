"""Engine for FPGAs: pipelined RTL, answers by simulation, area and clock by place and route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.records import read_json, write_json
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.core.words import listed
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import private
from hasten.engines.estimates import Estimate
from hasten.engines.fpga import design as rtl
from hasten.engines.fpga import program, toolchain
from hasten.engines.fpga.parts import PARTS, FpgaPart
from hasten.engines.fpga.place_and_route import count, route, synthesize, too_large
from hasten.engines.fpga.simulation import Simulation
from hasten.engines.fpga.vendor import write_projects
from hasten.errors import CandidateError

DESIGN = "design.json"
_TOOL_LIMIT_S = 3600.0
"""Limit for one tool in seconds; a run's own limit for a step is shorter."""

_HOPELESS = 2.0
"""Largest number of 1-bit adders per lookup table for which synthesis is tried; an adder takes about 1.5."""
_XILINX = "xcup"
"""Name of AMD's UltraScale+ in yosys."""


@dataclass(frozen=True)
class Fpga(Engine):
    """Program as a pipeline that takes a new request at every clock edge.

    Attributes:
        cut: Number of additions that may follow each other within a clock cycle: more for fewer
            cycles, fewer for a faster clock.
        seed: Seed of the placement.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"dais"})
    families: ClassVar[frozenset[str]] = frozenset({"fpga"})
    distributions: ClassVar[tuple[str, ...]] = ("da4ml",)
    extra: ClassVar[str] = "fpga"

    cut: float = 2.0
    seed: int = 1

    @property
    def exact(self) -> bool:
        """False: the program was rounded."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield a single design, since another cut changes no answer."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return da4ml's version; those of the other programs are in `tools`."""
        return program.version()

    @classmethod
    def tools(cls) -> Mapping[str, str]:
        """Return the versions of the programs that simulate, synthesize, place and route."""
        return {name: toolchain.version(name) for name in toolchain.TOOLS}

    @classmethod
    def check_tools(cls, target: Target) -> None:
        """Check that synthesis, place and route can run.

        Verilator isn't required, since only Linux distributions package it. Without it, the RTL
        isn't simulated, so there is no certificate.

        Raises:
            InputError: a program is missing.
        """
        for tool in ("yosys", part_of(target).router):
            toolchain.needed(tool)

    @classmethod
    def check_faithful(cls) -> None:
        """Check that RTL can be simulated.

        Raises:
            InputError: Verilator is missing.
        """
        toolchain.needed("verilator")

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write the RTL, its constraints and its test bench.

        Raises:
            CandidateError: the program can't be cut into stages.
        """
        loaded = program.load(model.path)
        design = rtl.pipelined(loaded, self.cut)
        files = [*loaded.save(workdir), *rtl.write(design, workdir)]
        files.append(_constraints(workdir))
        files += write_projects(loaded, design, workdir)
        vectors = model.path.parent / program.VECTORS
        if vectors.exists():
            rounded = np.load(vectors)["requests"]
            files += rtl.write_test_bench(design, rounded, loaded.answers(rounded), workdir)
        path = workdir / DESIGN
        write_json(
            path,
            {
                "cut": self.cut,
                "cycles": design.cycles,
                "requests_per_cycle": 1,
                "top": rtl.TOP,
                "bits_in": design.width_in,
                "bits_out": design.width_out,
                "da4ml": self.version(),
            },
        )
        return Artifact(path, model.inputs, model.outputs, model.request, tuple(files))

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Compile the RTL by Verilator; without it, run the program that the RTL was made of.

        Raises:
            CandidateError: the artifact is damaged, or the RTL isn't that of its program.
        """
        with private(artifact) as copy:
            folder = copy.path.parent
            loaded = program.load(folder / program.PROGRAM)
            simulation = None
            if toolchain.find("verilator") is not None:
                simulation = Simulation(rtl.pipelined(loaded, self.cut), folder / "rtl")
        if simulation is None:
            yield DesignSession(artifact, loaded, None)
            return
        try:
            yield DesignSession(artifact, loaded, simulation)
        finally:
            simulation.close()

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Synthesize, place and route the design in a harness.

        Raises:
            CandidateError: the design doesn't fit or can't be routed, or a tool failed or hung.
            InputError: a tool isn't installed.
        """
        part, folder = part_of(target), artifact.path.parent
        sources = sorted((folder / "rtl").glob("*.v"))
        adders = round(program.load(folder / program.PROGRAM).cost)
        if adders > _HOPELESS * part.luts:  # saves an hour of counting by yosys
            raise CandidateError(too_large(part, "1-bit adders (about)", adders, part.luts))
        netlist = synthesize(sources, part, workdir, _TOOL_LIMIT_S)
        routed = route(
            netlist, part, workdir, limit_s=_TOOL_LIMIT_S, seed=self.seed, threads=target.threads
        )
        netlist.unlink()  # many times the size of all other files
        facts = read_json(artifact.path)
        cycles, latency_ns = facts["cycles"], 1e9 * facts["cycles"] / routed.clock_hz
        taken = {name: float(count) for name, count in routed.used.items() if count}
        return Estimate(
            source="place-and-route",
            latency_ns=latency_ns,
            rank=latency_ns,
            unit="ns",
            figures={
                "cycles": float(cycles),
                "clock_mhz": routed.clock_hz / 1e6,
                "harness_registers": float(facts["bits_in"] + facts["bits_out"] + 1),
                **taken,
            },
            limits={name: float(routed.available[name]) for name in taken},
        )

    def further_figures(
        self, artifact: Artifact, target: Target, workdir: Path
    ) -> Mapping[str, float]:
        """Count the cells that a design takes on AMD's UltraScale+; its clock there stays unknown.

        Raises:
            CandidateError: yosys failed or hung.
            InputError: yosys isn't installed.
        """
        sources = sorted((artifact.path.parent / "rtl").glob("*.v"))
        cells = count(sources, _XILINX, workdir, _TOOL_LIMIT_S)
        return {f"{_XILINX} {name}, counted": float(n) for name, n in cells.items()}

    def words(self) -> str:
        return listed(
            f"pipeline of {self.cut:g} additions a cycle",
            "" if self.seed == 1 else f"placement {self.seed}",
        )


def part_of(target: Target) -> FpgaPart:
    """Return the part that a target names.

    Raises:
        CandidateError: the target is no FPGA.
    """
    if target.part not in PARTS:
        raise CandidateError(
            f"a design needs one of the FPGA parts {', '.join(PARTS)}: got {target.device!r}"
        )
    return PARTS[target.part]


def _constraints(folder: Path) -> Path:
    """Write the constraints that every board needs, to be completed with the board's pins."""
    path = folder / "design.lpf"
    path.write_text(
        "# The report has the clock that place and route reached; add the pins of your board.\n"
        'BLOCK RESETPATHS;\nBLOCK ASYNCPATHS;\nFREQUENCY PORT "clk" 100 MHZ;\n'
    )
    return path


class DesignSession(Session):
    """Session of a design, answered by its RTL if that was compiled, else by its program."""

    def __init__(
        self, artifact: Artifact, loaded: program.FpgaProgram, simulation: Simulation | None
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = None
        self._program, self._simulation = loaded, simulation

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: an input is missing.
        """
        try:
            rounded = self._program.ports.encode(inputs)
        except KeyError as error:
            raise CandidateError(f"the design didn't get the input {error.args[0]!r}") from error
        source: Any = self._simulation or self._program
        return self._program.ports.decode(source.answers(rounded), self.outputs)

    def properties(self) -> Mapping[str, str]:
        """Source of the answers: the RTL or the program."""
        if self._simulation is None:
            return {"answers": "the fixed-point program: Verilator isn't installed"}
        return {"answers": f"the RTL, by {toolchain.version('verilator')}"}
