"""Comparison of two artifacts of one program, bit by bit."""

from __future__ import annotations

import numpy as np

from hasten.core.varying import with_summaries
from hasten.engines.fpga.fixed_point import FixedPointProgram
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.spool import Spool
from hasten.measure.candidate import Single, Trial
from hasten.optimization.estimated.trials import Estimation


def compare(trials: Estimation, one: Trial, other: Trial, samples: Spool) -> int:
    """Run two candidates on the same samples, and compare the bits of their answers.

    Returns:
        Number of samples compared.

    Raises:
        CandidateError: the answers differ (on the sample named), or one candidate fails.
    """
    count = 0
    with trials.opened(one) as first, trials.opened(other) as second:
        answers = zip(
            trials.bench.predict(first, samples), trials.bench.predict(second, samples), strict=True
        )
        for mine, theirs in answers:
            others = with_summaries(theirs)
            for name, array in with_summaries(mine).items():
                if not np.array_equal(array, others[name]):
                    differing = (array != others[name]).reshape(len(array), -1).any(axis=1)
                    row = int(np.flatnonzero(differing)[0])
                    raise CandidateError(
                        f"{other.candidate.label} and {one.candidate.label} answer sample "
                        f"{count + row} differently, in output {name!r}"
                    )
            count += len(next(iter(mine.values())))
    return count


def simulates(trial: Trial) -> bool:
    """Whether a trial's artifact answers on this host exactly as the device would."""
    try:
        trial.candidate.engine.check_faithful()
    except InputError:
        return False
    return True


def program_of(trials: Estimation, trial: Trial) -> Trial:
    """Return the program behind a design, which gives the design's answers fast.

    Any other trial is returned as it is.
    """
    return trials.done.get(Single(trial.candidate.passes, FixedPointProgram()).key, trial)


def compare_with_program(trials: Estimation, trial: Trial, samples: Spool) -> int:
    """Compare the answers of a design's RTL with those of the program it was made from.

    Returns:
        Number of samples compared; 0 where the trial is no design, or no simulator is installed.

    Raises:
        CandidateError: the answers differ, or one of the two fails.
    """
    program = program_of(trials, trial)
    if program is trial or not simulates(trial):
        return 0
    return compare(trials, program, trial, samples)
