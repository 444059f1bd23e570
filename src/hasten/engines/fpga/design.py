"""RTL of a fixed-point program: pipelined Verilog, a harness for placement, and a test bench."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.fpga.program import CHOOSING, FROM_INPUT, FpgaProgram, Port, Ports
from hasten.errors import CandidateError

TOP, HARNESS = "network", "harness"
_MOST_REGISTERS = 4_000_000
_SLACK = 1e-9
"""Number that da4ml adds to the cut."""


@dataclass(frozen=True)
class Design:
    """Pipelined design, which takes a new request at every clock edge.

    Attributes:
        pipeline: Pipeline of da4ml.
        ports: Ports of the design's inputs and outputs.
        cycles: Clock cycles from the edge that takes a request to the edge that gives its answer.
    """

    pipeline: Any
    ports: Ports
    cycles: int

    @property
    def width_in(self) -> int:
        """Width of the input bus in bits."""
        return _bits(self.pipeline.inp_qint)

    @property
    def width_out(self) -> int:
        """Width of the output bus in bits."""
        return _bits(self.pipeline.out_qint)


def _bits(intervals: Any) -> int:
    from da4ml.types import minimal_kif

    return sum(sum(minimal_kif(interval)) for interval in intervals)


def pipelined(program: FpgaProgram, cut: float) -> Design:
    """Cut a program into stages, with registers between them.

    Args:
        program: Program to cut.
        cut: Number of additions that may follow each other within a clock cycle.

    Raises:
        CandidateError: there is nothing to cut, da4ml failed, or the program states latencies that would take too many
            stages.
    """
    from da4ml.trace import to_pipeline

    if (registers := _registers(program.logic, cut)) > _MOST_REGISTERS:
        raise CandidateError(
            f"the fixed-point program states latencies for which it needs {registers:,} registers between stages, more "
            f"than the limit of {_MOST_REGISTERS:,}"
        )
    try:
        pipeline = to_pipeline(program.logic, cut, verbose=False)
    except Exception as error:
        raise CandidateError(f"da4ml can't cut the program into stages: {error}") from error
    return Design(pipeline, program.ports, len(pipeline.solutions))


def _registers(logic: Any, cut: float) -> int:
    """Count the numbers that da4ml would carry from one stage to the next, by the latencies that a program states.

    Source: da4ml 0.6, trace/pipeline.py, to_pipeline.
    """
    stages = [floor(one.latency / (cut + _SLACK)) if cut > 0 else 0 for one in logic.ops]
    last = [*stages]
    for stage, one in zip(stages, logic.ops, strict=True):
        chooser = (one.data & 0xFFFFFFFF,) if one.opcode in CHOOSING else ()
        for operand in (one.id0, one.id1, *chooser) if one.opcode != FROM_INPUT else ():
            if operand >= 0:
                last[operand] = max(last[operand], stage)
    end = max((stages[index] for index in logic.out_idxs), default=0)
    for index in logic.out_idxs:
        last[index] = max(last[index], end)
    return sum(last) - sum(stages)


def write(design: Design, folder: Path) -> list[Path]:
    """Write the Verilog to synthesize: only the modules that the design uses.

    Returns:
        Paths of the files, with the tables' contents.
    """
    from da4ml.codegen import VerilogModel

    project = folder / "project"
    VerilogModel(design.pipeline, TOP, project, print_latency=False).write()
    rtl = folder / "rtl"
    rtl.mkdir()
    own = sorted(p for p in (project / "src").glob("*.v") if p.stem != f"{TOP}_wrapper")
    text = "\n".join(file.read_text() for file in own)
    library = [
        file
        for file in sorted((project / "src" / "static").glob("*.v"))
        if re.search(rf"\b{file.stem}\b", text)
    ]
    tables = sorted((project / "src" / "memfiles").glob("*.mem"))
    placed = [Path(shutil.copy(file, rtl)) for file in (*own, *library, *tables)]
    shutil.rmtree(project)
    harness = rtl / f"{HARNESS}.v"
    harness.write_text(_harness(design))
    return [*placed, harness]


def _harness(design: Design) -> str:
    """Return the design between shift registers, as it has more bits than a chip has pins."""
    wide, out = design.width_in, design.width_out
    shifted_in = "serial_in" if wide == 1 else f"{{request[{wide - 2}:0], serial_in}}"
    shifted_out = "1'b0" if out == 1 else f"{{answer[{out - 2}:0], 1'b0}}"
    return f"""// Only to place and route the design by itself: bits go in and come out one by one.
