"""Pictures decoded at a part of their size, as one more choice for the model that would ship."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.records import from_record
from hasten.core.workers import Worker
from hasten.engines.end_to_end import EndToEnd, asked_by_file
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.files import spread
from hasten.inputs.data.spool import write_spool
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode
from hasten.inputs.pipeline.smaller import decoded_smaller, pixels_needed
from hasten.measure.candidate import Candidate, Trial
from hasten.measure.intervals import Ratio, paired_ratio
from hasten.measure.latency import rounds
from hasten.optimization.judge import Ladder, Verdicts
from hasten.optimization.measured.racing import Racing
from hasten.optimization.measured.screening import SCREEN_NOISE

_DECODING = "decoding"
"""Kind of the journal's event that says which decodings were raced, or why none was."""
_TIMES = (2, 1)
"""Pixels that are left, over those that the model's input needs: the more careful decoding comes first."""
_FILES, _BLOCK = 64, 8
"""Number of files that are timed, and of those in a turn, which are the same for all."""
_FEWEST_ROUNDS, _MOST_ROUNDS = 8, 24
_FEWEST_SMALLER = 0.5
"""Least share of the files that must be decoded smaller for a decoding to be tried."""
_GIVEN, _AGAIN = "as given", "as given, again"
_LEFT_OUT = "this effort tries no other decoding"
_AS_FAST = "a more careful one is about as fast"
_PARTS = {2: "half", 4: "a quarter", 8: "an eighth"}


@dataclass(frozen=True)
class Decoding:
    """A decoding that was raced against the one that the pipeline states.

    Attributes:
        least: Pixels of the shorter side that are enough.
        ratio: Time from bytes to decision over that of the stated decoding, with the same model.
        factors: Factor by which a file is decoded smaller -> number of the timed files.
        wins: Whether it is faster by more than the noise.
        why: Reason why it isn't in the ladder although it is faster; empty where it is.
    """

    least: int
    ratio: Ratio
    factors: dict[str, int]
    wins: bool
    why: str = ""

    @property
    def size(self) -> str:
        """The size at which files are decoded, in words."""
        parts = [_PARTS[f] for f in _PARTS if str(f) in self.factors]
        if len(parts) == 1:
            return f"{parts[0]} {'' if parts[0] == 'half' else 'of '}their size"
        return f"{parts[0]} to {parts[-1]} of their size"

    @property
    def shipped(self) -> str:
        """Note for a person where it ships."""
        return (
            f"JPEG files are decoded {self.words} as with the decoding that the pipeline states, with the same "
            "model; the exact model gets them decoded as stated, and the certificate counts what that changes"
        )

    @property
    def words(self) -> str:
        """The race, in words."""
        told = sum(self.factors.values())
        whole = self.factors.get("1", 0)
        most = "" if not whole else f" ({told - whole} of {told} that were looked at)"
        return (
            f"at {self.size}{most}, as far as that leaves {self.least:,} pixels on the shorter side: from bytes to "
            f"decision this took {self.ratio.estimate:.2f} times as long ({self.ratio.low:.2f} to "
            f"{self.ratio.high:.2f}, in turns)"
        )


def with_smaller_decoding(
    racing: Racing, ladder: Ladder, certified_s: Callable[[Ladder, str], float]
) -> Ladder:
    """Return the ladder with its fastest model once more, on pictures that are decoded smaller.

    In a run from bytes to decision such a decoding is raced over the whole way, in turns with the one that the
    pipeline states. If it is faster, the model answers the search split decoded so, and is compared with the
    original on pictures decoded as stated. It becomes the ladder's last rung, after its own model, if it would
    probably be certified. The journal says what was tried, or why nothing was.

    Args:
        racing: Candidates of the run and their races.
        ladder: Ladder before it is frozen.
        certified_s: Function that returns how long it takes to try a candidate with a smaller decoding, by its
            key, and then to certify the ladder with it, in seconds.
    """
    if not racing.job.order.end_to_end:
        return ladder
    found: list[Decoding] = []
    why = ""
    try:
        base = _base(racing, ladder)
        wanted = _worth_trying(racing)
        _check_enough(racing, base)
        found = _raced(racing, base, wanted)
        ladder, found = _tried(racing, ladder, base, found, certified_s)
    except (_NotTried, CandidateError, InputError) as reason:
        why = str(reason)
    racing.job.journal.append(_DECODING, raced=found, why=why)
    return ladder


def model_of(racing: Racing, key: str) -> str:
    """Return the key of a candidate's model, whose pictures are decoded as the pipeline states."""
    candidate = racing.candidate(key)
    return replace(candidate, least=0).key if candidate.least else key


def decoding_of(racing: Racing, winner: str) -> Decoding | None:
    """Return the decoding of what ships, where that isn't the one that the pipeline states.

    Args:
        racing: Candidates of the run and their races.
        winner: Key of what ships.
    """
    least, known = racing.candidate(winner).least, racing.job.journal.last(_DECODING)
    raced = () if known is None else (from_record(Decoding, one) for one in known["raced"])
    return next((one for one in raced if least and one.least == least), None)


