"""Trainings of networks for few bits, as passes."""

from __future__ import annotations

import shutil
from pathlib import Path

from hasten.core.records import digest
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.spool import write_spool
from hasten.passes.hgq_training import HgqTraining

PRESSURES = (1.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Final weights of the cost of all products' bits: from hardly smaller to as small as possible."""
_LEAST_EPOCHS, _MOST_EPOCHS = 20, 300
_SEEN = 80_000
"""Samples that one training sees, over all epochs."""


def trainings(folder: Path, data: Dataset, seed: int) -> list[HgqTraining]:
    """Return the trainings worth trying, with the data written where their processes read it.

    Args:
        folder: Work folder of the run.
        data: Training data, disjoint from the data that judges.
        seed: Seed of the training.
    """
    folder = folder / "training"
    shutil.rmtree(folder, ignore_errors=True)
    spool = write_spool(data, folder)
    content = digest([spool.content_hash(i).hex() for i in range(len(spool))])
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, _SEEN // max(1, len(spool))))
    return [
        HgqTraining(folder, content, pressure=pressure, epochs=epochs, seed=seed)
        for pressure in PRESSURES
    ]
