"""A training's state on disk: whole or absent, and read without running anything that is in it."""

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
    """What a training goes on from.

    Attributes:
        module: The network's state.
        average: The averaged network's.
        optimizer: Its state.
        generators: Of torch's random numbers: the host's, and that of the device beside it.
        best: The averaged network's state where it did best; None before the first look.
        curve: (share of the training, score) at each look.
        step: Steps that are behind.
        seconds: Spent so far.
        note: Why it ended before its time; None where it didn't.
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
        """Write it beside its place and rename it.

        Raises:
            InputError: the disk is full, or the folder can't be written.
        """
        content = io.BytesIO()
        torch.save(vars(self), content)
        write_whole(path, content.getvalue())

    @classmethod
    def read(cls, path: Path) -> State | None:
        """Read one; None where there is none.

        Raises:
            InputError: it is damaged.
        """
        if not path.exists():
            return None
        try:
            state = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises what its parts raise
            raise InputError(f"{path} is damaged; remove {path.parent} to train anew") from error
        state.curve = [(float(share), float(score)) for share, score in state.curve]
        return state
