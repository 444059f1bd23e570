"""Programs from elsewhere: RTL is written of them, so that they are numbers is checked first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.core.model import Model
from hasten.engines.fpga import design, program
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.passes.fixed_point import FixedPoint

Written = Callable[..., Model]
Drawn = Callable[..., ArrayDataset]

pytest.importorskip("da4ml", reason="needs hasten[fpga]: make test-fpga")


@pytest.fixture
def saved(written: Written, samples: Drawn, tmp_path: Path) -> Path:
    """A program's file."""
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    model = written("y = MatMul(x, w)", (4,), {"w": weights})
    folder = tmp_path / "saved"
    folder.mkdir()
    return FixedPoint(6, 6, 6)(model, samples((4,)), folder).path


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[program.FpgaProgram]:
    """The programs that are written from now on, as they are in memory."""
    programs: list[program.FpgaProgram] = []
    save = program.FpgaProgram.save

    def keep(one: program.FpgaProgram, folder: Path) -> tuple[Path, Path]:
        programs.append(one)
        return save(one, folder)

    monkeypatch.setattr(program.FpgaProgram, "save", keep)
    return programs


def test_a_program_that_is_read_back_answers_the_same(
    kept: list[program.FpgaProgram], saved: Path
) -> None:
    (one,), other = kept, program.load(saved)
    assert other is not one
    assert other.ports == one.ports
    rounded = one.ports.encode({"x": np.random.default_rng(0).standard_normal((20, 4))})
    answers = one.answers(rounded)
    assert np.ptp(answers, axis=0).all()
    assert np.array_equal(other.answers(rounded), answers)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d[5][6].__setitem__(3, "1; $system(0)"), "are malformed or out of order"),
        (lambda d: d[5][6].__setitem__(0, 10**6), "are malformed or out of order"),
        (lambda d: d[5][6].__setitem__(4, [0, "1", 1]), "are malformed or out of order"),
        (lambda d: d[5][6].__setitem__(0, -1), "are malformed or out of order"),
        (lambda d: d[5][6].__setitem__(2, 11), "are malformed or out of order"),
        (lambda d: d[5][6].__setitem__(slice(2, 4), [0, 10**6]), "are malformed or out of order"),
        (lambda d: d[5][6].__setitem__(slice(2, 4), [8, 0]), "are malformed or out of order"),
        (
            lambda d: (
                d[5][0].__setitem__(4, [0, 2**40, 1]),
                d[5][6].__setitem__(slice(0, 4), [0, -1, 8, 0]),
                d.append([[{}, [0, 1]]]),
            ),
            "are malformed or out of order",
        ),
        (lambda d: d[1].__setitem__(0, 10**6), "are malformed or out of order"),
        (lambda d: d[2].__setitem__(0, 10**6), "are malformed or out of order"),
        (lambda d: d.pop(), "are malformed or out of order|isn't a fixed-point program"),
        (lambda d: d[5].__setitem__(0, None), "are malformed or out of order"),
    ],
)
def test_a_damaged_program_is_refused(
    saved: Path, damage: Callable[[Any], object], said: str
) -> None:
    data = json.loads(saved.read_bytes())
    damage(data)
    if len(data) == 8:
        data.pop()
    saved.write_text(json.dumps(data))
    with pytest.raises(CandidateError, match=said):
        program.load(saved)


@pytest.mark.parametrize("cut", [2.0, 1e-12])
def test_a_latency_that_takes_billions_of_stages_is_refused(saved: Path, cut: float) -> None:
    design.pipelined(program.load(saved), 2.0)
    data = json.loads(saved.read_bytes())
    data[5][-1][5] = 1e12
    saved.write_text(json.dumps(data))
    with pytest.raises(CandidateError, match=r"registers between stages, more than the limit"):
        design.pipelined(program.load(saved), cut)


def test_ports_that_belong_to_another_program_are_refused(saved: Path) -> None:
    ports = json.loads((saved.parent / program.PORTS).read_bytes())
    del ports["outputs"][0]["signed"][0]
    (saved.parent / program.PORTS).write_text(json.dumps(ports))
    with pytest.raises(CandidateError) as error:
        program.load(saved)
    assert str(error.value) == "ports.json doesn't match program.json: their ports differ in size"
