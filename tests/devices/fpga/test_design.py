"""Designs: RTL answers as its program does, fits or says why not, and its test bench tells right from wrong."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.support import tasks

from hasten.core.devices import find_target
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact
from hasten.engines.fpga import design as rtl
from hasten.engines.fpga import engine, program, toolchain
from hasten.engines.fpga.engine import Fpga
from hasten.engines.fpga.fixed_point import FixedPointProgram
from hasten.engines.fpga.parts import FpgaPart
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.models.torch import export
from hasten.passes.fixed_point import FixedPoint

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")
Built = tuple[Artifact, Artifact, Array]

pytestmark = pytest.mark.skipif(
    any(toolchain.find(tool) is None for tool in ("verilator", "yosys", "nextpnr-ecp5")),
    reason="needs Debian's verilator, yosys and nextpnr-ecp5",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A design for the breast-cancer data, 30-4-2, of 5 bits; with its program's artifact and the test set."""
    folder = tmp_path_factory.mktemp("design")
    (x, _), (held_out, _) = tasks.cancer()
    for name in ("source", "fixed", "program", "rtl"):
        (folder / name).mkdir()
    model = export(tasks.perceptron((4,), 40), [x[0]], folder / "source").settled_by(
        {"input": x[0]}
    )
    fixed = FixedPoint(5, 5, 5)(model, ArrayDataset({"input": x}), folder / "fixed")
    target = find_target("fpga:ecp5-25k")
    made = FixedPointProgram().build(fixed, Target.host(), folder / "program")
    return Fpga(2.0).build(fixed, target, folder / "rtl"), made, held_out


def test_the_rtl_answers_the_whole_test_set_as_its_program_does_bit_for_bit(
    built: Built, target: Target
) -> None:
    design, made, x = built
    with (
        Fpga(2.0).open(design, target) as simulated,
        FixedPointProgram().open(made, target) as exact,
    ):
        assert simulated.properties()["answers"].startswith("the RTL, by Verilator")
        found, wanted = simulated.run({"input": x}), exact.run({"input": x})
    (name,) = wanted
    assert len(x) == 285
    assert (
        len(np.unique(wanted[name], axis=0)) > 50
    )  # answers that differ, or equality shows nothing
    assert np.array_equal(found[name], wanted[name])


def test_only_modules_that_are_used_are_kept(built: Built) -> None:
    design, _, _ = built
    text = "".join(f.read_text() for f in design.files if f.name.startswith("network"))
    kept = {f.stem for f in design.files if f.suffix == ".v" and f.parent.name == "rtl"}
    library = {name for name in kept if not name.startswith("network") and name != "harness"}
    assert "shift_adder" in library
    assert all(name in text for name in library)


def test_the_test_bench_passes_and_fails_where_an_answer_is_changed(
    built: Built, tmp_path: Path
) -> None:
    design, _, _ = built
    folder = shutil.copytree(design.path.parent, tmp_path / "copy")
    answers = folder / "test_bench" / "answers.mem"
    assert _simulated(folder, tmp_path / "right").startswith("PASS: 64 answers")
    lines = answers.read_text().splitlines()
    lines[7] = f"{int(lines[7], 16) ^ 1:x}"
    answers.write_text("\n".join(lines) + "\n")
    assert "FAIL: 1 of 64 answers are wrong" in _simulated(
        folder, tmp_path / "wrong", again=tmp_path / "right"
    )


def _simulated(folder: Path, made: Path, again: Path | None = None) -> str:
    """Run a test bench by Verilator; `again` is where it was compiled before."""
    bench = folder / "test_bench"
    if again is None:
        again = made
        subprocess.run(
            ["verilator", "--binary", "--timing", "-Wno-fatal", "-CFLAGS", "-O0", "-j", "2"]
            + ["--top-module", "test_bench", "-Mdir", str(made), "test_bench.v"]
            + [
                f"../rtl/{file.name}"
                for file in sorted((folder / "rtl").glob("*.v"))
                if file.stem != "harness"
            ],
            cwd=bench,
            check=True,
            capture_output=True,
        )
    ran = subprocess.run([again / "Vtest_bench"], cwd=bench, capture_output=True, text=True)
    return ran.stdout


def test_the_project_for_vitis_is_the_same_program_in_another_language(
    built: Built, tmp_path: Path
) -> None:
    """Vitis isn't here; its sources are compiled by g++, with the number types that da4ml brings."""
    from da4ml.codegen import HLSModel

    design, _, x = built
    loaded = program.load(design.path.parent / program.PROGRAM)
    emulated = HLSModel(loaded.logic, "network", tmp_path, flavor="vitis", print_latency=False)
    emulated.compile(openmp=False)
    kept = design.path.parent / "vitis" / "src" / "network.hh"
    assert kept.read_bytes() == (tmp_path / "src" / "network.hh").read_bytes()
    rounded = loaded.ports.encode({"input": x})
    assert np.array_equal(np.asarray(emulated.predict(rounded)), loaded.answers(rounded))


