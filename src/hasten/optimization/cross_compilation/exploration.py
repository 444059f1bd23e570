"""What to make for a device whose compiler tells all at once: every candidate of a grid."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hasten.core.progress import Progress
from hasten.measure.candidate import Single
from hasten.optimization.cross_compilation.board import Board


def explore(board: Board, candidates: Sequence[Single]) -> None:
    """Judge candidates on this host, and ask the device's tools about those that are under the limit.

    Args:
        board: Where they are made.
        candidates: In the order to try them.
    """
    deadline = board.order.deadline
    for number, candidate in enumerate(candidates):
        if deadline is not None and time.monotonic() > deadline:
            return
        board.listen(Progress("try", candidate.label, number, len(candidates)))
        trial = board.judge(candidate)
        if board.able(trial) or (candidate.exact and trial.scores):
            trial = board.estimate(trial)
        said = f"{candidate.label}: {board.said(trial)}"
        board.listen(Progress("try", candidate.label, number + 1, len(candidates), said))
