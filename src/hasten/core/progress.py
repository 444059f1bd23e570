"""Progress that a run reports as it goes on, to a screen or to any other listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

UNKNOWN = 0
"""Total of a stage whose number of steps isn't known before its end."""
Verdict: TypeAlias = Literal[
    "baseline", "exact", "accurate", "slower", "wrong", "skipped", "failed"
]
"""Finding of a trial: "accurate" if the candidate lost no more than is allowed on the search split,
"wrong" if it lost more, "slower" if it was too slow to be judged."""


StageName: TypeAlias = Literal[
    "prepare",
    "prospects",
    "shortlist",
    "prune",
    "train",
    "int8",
    "exact",
    "transform",
    "draft",
    "widths",
    "try",
    "design",
    "ceilings",
    "race",
    "certify",
    "label",
    "figures",
    "limit",
    "curve",
    "load",
    "ways",
]
"""Stage of a run; `hasten.cli` has the words for people."""


@dataclass(frozen=True)
class Tried:
    """Candidate that was tried, and what came of it.

    Attributes:
        label: Label of the candidate, for people.
        verdict: Verdict of the trial on the candidate, such as "slower" or "failed".
        said: Outcome in a line.
        ratio: Latency divided by the baseline's; None where it wasn't timed.
    """

    label: str
    verdict: Verdict
    said: str = ""
    ratio: float | None = None


@dataclass(frozen=True)
class Outline:
    """Outline of a run's work, as far as it is known.

    Attributes:
        facts: Facts for people, each with a name of one word: ("data", "1,500 samples, with labels").
        stages: Stages of `Progress` that are sure to come, in order.
        limit_s: Time that the whole command may take, in seconds; None for no limit.
        open_ended: Whether the search may propose more candidates than it counts now.
    """

    facts: tuple[tuple[str, str], ...]
    stages: tuple[StageName, ...] = ()
    limit_s: float | None = None
    open_ended: bool = False


@dataclass(frozen=True)
class Progress:
    """Step of a run.

    Attributes:
        stage: "prepare", "prospects", "shortlist", "prune", "train", "int8", "exact", "transform",
            "draft", "widths", "try", "design", "ceilings", "race", "certify", "label", "figures",
            "limit", "curve", "load", "ways".
        doing: Description of the current work, in a few words.
        done: Number of completed steps in this stage.
        total: Number of all steps in this stage; `UNKNOWN` if the search decides it as it goes on.
        outcome: Result of the previous step, in a line; None where it has none.
        best: Best result so far, in a line; None where there is none.
        tried: Candidate that the previous step tried; None where it tried none.
        news: Line that a reader should not miss, such as the first result; None where there is none.
        outline: Plan of the run; None except in the one report in which the plan is first known.
        later_s: Time that the stages after this one will take, in seconds; None where unknown.
    """

    stage: StageName
    doing: str
    done: int
    total: int
    outcome: str | None = None
    best: str | None = None
    tried: Tried | None = None
    news: str | None = None
    outline: Outline | None = None
    later_s: float | None = None


Listener: TypeAlias = Callable[[Progress], None]


def nobody(progress: Progress) -> None:
    """Ignore a progress report."""