def test_rtl_that_was_changed_is_not_compiled(built: Built, target: Target, tmp_path: Path) -> None:
    design, _, _ = built
    folder = shutil.copytree(design.path.parent, tmp_path / "copy")
    file = folder / "rtl" / "network.v"
    file.write_text(file.read_text().replace("endmodule", "initial $system(0);\nendmodule"))
    changed = type(design)(folder / design.path.name, design.inputs, design.outputs, design.request)
    with pytest.raises(CandidateError) as error, Fpga(2.0).open(changed, target):
        pass
    assert str(error.value) == (
        "network.v isn't what this version of da4ml writes for the program: it was changed, or comes "
        "from another version"
    )


def test_without_verilator_the_program_answers_and_says_so(
    built: Built, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    design, made, x = built
    monkeypatch.setattr(toolchain, "find", lambda name: None)
    with (
        Fpga(2.0).open(design, target) as simulated,
        FixedPointProgram().open(made, target) as exact,
    ):
        assert simulated.properties() == {
            "answers": "the fixed-point program: Verilator isn't installed"
        }
        found, wanted = simulated.run({"input": x}), exact.run({"input": x})
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("part", "logic", "available"),
    [("ecp5-25k", "TRELLIS_COMB", 24288), ("ice40-hx8k", "ICESTORM_LC", 7680)],
)
def test_a_design_is_placed_and_routed(
    part: str, logic: str, available: int, built: Built, tmp_path: Path
) -> None:
    design, _, _ = built
    folder = tmp_path / "a folder; with a space"
    folder.mkdir()
    found = Fpga(2.0).estimate(design, find_target(f"fpga:{part}"), folder)
    assert found.source == "place-and-route"
    assert found.latency_ns == pytest.approx(
        1e3 * found.figures["cycles"] / found.figures["clock_mhz"]
    )
    assert 20 < found.figures["clock_mhz"] < 500
    assert 0 < found.figures[logic] < found.limits[logic] == available
    assert (folder / "configuration.txt").stat().st_size > 10_000


def test_cells_of_a_part_for_other_tools_are_counts_alone(
    built: Built, target: Target, tmp_path: Path
) -> None:
    design, _, _ = built
    found = Fpga(2.0).further_figures(design, target, tmp_path)
    assert set(found) == {"xcup LUT, counted", "xcup CARRY, counted", "xcup FF, counted"}
    assert found["xcup LUT, counted"] > 100


def test_more_additions_in_a_cycle_take_fewer_cycles(
    built: Built, tmp_path: Path, target: Target
) -> None:
    design, _, _ = built
    cycles = []
    for cut in (1.0, 2.0, 4.0):
        loaded = program.load(design.path.parent / "program.json")
        cycles.append(rtl.pipelined(loaded, cut).cycles)
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[0] > cycles[-1]


def untrained(width: int, bits: int, part: str, folder: Path) -> Artifact:
    """A design of a network that nobody trained."""
    (x, _), _ = tasks.cancer()
    for name in ("source", "fixed", "rtl", "tools"):
        (folder / name).mkdir()
    network = tasks.perceptron((width,), 0)
    model = export(network, [x[0]], folder / "source").settled_by({"input": x[0]})
    fixed = FixedPoint(bits, bits, bits)(model, ArrayDataset({"input": x}), folder / "fixed")
    return Fpga(2.0).build(fixed, find_target(f"fpga:{part}"), folder / "rtl")


def does_not_fit(resource: str) -> str:
    return (
        rf"^doesn't fit Lattice iCE40\S+, \w+: it needs [\d,]+ {resource}, [\d.]+ times "
        r"the [\d,]+ of the part$"
    )


def test_a_design_that_does_not_fit_says_which_resource_and_by_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthesis tells, in seconds here, where the part is one of the smallest."""
    options = ("--lp384", "--package", "qn32")
    name = "Lattice iCE40LP384, QN32"
    smallest = FpgaPart(name, "synth_ice40", "nextpnr-ice40", options, "ICESTORM_LC", 384)
    monkeypatch.setattr(engine, "PARTS", {"ice40-up5k": smallest})
    design = untrained(4, 5, "ice40-up5k", tmp_path)
    with pytest.raises(CandidateError, match=does_not_fit("ICESTORM_LC")):
        Fpga(2.0).estimate(design, find_target("fpga:ice40-up5k"), tmp_path / "tools")


def test_a_design_that_is_hopeless_is_refused_before_synthesis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = untrained(40, 12, "ice40-hx8k", tmp_path)
    monkeypatch.setattr(toolchain, "find", lambda name: None)  # no tool is asked
    with pytest.raises(CandidateError, match=does_not_fit(r"1-bit adders \(about\)")):
        Fpga(2.0).estimate(design, find_target("fpga:ice40-hx8k"), tmp_path / "tools")


def test_missing_tools_are_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    monkeypatch.setattr(toolchain, "find", lambda name: None if name == "nextpnr-ecp5" else name)
    with pytest.raises(InputError, match=r"^nextpnr-ecp5, which places and routes"):
        Fpga.check_tools(target)
