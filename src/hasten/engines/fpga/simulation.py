"""Simulation of a design's RTL, cycle by cycle, for its answers."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.fpga import toolchain
from hasten.engines.fpga.design import TOP, Design
from hasten.errors import CandidateError


class Simulation:
    """RTL compiled by Verilator.

    Verilog may run any program, so no file of the artifact is compiled. The RTL is written again
    from the program, which holds only numbers, and compared with the artifact's.

    Args:
        design: Design to simulate.
        rtl: Folder with the Verilog of the artifact.

    Raises:
        CandidateError: the artifact's RTL isn't that of its program, or Verilator can't compile it.
        InputError: Verilator isn't installed.
    """

    def __init__(self, design: Design, rtl: Path) -> None:
        from da4ml.codegen import VerilogModel

        toolchain.needed("verilator")
        said = io.StringIO()
        self._folder = Path(tempfile.mkdtemp(prefix="hasten-rtl-"))
        try:
            model = VerilogModel(design.pipeline, TOP, self._folder, print_latency=False)
            model.write()
            _check_same(self._folder / "src", rtl)
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                # `compile` treats every warning as an error, even one about bits that nothing
                # reads. It runs make, which must not take part in another make's jobs.
                alone = {"MAKEFLAGS": "", "MFLAGS": "", "VERILATOR_FLAGS": "-Wno-fatal"}
                model._compile(nproc=2, openmp=False, _env=alone)
        except CandidateError:
            self.close()
            raise
        except Exception as error:
            self.close()
            why = toolchain.complaint(said.getvalue()) or error
            raise CandidateError(f"Verilator can't compile the design: {why}") from error
        self._model: Any = model

    def answers(self, rounded: Array) -> Array:
        """Answer requests, with one entering at each clock edge.

        Args:
            rounded: Requests in the form that `Ports.encode` returns.

        Returns:
            Answers as float64, of shape `(batch, elements of all outputs)`.
        """
        return np.asarray(self._model.predict(rounded, n_threads=-1), np.float64)

    def close(self) -> None:
        """Remove the compiled files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _check_same(written: Path, kept: Path) -> None:
    """Check that an artifact's RTL is that of its program.

    Raises:
        CandidateError: a file differs or is missing.
    """
    own = (*written.glob("*.v"), *written.glob("memfiles/*.mem"))
    fresh = {file.name: file for file in (*own, *written.glob("static/*.v"))}
    for name in (file.name for file in own if file.stem != f"{TOP}_wrapper"):
        if not (kept / name).exists():
            raise CandidateError(f"{name} is missing from the design")
    for file in (*kept.glob("*.v"), *kept.glob("*.mem")):
        if file.stem != "harness" and (
            file.name not in fresh or fresh[file.name].read_bytes() != file.read_bytes()
        ):
            raise CandidateError(
                f"{file.name} isn't what this version of da4ml writes for the program: "
                "it was changed, or comes from another version"
            )
