"""Times that the stages of a measuring run need, by what was measured of the model so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hasten.measure.deadline import Deadline, Need, Stage
from hasten.optimization.judge import Ladder
from hasten.optimization.measured.racing import FIELD, Racing
from hasten.optimization.measured.ways import stages_s

LIMITS_S = 15.0
"""Time for the ceilings and the profiles of small models, on a quiet machine."""
_WRITE_S, _REPORT_S, _END_S = 0.5, 4.0, 1.0
_MARGIN = 1.3
"""Factor on the time for the sealed data: another moment of the host may be slower."""
_SHOWN = 3
"""Candidates in the fresh rounds beside the twins."""


class Spending:
    """Derives the needs of the stages to come.

    Args:
        racing: Candidates of the run and their races.
    """

    def __init__(self, racing: Racing) -> None:
        self._racing = racing
        self._deadline: Deadline = racing.job.deadline

    def plan(self) -> Mapping[Stage, Need]:
        """Return what each stage needs: see `Deadline.follow`."""
        racing, effort = self._racing, self._racing.effort
        objective = racing.job.order.objective
        open_s, turn_s = racing.open_s, racing.turn_s
        raced, shown = 2 + FIELD, 2 + _SHOWN
        rounds = effort.fresh_rounds(objective)
        slow = racing.slow
        deliver_s = slow * _END_S + 2 * self._deadline.seen("write", _WRITE_S)
        curve_s = min(effort.curve_s, 60.0)
        further_s = slow * LIMITS_S * racing.limited + curve_s + 3 * effort.load_s
        further_s += stages_s(racing)  # cold starts take no time from the search
        return {
            "race": Need(0.0, raced * (racing.open_forked_s + effort.race_rounds * turn_s)),
            "certify": Need(self.sealed_s(1), self.sealed_s(2)),
            "figures": Need(
                4 * (open_s + 2 * turn_s), shown * (effort.processes * open_s + rounds * turn_s)
            ),
            "further": Need(0.0, further_s),
            "deliver": Need(deliver_s, deliver_s + slow * _REPORT_S),
        }

    def sealed_s(self, rungs: int, decodings: int = 0) -> float:
        """Return the time to read the sealed data, to answer them and to compare the answers.

        Args:
            rungs: Number of models beside the original. The original's form that normalizes pixels
                itself, where there is one, comes on top.
            decodings: Number of smaller decodings, for each of which the pictures are read once more.
        """
        ready = self._racing.ready
        parts, rungs = ready.parts, rungs + (ready.given is not None)
        each_s = (1 + decodings) * parts.read_s
        each_s += (1 + rungs) * self._deadline.seen("answer", 0.0)
        return _MARGIN * len(parts.sealed) * each_s + (1 + rungs) * self._racing.open_forked_s

    def decoding_s(self, ladder: Ladder, key: str) -> float:
        """Return the time to try a smaller decoding and then to certify the ladder with it as one more rung.

        Args:
            ladder: Ladder so far.
            key: Key of the candidate with the smaller decoding.
        """
        racing, parts = self._racing, self._racing.ready.parts
        done = racing.trials.done
        rungs = (*ladder.rungs, key)
        decodings = 1 + sum(1 for rung in ladder.rungs if done[rung].candidate.least)
        took_s = self.sealed_s(len(rungs) + (ladder.exact != racing.trials.baseline.key), decodings)
        if key in done:
            return took_s
        each_s = parts.read_s + self._deadline.seen("answer", 0.0)
        return took_s + _MARGIN * len(parts.search) * each_s + racing.open_forked_s

    def affordable(self, ladder: Ladder) -> Ladder:
        """Return the ladder as far as there is time to certify it, before it is frozen.

        Two rungs or more are tested in the time that the stage may spend, one as long as any is left.
        The safest rung stays, and the fastest after it; of these two, the better bet. Where there is no time even for one, the
        original ships, since neither a certificate nor "exact" can be said without the sealed data. A
        form of it that normalizes pixels itself isn't the original then: the ladder names no exact one.

        Args:
            ladder: Ladder by speed and safety alone.
        """
        deadline, notes = self._deadline, self._racing.job.notes
        baseline = self._racing.trials.baseline.key
        asked = list(ladder.rungs)
        folded = self._racing.ready.given is not None
        if not deadline.limited or not (asked or folded or ladder.exact != baseline):
            return ladder
        compared = ladder.exact != baseline
        rungs = list(asked)
        while len(rungs) > 1 and self.sealed_s(len(rungs) + compared) > deadline.left_s():
            if len(rungs) == 2:
                rungs.pop(0 if self._racing.outdoes(rungs[1], rungs[0]) else 1)
            else:
                rungs.pop(len(rungs) // 2)
        alone = folded and not asked and not compared
        needed_s, left_s = self.sealed_s(0 if alone else max(1, len(rungs))), deadline.most_s()
        if needed_s > left_s:
            notes.append(
                f"the sealed data was not read, because that would take about {needed_s:.0f} s "
                f"and the time limit left {max(0.0, left_s):.0f} s; the original ships, and "
                "nothing is certified"
            )
            return dataclasses.replace(ladder, exact="" if folded else baseline, rungs=())
        if len(rungs) < len(asked):
            notes.append(
                f"the time limit left out {len(asked) - len(rungs)} of {len(asked)} candidates "
                "that were worth certifying"
            )
        return dataclasses.replace(ladder, rungs=tuple(rungs))