def unused_decodings(racing: Racing, winner: str, verdicts: Verdicts) -> Iterator[str]:
    """Yield notes on the decodings that don't ship, where what ships decodes pictures as the pipeline states.

    Args:
        racing: Candidates of the run and their races.
        winner: Key of what ships.
        verdicts: Verdicts of the sealed data on the ladder.
    """
    judged = {racing.candidate(key).least: entry for key, entry in verdicts}
    known = racing.job.journal.last(_DECODING)
    if known is None or racing.candidate(winner).least:
        return
    if known["why"] not in ("", _LEFT_OUT):
        yield f"pictures are decoded as the pipeline states: {known['why']}"
    for record in known["raced"]:
        one = from_record(Decoding, record)
        if not one.wins or one.why != _AS_FAST:
            why = one.why or (
                _why_not(judged.get(one.least))
                if one.wins
                else "that isn't faster by more than the noise"
            )
            yield f"JPEG files could be decoded {one.words}, but {why}"


def _why_not(entry: Judgement | str | None) -> str:
    """Say why a decoding doesn't ship that was a rung of the ladder, by its verdict, if it has one."""
    if isinstance(entry, str):
        return f"it failed and couldn't be tested: {entry}"
    if entry is not None and entry.verdict is not Verdict.CERTIFIED:
        return f"it isn't certified: {entry.in_words()}"
    return "it doesn't ship"


class _NotTried(Exception):  # noqa: N818
    """No smaller decoding is worth trying; the message says why."""


def _base(racing: Racing, ladder: Ladder) -> Candidate:
    """Return the model that would ship if all of the ladder were certified."""
    if not ladder.exact:
        raise _NotTried("the time limit left no time to certify anything")
    return racing.candidate((ladder.exact, *ladder.rungs)[-1])


def _worth_trying(racing: Racing) -> list[tuple[int, dict[str, int]]]:
    """Return the decodings that are worth a race: pixels that are enough, and how many files get smaller by what.

    Raises:
        _NotTried: there is none.
    """
    ready = racing.ready
    if racing.effort.stages_s <= 0:
        raise _NotTried(_LEFT_OUT)
    if not ready.files or ready.pipeline is None:
        raise _NotTried("the data isn't a folder of images")
    first = ready.pipeline.steps[0]
    if not isinstance(first, Decode) or first.least:
        raise _NotTried("the pipeline says itself that pictures are decoded smaller")
    needed = pixels_needed(ready.pipeline)
    if not needed or ready.extents:
        raise _NotTried("it doesn't scale pictures to one size right after decode")
    files = tuple(dict.fromkeys(spread(ready.files, _FILES)))
    found: list[tuple[int, dict[str, int]]] = []
    most = 0
    for times in _TIMES:
        step = replace(first, least=times * needed)
        factors = Counter(str(step.factor_of(file)) for file in files)
        smaller = len(files) - factors["1"]
        most = max(most, smaller)
        if smaller >= _FEWEST_SMALLER * len(files) and all(dict(factors) != o for _, o in found):
            found.append((step.least, dict(factors)))
    if not found:
        raise _NotTried(
            f"only {most} of {len(files)} files that were looked at are JPEG files of at least twice the size that "
            "the model needs"
        )
    return found


def _check_enough(racing: Racing, base: Candidate) -> None:
    """Check that the sealed data could certify a decoding that changes nothing in the search.

    A look at the sealed data that certifies nothing would cost later runs, and nobody asked for it.

    Raises:
        _NotTried: it couldn't.
    """
    if not racing.trials.answered:
        raise _NotTried("the time limit left no time to answer the search split")
    unchanged = tuple(map(float, racing.trials.exact_scores))
    if not _would_pass(racing, Trial(replace(base, least=1), scores=unchanged)):
        raise _NotTried(
            "the sealed data are too few to certify another decoding, even if it changes nothing"
        )


def _would_pass(racing: Racing, trial: Trial) -> bool:
    """Whether a trial would probably be certified with the sealed data at hand."""
    ready = racing.ready
    return racing.trials.probably_certified(trial, ready.search_units, ready.sealed_draws)


