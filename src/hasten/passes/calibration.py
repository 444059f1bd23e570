"""Turn calibration samples into requests for a model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset


class CalibrationRequests:
    """Requests of batch 1 from samples spread evenly over a data set, each read on demand.

    Args:
        model: Model with its `request` settled.
        calibration: Data set of calibration samples.
        samples: Largest number of samples.

    Raises:
        CandidateError: the data set or `samples` is empty.
    """

    def __init__(self, model: Model, calibration: Dataset, samples: int) -> None:
        count = min(samples, len(calibration))
        if count < 1:
            raise CandidateError(
                f"calibration needs at least one sample: got {len(calibration)} "
                f"and samples={samples}"
            )
        self._model = model
        self._calibration = calibration
        self._indices = np.linspace(0, len(calibration) - 1, count).round().astype(np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> dict[str, Array]:
        """Return a request as arrays by input name, with the axes in `model.request`."""
        rows = self._calibration.inputs([int(self._indices[position])])
        return {
            spec.name: np.ascontiguousarray(
                rows[spec.name] if rows[spec.name].ndim == len(spec.shape) else rows[spec.name][0]
            )
            for spec in self._model.request
        }

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self[position] for position in range(len(self)))
