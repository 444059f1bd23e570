"""A design's answers, from its RTL, cycle by cycle."""

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

    The RTL is written anew from the program, which is numbers alone, and compared with what lies in
    the artifact: Verilog may call any program, so none is compiled that comes from elsewhere.

    Args:
        design: What is simulated.
        rtl: Its Verilog as it lies in the artifact.

    Raises:
        CandidateError: the RTL isn't what is written of the program, or Verilator can't compile it.
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
                # `compile` takes every warning for an error, of bits that nobody reads too.
                model._compile(nproc=2, openmp=False, _env={"VERILATOR_FLAGS": "-Wno-fatal"})
        except CandidateError:
            self.close()
            raise
        except Exception as error:
            self.close()
            why = toolchain.complaint(said.getvalue()) or error
            raise CandidateError(f"Verilator can't compile the design: {why}") from error
        self._model: Any = model

    def answers(self, rounded: Array) -> Array:
        """Answer requests, one entering at each clock edge.

        Args:
            rounded: What `Ports.encode` gives.

        Returns:
            float64, `(batch, elements of all outputs)`.
        """
        return np.asarray(self._model.predict(rounded, n_threads=-1), np.float64)

    def close(self) -> None:
        """Remove what was compiled."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _check_same(written: Path, kept: Path) -> None:
    """Check that the RTL of an artifact is what is written of its program.

    Raises:
        CandidateError: it isn't.
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
                f"{file.name} isn't what this version of da4ml writes of the program: it was changed, "
                "or comes from another version"
            )