def _raced(
    racing: Racing, base: Candidate, wanted: Sequence[tuple[int, dict[str, int]]]
) -> list[Decoding]:
    """Race decodings over the whole way, in turns with the one that the pipeline states.

    Raises:
        _NotTried: there is no time.
        CandidateError: a file can't be answered.
    """
    job, bench, pipeline = racing.job, racing.bench_of_single, racing.ready.pipeline
    assert pipeline is not None
    limit_s = 2 * racing.effort.stages_s
    if job.deadline.left_s() < limit_s + 4 * racing.open_s:
        raise _NotTried("the time limit left no time to race another decoding")
    job.tell("race", "racing smaller decodings, from bytes to decision", 0, len(wanted))
    racing.trials.close()
    files, artifact = spread(racing.ready.files, _FILES), racing.artifact(base)
    place = job.folder / _DECODING
    ways: dict[str, Pipeline] = {_GIVEN: pipeline, _AGAIN: pipeline}
    for least, _ in wanted:
        ways[str(least)] = decoded_smaller(pipeline, least) or pipeline
    taken: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in ways}
    pace = replace(racing.effort.pace("p50"), block_ns=0, at_least=_BLOCK, at_most=_BLOCK)
    with ExitStack() as stack:
        samples = _numbered(len(files), place, stack)
        entrants: dict[str, Worker] = {}
        for name, steps in ways.items():
            whole = EndToEnd(base.engine, steps, files, artifact.inputs, artifact.request)
            entrants[name] = bench.open_built(whole, asked_by_file(artifact)).worker
            stack.callback(entrants[name].kill)
        end = time.monotonic() + limit_s
        turns = rounds(entrants, samples, threads=1, pace=pace, seed=job.order.seed)
        for turn in stack.enter_context(closing(turns)):  # type: ignore[type-var]
            for who, reason in turn.failed.items():
                raise CandidateError(f"{who}: {reason}")
            for name, latencies in turn.latency_ns.items():
                taken[name][turn.number] = latencies
            count = len(taken[_GIVEN])
            late = time.monotonic() > end and count >= _FEWEST_ROUNDS
            over = count >= 2 and job.deadline.left_s() <= 0
            if late or over or count >= _MOST_ROUNDS:
                break
    # The files of a turn are the same, so a stall of the host in one of them needn't count.
    spread_ = abs(paired_ratio(taken[_AGAIN], taken[_GIVEN]).estimate - 1)
    found = []
    for least, factors in wanted:
        ratio = paired_ratio(taken[str(least)], taken[_GIVEN])
        wins = ratio.high < 1 - max(SCREEN_NOISE, spread_)
        found.append(Decoding(least, ratio, factors, wins))
    return found


def _numbered(count: int, place: Path, stack: ExitStack) -> Path:
    """Write requests that name files by their numbers, and return their folder."""
    shutil.rmtree(place, ignore_errors=True)
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    return write_spool(ArrayDataset({"file": np.arange(count)}), place).folder


def _tried(
    racing: Racing,
    ladder: Ladder,
    base: Candidate,
    raced: Sequence[Decoding],
    certified_s: Callable[[Ladder, str], float],
) -> tuple[Ladder, list[Decoding]]:
    """Return the ladder with the decodings that are faster and lose little enough on the search split."""
    told: list[Decoding] = []
    fastest = 1.0
    for one in raced:
        why = ""
        if one.wins and one.ratio.high >= fastest * (1 - SCREEN_NOISE):
            why = _AS_FAST
        elif one.wins:
            key, deadline = replace(base, least=one.least).key, racing.job.deadline
            if deadline.limited and certified_s(ladder, key) > deadline.left_s():
                why = "the time limit left no time to certify it"
            else:
                why = _not_worth_certifying(racing, base, one.least)
            if not why:
                ladder = replace(ladder, rungs=(*ladder.rungs, key))
                fastest = one.ratio.estimate
        told.append(replace(one, why=why))
    return ladder, told


def _not_worth_certifying(racing: Racing, base: Candidate, least: int) -> str:
    """Let a model answer the search split decoded smaller; return why it isn't worth certifying, or ""."""
    trials, parts = racing.trials, racing.ready.parts
    candidate = replace(base, least=least)
    trial = trials.done.get(candidate.key)
    if trial is None:
        searched = None if parts.searched is None else parts.searched.decoded_to(least)
        if searched is None:
            return "the search split's files aren't at hand"
        racing.job.tell("race", "answering the search split, decoded smaller", 0, 1)
        place = racing.job.folder / f"{_DECODING}-{least}"
        shutil.rmtree(place, ignore_errors=True)
        try:
            samples = write_spool(searched, place)
            artifact = racing.artifact(base)
            opened = racing.bench.open_built(base.engine, artifact, fresh=False)
            try:
                scores = trials.scores(opened, samples=samples)
            finally:
                opened.worker.kill()
        except (CandidateError, InputError) as error:
            return str(error)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        trial = trials.keep(Trial(candidate, artifact, scores=scores))
    limit = racing.ready.search_promise.max_drop
    if len(trial.scores or ()) < len(parts.search) or trials.drop(trial) >= limit:
        return f"on the search split it loses {100 * trials.drop(trial):.2f}%, over the limit"
    if not _would_pass(racing, trial):
        return (
            f"on the search split it loses {100 * trials.drop(trial):.2f}%, so that the sealed data would probably "
            "not certify it"
        )
    return ""
