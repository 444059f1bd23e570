"""Search for each family's most promising option within a budget, measuring batch by batch."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hasten.core.model import Model
from hasten.core.progress import Listener, Progress, nobody
from hasten.core.target import Target
from hasten.engines.installed import engine_kinds, tried_on
from hasten.errors import CandidateError, InputError
from hasten.lightening.architectures.catalogue import Task
from hasten.lightening.making import Makers
from hasten.lightening.prospects import Prospect, fastest
from hasten.lightening.shortlisting.cache import LatencyCache, Measured, default_folder
from hasten.lightening.shortlisting.estimates import Estimates
from hasten.lightening.shortlisting.options import Option, options
from hasten.lightening.shortlisting.untrained import Untrained, written

TIME_LIMIT_S = 40.0
_INSISTS = 4
"""Factor on the time limit while nothing is known to fit and something may."""
_AT_ONCE = 8
_EACH_S = 1.5
"""First guess of the time to write, build and time one option, on two quiet cores."""
_WORTH = 1.0
"""Least gain, in points of promise, for which a family is measured again."""
_SAME = 1.15
"""Factor on the best latency beyond which a kind of candidate is dropped, if it is that slow on
every network of the first batch. The list comes much sooner, though a few networks may be faster
than it says."""
_FIRST = ("resnet10", "mobilenetv4-small", "yolov3-tiny", "ssdlite")
"""Families to try every candidate on: dense and depthwise convolutions, for each task."""


@dataclass(frozen=True)
class ShortlistEntry:
    """Measured option of the shortlist.

    Attributes:
        architecture: Architecture's name in the catalogue.
        family: Architecture's name without its stride.
        width: Factor on the number of channels.
        pixels: Longer side of the image after resizing, in pixels; None to keep the input's size.
        madds: Multiply-adds of one request.
        parameters: Number of parameters.
        accuracy: Published accuracy at width 1 on the usual input, in percent, on ImageNet or COCO.
        promise: Accuracy estimated for these multiply-adds, only good for ranking.
        prospect: Latency, with the candidate that reaches it.
    """

    architecture: str
    family: str
    width: float
    pixels: int | None
    madds: int
    parameters: int
    accuracy: float
    promise: float
    prospect: Prospect


@dataclass(frozen=True)
class Shortlist:
    """Options that fit a budget.

    Attributes:
        task: "classify" or "detect".
        classes: Number of classes.
        input_shape: Channels, height and width of one sample.
        budget_ns: Longest time that one request may take, in nanoseconds.
        entries: Most promising fitting option of each family, best first.
        measured: All measured options, fastest first.
        failed: Reasons why options can't be built or run, by the option's name.
        complete: Whether the search ended with nothing left to try.
    """

    task: Task
    classes: int
    input_shape: tuple[int, ...]
    budget_ns: float
    entries: tuple[ShortlistEntry, ...]
    measured: tuple[ShortlistEntry, ...]
    failed: dict[str, str] = field(default_factory=dict)
    complete: bool = True


def shortlist(
    task: Task,
    classes: int,
    input_shape: Sequence[int],
    budget_s: float,
    *,
    engines: Sequence[str] = (),
    architectures: Sequence[str] = (),
    target: Target | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    insist: bool = False,
    fresh: bool = False,
    cache: Path | None = None,
    listen: Listener = nobody,
) -> Shortlist:
    """Find the architectures that answer one request within a budget on this machine.

    Args:
        task: "classify" or "detect".
        classes: Number of classes.
        input_shape: Channels, height and width of one sample.
        budget_s: Longest median latency, in seconds.
        engines: Names of the runtimes to try; by default all that suit this host.
        architectures: Names of the catalogue's architectures to choose among; empty for all.
        target: Device to measure on; this host by default.
        time_limit_s: Time after which no further measurement starts, in seconds.
        insist: Whether to go on, up to four times as long, while no architecture is known to fit and
            one that wasn't measured may. A busy host slows measurements, and has no say in what fits.
        fresh: Whether to ignore the cache and measure everything again.
        cache: Folder of earlier measurements; the user's cache folder by default.
        listen: Callback that is told of each network that is measured.

    Returns:
        The options that fit, and all that were measured.

    Raises:
        InputError: an argument can't be used, or no architecture fits (the message names the
            fastest).
    """
    if not (math.isfinite(budget_s) and budget_s > 0):
        raise InputError(f"the budget is in seconds, above 0: got {budget_s}")
    if not time_limit_s > 0:
        raise InputError(f"the time limit is in seconds, above 0: got {time_limit_s}")
    if classes < 1:
        raise InputError(f"a network needs at least 1 class: got {classes}")
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            f"a sample is (channels, height, width), each above 0: got {tuple(input_shape)}"
        )
    engines = tuple(engines) or tried_on("host")
    engine_kinds(engines)
    target = target or Target.host()
    known = LatencyCache.of(cache or default_folder(), classes, input_shape, engines, target)
    families = options(task, input_shape, architectures)
    with tempfile.TemporaryDirectory(prefix="hasten-shortlist-") as work:
        search = Search(
            families=families,
            classes=classes,
            input_shape=tuple(input_shape),
            budget_ns=budget_s * 1e9,
            engines=engines,
            target=target,
            cache=known,
            fresh=fresh,
            folder=Path(work),
            deadline=(began := time.monotonic()) + time_limit_s,
            latest=began + (_INSISTS if insist else 1) * time_limit_s,
            listen=listen,
        )
        estimates = Estimates(families, search.budget_ns)
        with search.makers:
            complete = search.run(estimates)
    entries = search.entries()
    best: dict[str, ShortlistEntry] = {}
    for entry in sorted(entries, key=lambda one: -one.promise):
        if entry.prospect.latency_ns <= search.budget_ns:
            best.setdefault(entry.family, entry)
    if not best:
        options_ = sum(map(len, families.values()))
        raise nothing_fits(
            input_shape,
            budget_s,
            entries,
            search.failed,
            untimed=0 if complete else options_ - len(search.known),
            may=None if complete else estimates.may_fit(),
        )
    return Shortlist(
        task,
        classes,
        tuple(input_shape),
        search.budget_ns,
        tuple(best.values()),
        tuple(sorted(entries, key=lambda one: one.prospect.latency_ns)),
        search.failed,
        complete,
    )


def nothing_fits(
    input_shape: Sequence[int],
    budget_s: float,
    entries: Sequence[ShortlistEntry],
    failed: Mapping[str, str],
    *,
    untimed: int = 0,
    may: Option | None = None,
) -> InputError:
    """Return the error that names the fastest architecture, and says what isn't known.

    Args:
        input_shape: Channels, height and width of one sample.
        budget_s: Longest median latency, in seconds.
        entries: All that were measured.
        failed: Reasons why options can't be built or run, by the option's name.
        untimed: Number of options that the time limit left unmeasured.
        may: One of them that is estimated to fit.
    """
    shown = "x".join(map(str, input_shape))
    if not entries:
        why = next(iter(failed.values()), "the time limit was too short to measure any of them")
        return InputError(f"no architecture of the catalogue could be measured at {shown}: {why}")
    one = min(entries, key=lambda entry: entry.prospect.latency_ns)
    size = f" at {one.pixels} px" if one.pixels else ""
    least_ms = math.ceil(one.prospect.latency_ns / 1e4) / 100
    fastest_ = f"{one.architecture} x{one.width:g}{size} at {least_ms:g} ms"
    busy = sum(not entry.prospect.calm for entry in entries)
    noisy = f" ({busy} of them while the host was busy)" if busy else ""
    if untimed:
        hope = "others may fit" if may is None else f"others may fit, such as {may.name}"
        return InputError(
            f"none of the {len(entries)} networks that could be timed within the time limit{noisy} answers "
            f"{shown} in {budget_s * 1e3:g} ms, and {untimed} weren't timed: {hope}. The fastest so far is "
            f"{fastest_}. The measurements are kept: call again to continue, or give a longer "
            "time limit"
        )
    return InputError(
        f"no architecture of the catalogue answers {shown} in {budget_s * 1e3:g} ms on this "
        f"machine: the fastest is {fastest_}; give at least that much{_calmer(busy, len(entries))}"
    )


def _calmer(busy: int, measured: int) -> str:
    """Say how many measurements a busy host may have made too slow; "" for none."""
    if not busy:
        return ""
    return f", or measure again on an idle host, because it was busy for {busy} of {measured}"


@dataclass
class Search:
    """Search for the options that fit a budget.

    Attributes:
        families: Options by family.
        classes: Number of classes.
        input_shape: Channels, height and width of one sample.
        budget_ns: Longest time that one request may take, in nanoseconds.
        engines: Names of the runtimes to try.
        target: Device to measure on.
        cache: Cache of earlier measurements.
        fresh: Whether to ignore the cache and measure everything again.
        folder: Work folder.
        deadline: Time of the monotonic clock, in seconds, after which no measurement starts, unless
            nothing fits yet and something may.
        latest: Time of the monotonic clock, in seconds, after which none starts in any case.
        listen: Callback that is told of each network that is measured.
        known: Measurements so far, by option.
        failed: Reasons why options can't be built or run, by the option's name.
    """

    families: Mapping[str, Sequence[Option]]
    classes: int
    input_shape: tuple[int, ...]
    budget_ns: float
    engines: tuple[str, ...]
    target: Target
    cache: LatencyCache
    fresh: bool
    folder: Path
    deadline: float
    latest: float
    listen: Listener
    known: dict[Option, Measured] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    _slow: set[str] = field(default_factory=set)

    @cached_property
    def makers(self) -> Makers:
        """Processes that build networks, kept for the whole search."""
        return Makers(self._prospects, self.target)

    @property
    def _prospects(self) -> Path:
        return self.folder / "prospects"

    def run(self, estimates: Estimates) -> bool:
        """Measure until nothing is to be gained or time is up; return whether it is complete.

        Args:
            estimates: Estimates without a measurement, which learn from each.
        """
        self._recall()
        self._learn(estimates, list(self.known), recalled=True)
        batch = estimates.next(_AT_ONCE, _WORTH) if self.known else estimates.first(_FIRST)
        each_s = _EACH_S
        while batch:
            began = time.monotonic()
            if self.known and began + each_s / 2 >= self._end(estimates):
                return False
            self._measure(batch)
            self._learn(estimates, batch)
            now = time.monotonic()
            each_s = (now - began) / len(batch)
            at_once = max(1, round(min(_AT_ONCE, (self._end(estimates) - now) / each_s)))
            batch = estimates.next(at_once, _WORTH)
        return True

    def _end(self, estimates: Estimates) -> float:
        """Return when the last measurement may start, by the monotonic clock, in seconds."""
        fits = any(
            one.prospect is not None and one.prospect.latency_ns <= self.budget_ns
            for one in self.known.values()
        )
        return self.deadline if fits or estimates.may_fit() is None else self.latest

    def entries(self) -> list[ShortlistEntry]:
        """Return all options that could be measured."""
        return [
            ShortlistEntry(
                option.architecture.name,
                option.architecture.family,
                option.width,
                option.pixels,
                found.madds,
                found.parameters,
                option.architecture.accuracy,
                option.architecture.promise(found.madds),
                found.prospect,
            )
            for option, found in self.known.items()
            if found.prospect is not None
        ]

    def _recall(self) -> None:
        """Load measurements from the cache."""
        for option in (one for own in self.families.values() for one in own):
            found = None if self.fresh else self.cache.get(option)
            if found is not None:
                self._note(option, found)

    def _learn(
        self, estimates: Estimates, options: Sequence[Option], *, recalled: bool = False
    ) -> None:
        """Update the estimates and the kinds of candidates that are too slow, from measurements."""
        if not self._slow:
            self._slow = slow_kinds([one.prospect for one in self.known.values()])
        for option in options:
            prospect = self.known[option].prospect
            latency_ns = None if prospect is None else prospect.latency_ns
            estimates.learn(option, latency_ns, recalled=recalled)

    def _note(self, option: Option, found: Measured) -> None:
        self.known[option] = found
        if found.prospect is None:
            self.failed[option.name] = found.failure

    def _measure(self, batch: Sequence[Option]) -> None:
        """Measure options in turns with each other, and store the results."""
        untrained: dict[str, Untrained] = {}

        def each() -> Iterator[tuple[str, Model]]:
            for number, option in enumerate(batch):
                own = self.folder / f"{len(self.known)}-{number}"
                own.mkdir()
                self._tell(option.name, "writing")
                try:
                    one = written(option, self.classes, self.input_shape, own)
                except CandidateError as error:
                    self._keep(option, Measured(0, 0, None, str(error)))
                    continue
                untrained[option.name] = one
                yield option.name, one.model

        prospects, failure = self._timed(each(), self._slow)
        left = {name: one for name, one in untrained.items() if name not in prospects}
        if left and self._slow:  # a slow candidate may run what the fast ones can't
            again, failure = self._timed([(name, one.model) for name, one in left.items()], set())
            prospects |= again
        for option in batch:
            if option.name in untrained:
                one = untrained[option.name]
                prospect = prospects.get(option.name)
                if prospect is None:  # perhaps as the host was busy: not cached, so tried again
                    self._note(option, Measured(one.madds, one.parameters, None, failure))
                else:
                    self._keep(option, Measured(one.madds, one.parameters, prospect))
                shutil.rmtree(one.model.path.parent, ignore_errors=True)

    def _timed(
        self, models: Iterable[tuple[str, Model]], slow: set[str]
    ) -> tuple[dict[str, Prospect], str]:
        """Return the prospects by candidates that aren't slow, and why other networks have none."""
        try:
            found = fastest(
                models,
                self.target,
                self._prospects,
                engines=self.engines,
                only=lambda way: _kind(way.label) not in slow,
                makers=self.makers,
                listen=lambda progress: self._tell(progress.doing, "timing", progress.outcome),
            )
        except CandidateError as error:
            return {}, str(error)
        return found, "no engine runs it"

    def _keep(self, option: Option, found: Measured) -> None:
        self.cache.keep(option, found)
        self._note(option, found)

    def _tell(self, name: str, doing: str, outcome: str | None = None) -> None:
        done = len(self.known)
        self.listen(Progress("shortlist", f"{doing} {name}", done, max(done + 1, 20), outcome))


def slow_kinds(prospects: Sequence[Prospect | None]) -> set[str]:
    """Return the labels, without settings, of candidates that were slow on every network."""
    behind: dict[str, float] = {}
    for prospect in prospects:
        if prospect is not None:
            looks = {**prospect.others, prospect.label: prospect.latency_ns}
            for label, ns in looks.items():
                ratio = ns / min(looks.values())
                behind[_kind(label)] = min(ratio, behind.get(_kind(label), math.inf))
    return {kind for kind, ratio in behind.items() if ratio > _SAME}


def _kind(label: str) -> str:
    """Return a candidate's label without its settings."""
    return re.sub(r" \([^)]*\)", "", label)
