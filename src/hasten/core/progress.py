"""Progress that a run reports as it goes on, to a screen or to any other listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """Step of a run.

    Attributes:
        stage: "prepare", "shortlist", "prune", "train", "int8", "transform", "widths", "try",
            "design", "race", "certify", "figures".
        doing: Description of the current work, in a few words.
        done: Number of completed steps in this stage.
        total: Number of all steps in this stage.
        outcome: Result of the previous step, in a line; None where it has none.
        best: Best result so far, in a line; None where there is none.
    """

    stage: str
    doing: str
    done: int
    total: int
    outcome: str | None = None
    best: str | None = None


Listener: TypeAlias = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """Ignore a progress report."""
