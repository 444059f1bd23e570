"""Networks trained for few bits, handed in as passes."""

from __future__ import annotations

import shutil
from pathlib import Path

from hasten.core.records import digest
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.spool import write_spool
from hasten.passes.hgq_training import HgqTraining

PRESSURES = (1.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""How much the bits of all products weigh at the end: from hardly smaller to as small as it gets."""
_LEAST_EPOCHS, _MOST_EPOCHS = 20, 300
_SEEN = 80_000
"""Samples that a training sees, over all epochs."""


def trainings(folder: Path, data: Dataset, seed: int) -> list[HgqTraining]:
    """Return the trainings worth trying, with the data laid out for their processes.

    Args:
        folder: Work folder of the run.
        data: Training data, disjoint from what judges.
        seed: Of the training.
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
