"""Store a training's state on disk, complete or not at all, and load it without running code."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.core.records import write_whole
from hasten.errors import InputError


@dataclass
class State:
    """State from which a training continues.

    Attributes:
        module: State of the network.
        average: State of the averaged network.
        optimizer: State of the optimizer.
        generators: States of torch's random number generators: the host's, then the GPU's if any.
        best: State of the averaged network at its best score; None before the first evaluation.
        curve: Share of the training and score at each evaluation, as pairs.
        step: Number of steps taken.
        seconds: Time spent on training so far, in seconds.
        note: Reason why the training ended before its time; None if it didn't.
    """

    module: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    generators: list[torch.Tensor]
    best: dict[str, Any] | None
    curve: list[tuple[float, float]]
    step: int
    seconds: float
    note: str | None = None

    def write(self, path: Path) -> None:
        """Write the state to a temporary file, then rename that.

        Raises:
            InputError: the disk is full, or the folder can't be written.
        """
        content = io.BytesIO()
        torch.save(vars(self), content)
        write_whole(path, content.getvalue())

    @classmethod
    def read(cls, path: Path) -> State | None:
        """Read a state; return None if there is no file.

        Raises:
            InputError: the file is damaged.
        """
        if not path.exists():
            return None
        try:
            state = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises what its parts raise
            raise InputError(f"{path} is damaged; remove {path.parent} to train again") from error
        state.curve = [(float(share), float(score)) for share, score in state.curve]
        return state
