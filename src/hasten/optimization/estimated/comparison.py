"""Whether two artifacts of one program give the same bits."""

from __future__ import annotations

import numpy as np

from hasten.engines.fpga.fixed_point import FixedPointProgram
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.spool import Spool
from hasten.measure.candidate import Single, Trial
from hasten.optimization.estimated.trials import Estimation


def compare(trials: Estimation, one: Trial, other: Trial, samples: Spool) -> int:
    """Let both answer samples, and compare their bits.

    Returns:
        How many samples were compared.

    Raises:
        CandidateError: they differ (on which sample), or one of both fails.
    """
    count = 0
    with trials.opened(one) as first, trials.opened(other) as second:
        answers = zip(
            trials.bench.predict(first, samples), trials.bench.predict(second, samples), strict=True
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


def simulates(trial: Trial) -> bool:
    """Whether what a trial was built to answers here as the device does, and not only its program."""
    try:
        trial.candidate.engine.check_faithful()
    except InputError:
        return False
    return True


def program_of(trials: Estimation, trial: Trial) -> Trial:
    """Return the program that a design was made of, which answers as it does at once; of others, itself."""
    return trials.done.get(Single(trial.candidate.passes, FixedPointProgram()).key, trial)


def compare_with_program(trials: Estimation, trial: Trial, samples: Spool) -> int:
    """Let a design's RTL and the program that it was made of answer samples.

    Returns:
        How many samples were compared; 0 of what is no design, and without a simulator.

    Raises:
        CandidateError: they differ, or one of both fails.
    """
    program = program_of(trials, trial)
    if program is trial or not simulates(trial):
        return 0
    return compare(trials, program, trial, samples)
