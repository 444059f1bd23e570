"""Whether two artifacts of one program give the same bits."""

from __future__ import annotations

import numpy as np

from hasten.candidate import Trial
from hasten.cross_compilation.board import Board
from hasten.data.spool import Spool
from hasten.errors import CandidateError


def compare(board: Board, one: Trial, other: Trial, samples: Spool) -> int:
    """Let both answer samples, and compare their bits.

    Returns:
        How many samples were compared.

    Raises:
        CandidateError: they differ (on which sample), or one of both fails.
    """
    count = 0
    with board.opened(one) as first, board.opened(other) as second:
        answers = zip(
            board.bench.predict(first, samples), board.bench.predict(second, samples), strict=True
        )
        for mine, theirs in answers:
            for name, array in mine.items():
                if not np.array_equal(array, theirs[name]):
                    differing = (array != theirs[name]).reshape(len(array), -1).any(axis=1)
                    row = int(np.flatnonzero(differing)[0])
                    raise CandidateError(
                        f"{other.candidate.label} answers sample {count + row} otherwise than "
                        f"{one.candidate.label} in output {name!r}"
                    )
            count += len(next(iter(mine.values())))
    return count