module {HARNESS} (
    input clk,
    input serial_in,
    input load,
    output reg serial_out
);
    reg [{wide - 1}:0] request;
    reg [{out - 1}:0] answer;
    wire [{out - 1}:0] model_out;

    {TOP} {TOP} (.clk(clk), .model_inp(request), .model_out(model_out));

    always @(posedge clk) begin
        request <= {shifted_in};
        answer <= load ? model_out : {shifted_out};
        serial_out <= answer[{out - 1}];
    end
endmodule
"""


def write_test_bench(design: Design, rounded: Array, answers: Array, folder: Path) -> list[Path]:
    """Write a test bench in plain Verilog, with requests and the answers to expect.

    Args:
        design: Design to test.
        rounded: Requests in the form that `Ports.encode` returns.
        answers: Answers of the program to these requests.
        folder: Folder of the design.

    Returns:
        Paths of the test bench's files.
    """
    bench = folder / "test_bench"
    bench.mkdir()
    requests = _words(rounded, design.ports.inputs)
    expected = _words(answers, design.ports.outputs)
    wide, out, count = design.width_in, design.width_out, len(requests)
    (bench / "requests.mem").write_text("".join(f"{word:0{-(-wide // 4)}x}\n" for word in requests))
    (bench / "answers.mem").write_text("".join(f"{word:0{-(-out // 4)}x}\n" for word in expected))
    (bench / "test_bench.v").write_text(f"""`timescale 1 ns / 1 ps
// A new request at every clock edge; each answer {design.cycles} edges later. Run it in this folder.
module test_bench;
    reg clk = 0;
    reg [{wide - 1}:0] requests [0:{count - 1}];
    reg [{out - 1}:0] answers [0:{count - 1}];
    reg [{wide - 1}:0] model_inp;
    wire [{out - 1}:0] model_out;
    integer i, wrong = 0;

    {TOP} {TOP} (.clk(clk), .model_inp(model_inp), .model_out(model_out));

    initial begin
        $readmemh("requests.mem", requests);
        $readmemh("answers.mem", answers);
        for (i = 0; i < {count + design.cycles}; i = i + 1) begin
            model_inp = requests[i < {count} ? i : {count - 1}];
            #5 clk = 1;
            #1 if (i >= {design.cycles} && model_out !== answers[i - {design.cycles}]) wrong = wrong + 1;
            #4 clk = 0;
        end
        if (wrong == 0) $display("PASS: %0d answers", {count});
        else $display("FAIL: %0d of %0d answers are wrong", wrong, {count});
        $finish;
    end
endmodule
""")
    return sorted(bench.iterdir())


def _words(values: Array, ports: Sequence[Port]) -> list[int]:
    """Return each sample as one word of the bus, with the first element in the lowest bits."""
    widths = np.concatenate([port.widths for port in ports])
    fractions = np.concatenate([np.asarray(port.fraction) for port in ports])
    whole = np.floor(values * np.exp2(fractions.astype(np.float64))).astype(np.int64)
    words = []
    for row in whole:
        word, place = 0, 0
        for value, width in zip(row.tolist(), widths.tolist(), strict=True):
            if width:
                word |= (value & ((1 << width) - 1)) << place
            place += width
        words.append(word)
    return words
