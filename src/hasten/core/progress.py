"""What a run tells of itself while it goes on; a screen, or nobody, listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """One step of a run.

    Attributes:
        stage: "prepare", "shortlist", "prune", "train", "int8", "transform", "widths", "try", "design", "race",
            "certify", "figures".
        doing: What is going on now, in a few words.
        done: Steps of this stage that are behind.
        total: Steps of this stage in all.
        outcome: What the step before came to, in a line; None where it has none.
        best: The best so far, in a line; None where there is none.
    """

    stage: str
    doing: str
    done: int
    total: int
    outcome: str | None = None
    best: str | None = None


Listener: TypeAlias = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """Listen to nothing."""
