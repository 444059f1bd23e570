"""Networks trained for few bits: their programs answer as the trained networks do, and are smaller."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import tasks

from hasten.core.model import Model
from hasten.engines.fpga import program
from hasten.engines.fpga.program import FpgaProgram
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.torch import export
from hasten.passes.fixed_point import FixedPoint
from hasten.passes.hgq_training import HgqTraining

Written = Callable[..., Model]
Drawn = Callable[..., ArrayDataset]

pytestmark = pytest.mark.skipif(  # importing it would choose Keras's backend
    importlib.util.find_spec("hgq") is None, reason="needs hasten[fpga]: make test-fpga"
)


def trained(
    network: Any, task: tasks.Halves, folder: Path, **settings: Any
) -> tuple[FpgaProgram, float, Callable[[], FpgaProgram]]:
    """Train a network for few bits; return the program, its accuracy, and what makes the one of 8 bits."""
    (x, y), (held_out, labels) = task
    for name in ("source", "trained", "rounded"):
        (folder / name).mkdir()
    model = export(network, [x[0]], folder / "source").settled_by({"input": x[0]})
    data = ArrayDataset({"input": x}, y)
    spool = write_spool(data, folder / "training")
    step = HgqTraining(spool.folder, "0" * 64, **settings)
    own = program.load(step(model, data, folder / "trained").path)
    answers = own.answers(own.ports.encode({"input": held_out}))

    def eight() -> FpgaProgram:
        return program.load(FixedPoint(8, 8, 8)(model, data, folder / "rounded").path)

    return own, float((answers.argmax(axis=1) == labels).mean()), eight


def test_a_perceptron_becomes_smaller_and_still_answers_right(tmp_path: Path) -> None:
    own, accuracy, eight = trained(
        tasks.perceptron((8,), 40), tasks.cancer(), tmp_path, pressure=10.0, epochs=60
    )
    assert own.cost < 0.75 * eight().cost
    assert accuracy > 0.93
    assert own.ports.inputs[0].shift  # raw features, each brought into range by a shift


def test_a_convolutional_network_keeps_the_order_of_its_pixels(tmp_path: Path) -> None:
    own, accuracy, _ = trained(
        tasks.small_cnn(15), tasks.digits(), tmp_path, pressure=3.0, epochs=6
    )
    assert accuracy > 0.8
    assert own.ports.inputs[0].shape == (1, 8, 8)


def test_what_cannot_be_trained_so_is_named_with_its_node(
    written: Written, samples: Drawn, tmp_path: Path
) -> None:
    weights = {"w": np.eye(4, dtype=np.float32)}
    model = written("h = MatMul(x, w) [bend] r = Sigmoid(h) y = MatMul(r, w)", (4,), weights)
    spool = write_spool(samples((4,)), tmp_path / "training")
    with pytest.raises(
        CandidateError,
        match=r"^the operator Sigmoid \(node 'bend'\) can't be trained for few bits; these "
        "operators can: Add, ",
    ):
        HgqTraining(spool.folder, "0" * 64, epochs=1)(model, samples((4,)), tmp_path)
