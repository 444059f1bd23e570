"""The order of a run: everything that was asked, as one value."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from hasten.certificate.draws import Over
from hasten.certificate.planning import check_limits
from hasten.certificate.verdict import Guard
from hasten.core.records import with_name
from hasten.core.sequences import Pairs, Scored, pairs_of
from hasten.core.shapes import Pads, pads_of
from hasten.errors import InputError
from hasten.inputs.metrics import named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.set_metrics.base import SetMetric
from hasten.measure.effort import Effort, effort_of
from hasten.measure.intervals import Statistic
from hasten.measure.scenario import check_bound

WAYS = ("page", "csv", "wait")
"""Ways of asking for labels, beside a CSV file and a function."""
_SEQUENCES = ("report", "engines", "passes", "keep_float", "custom_ops")


class Options(TypedDict, total=False):
    """The fields of `Order`, as keywords."""

    max_drop: float
    guard: Guard
    mean_over: Over
    confidence: float
    metric: str | Metric | Sequence[str | Metric] | None
    report: Sequence[str | SetMetric] | None
    population: str
    target: str
    objective: Statistic
    budget_s: float | None
    latency_bound_s: float | None
    engines: Sequence[str] | None
    passes: Sequence[str] | None
    keep_float: Sequence[str]
    custom_ops: Sequence[Path]
    effort: str | Effort
    time_limit_s: float | None
    trial_limit_s: float | None
    calibration: int
    seed: int
    out: str | Path
    keep_exact: bool
    keep_requests: bool
    accept_uncertified: bool
    allow_near_copies: bool
    end_to_end: bool
    states: Mapping[str, str] | str | Sequence[str] | Pairs
    scored: Scored | None
    ask_labels: str | None
    trust_code: bool
    pad: Mapping[str, float] | str | Sequence[str] | Pads


@dataclass(frozen=True)
class Order:
    """Everything asked of a run; each field is a keyword of `hasten.optimize` and `lighten`.

    The first seven fields are the promise that the certificate makes, and what is stated beside it. The next four are the device
    and what a request may take there, then come what may be tried and how hard, and last what the
    bundle holds.

    Attributes:
        max_drop: Largest drop in accuracy that is allowed, as an absolute share: 0.01 is one point.
        guard: Quantity that is bounded: "net", the drop; "lost", the share of right answers that
            become wrong; or "changed", the share of answers that differ from the original's.
        mean_over: Units of the certificate's mean, where samples have groups or repeat one another: all
            "samples", or "groups", each of which counts once whatever its size.
        confidence: Probability with which the certificate holds.
        metric: "top1", "top5", "agreement", "embedding", "regression:0.01", "detection_f1",
            "my.py:score", ..., or a `Metric`; "top1@logits" reads one output, "regression:1%@all" each, and
            a list scores all of its metrics at once. By default top-1 where there are labels, else
            agreement. `docs/reference/metrics.md` lists them.
        report: Metrics over the sealed set that are stated before and after, beside the promise:
            "auroc", "ks", "brier", "log_loss", "calibration_error", "average_precision", "f1",
            "map50", "map50_95", "my.py:gini", or a `SetMetric`; () for none. By default those of a
            binary classification where labels are 0 and 1, and both mAPs where they are boxes.
        population: Population that the data was drawn from, in words, for the certificate.
        target: "host"; a device of this host, such as "cuda"; or one that isn't here, such as
            "fpga:ecp5" or "tpu:v5e", for which the device's own tools compare the candidates.
        objective: Statistic of a request's latency to minimize: "p50", "mean", or "p99", which
            takes longer to measure.
        budget_s: Time that one request may take, in seconds; the result says whether what ships
            meets it. Where several smaller models meet it, the most accurate one is compared.
        latency_bound_s: Latency that 99% of requests at random times must stay under, in seconds.
            The highest rate at which they do is measured for what ships.
        engines: Names of the runtimes to try; None for all that serve the target.
        passes: Names of the transformations to try; None for all, () for none.
        keep_float: Names of nodes that no pass may quantize.
        custom_ops: Paths of libraries with the model's own operators.
        effort: "quick", "normal", "thorough", or an `Effort`.
        time_limit_s: Time for the whole run, in seconds, to within a tenth or 5 s; None for no limit. In
            `lighten` it counts from the end of the training, and in a resumed run from its beginning.
        trial_limit_s: Longest time of one step of one candidate, in seconds; by default 300, or 900
            where designs are placed and routed.
        calibration: Largest number of samples to set the quantizers' ranges by.
        seed: Seed of the split and of all orders.
        out: Folder of the bundle.
        keep_exact: Whether the bundle keeps the exact model, for `certify` and as a fallback.
        keep_requests: Whether the bundle keeps up to 4 samples of the search split, to warm up with
            and to time if no data is given. Set False if the data must not leave this machine.
        accept_uncertified: Whether the fastest candidate ships, marked as uncertified, where none
            is certified.
        allow_near_copies: Whether training data may contain near copies of more than 5% of the samples to
            judge on; the certificate then says so.
        end_to_end: Whether the model takes over what of the pipeline its graph can do: pixels go in
            as uint8 and are normalized there. It needs a folder of images whose pipeline ends in
            normalize and to_layout; elsewhere, and where an answer would change, a note says why nothing changed.
            And whether JPEG files may be decoded smaller for what ships, where that is faster from bytes to
            decision and certified.
        states: States that the model carries from step to step, each as the input that takes it and
            the output that gives the next one: {"h": "h_out"}, or "h=h_out,c=c_out". With them, a
            sample of the data is a whole sequence, with an axis of steps.
        scored: Steps of a sequence that its score is about: "all" for the mean over them, or
            "last". By default the last one where each sequence has one label, else all.
        ask_labels: Form in which to ask for labels of those sealed samples on which answers differ. "page" makes a
            folder with a page to label them on, next to the bundle. "csv" makes a table to fill in.
            "wait" serves the page here until all are labelled. The path of a CSV file reads labels from
            it, and "my.py:oracle" calls a function with the samples. None uses only the data's own
            labels.
        trust_code: Whether code that a model's folder or file brings may run.
        pad: Values that inputs may be padded with to reach a length that a model was compiled for, where
            they aren't 0: {"padding_mask": 1}, or "padding_mask=1,ids=3". Only where samples differ in
            shape; that no answer changes by it is always checked.

    Raises:
        InputError: a field, named in the message, is out of its range.
    """

    max_drop: float = 0.01
    guard: Guard = "net"
    mean_over: Over = "samples"
    confidence: float = 0.95
    metric: str | Metric | None = None
    report: tuple[str | SetMetric, ...] | None = None
    population: str = "inputs like the ones in this data"
    target: str = "host"
    objective: Statistic = "p50"
    budget_s: float | None = None
    latency_bound_s: float | None = None
    engines: tuple[str, ...] | None = None
    passes: tuple[str, ...] | None = None
    keep_float: tuple[str, ...] = ()
    custom_ops: tuple[Path, ...] = ()
    effort: Effort = field(default_factory=Effort)
    time_limit_s: float | None = None
    trial_limit_s: float | None = None
    calibration: int = 300
    seed: int = 0
    out: Path = Path("model.hasten")
    keep_exact: bool = True
    keep_requests: bool = True
    accept_uncertified: bool = False
    allow_near_copies: bool = False
    end_to_end: bool = False
    states: Pairs = ()
    scored: Scored | None = None
    ask_labels: str | None = None
    trust_code: bool = False
    pad: Pads = ()

    def __post_init__(self) -> None:
        check_limits(self.max_drop, self.confidence)
        for name, allowed in (
            ("guard", get_args(Guard)),
            ("mean over", get_args(Over)),
            ("objective", get_args(Statistic)),
        ):
            value = getattr(self, name.replace(" ", "_"))
            if value not in allowed:
                known = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                raise InputError(f"the {name} is {known}: got {value!r}")
        if self.scored not in (None, *get_args(Scored)):
            raise InputError(f"scored is all or last: got {self.scored!r}")
        if self.ask_labels is not None and not is_way(self.ask_labels):
            raise InputError(
                "ask_labels takes page, csv, wait, my.py:oracle, or a file such as labels.csv: got "
                f"ask_labels={self.ask_labels!r}"
            )
        if self.scored is not None and not self.states:
            raise InputError("scored= is about the steps of sequences: give states= too")
        if self.states and self.report not in (None, (), ("none",)):
            raise InputError(
                "report= states figures of single answers, but states= makes each sample a whole "
                "sequence: leave one of them out"
            )
        limits = {
            "time limit": self.time_limit_s,
            "trial limit": self.trial_limit_s,
            "budget": self.budget_s,
        }
        for name, limit_s in limits.items():
            if limit_s is not None and not _positive(limit_s):
                raise InputError(f"the {name} is in seconds, above 0: got {limit_s!r}")
        check_bound(self.latency_bound_s)

    def changed(self, **options: Unpack[Options]) -> Order:
        """Return a copy of the order with some options changed.

        Args:
            **options: New values by the name of the option, which is one of the attributes.

        Raises:
            InputError: an option, named in the message, is out of its range.
            TypeError: there is no such option.
        """
        given: dict[str, Any] = dict(options)
        for name in _SEQUENCES:
            if isinstance(given.get(name), (str, SetMetric)):
                given[name] = (given[name],)
            elif given.get(name) is not None:
                given[name] = tuple(given[name])
        if isinstance(given.get("metric"), (list, tuple)):
            given["metric"] = named_metric(given["metric"]) if given["metric"] else None
        if "states" in given:
            given["states"] = pairs_of(given["states"] or ())
        if "pad" in given:
            given["pad"] = pads_of(given["pad"] or ())
        if "effort" in given:
            given["effort"] = effort_of(given["effort"])
        if "out" in given:
            given["out"] = with_name(Path(given["out"]))
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(given.keys() - known):
            close = difflib.get_close_matches(unknown[0], known, 1)
            hint = (
                f": did you mean {close[0]}=?"
                if close
                else f"; there are {', '.join(sorted(known))}"
            )
            raise TypeError(f"there is no option {unknown[0]}={hint}")
        return dataclasses.replace(self, **given)


def order_of(**options: Unpack[Options]) -> Order:
    """Return the order that keywords describe.

    Raises:
        InputError: an option, named in the message, is out of its range.
        TypeError: there is no such option.
    """
    return Order(effort=effort_of("normal")).changed(**options)


def is_way(how: object) -> bool:
    """Whether labels can be asked for in a way: by name, by a CSV file, or by a function's place."""
    if not isinstance(how, str):
        return False
    return how in WAYS or how.endswith(".csv") or is_function(how)


def is_function(how: str) -> bool:
    """Whether a way of asking for labels is a function's place, "my.py:oracle" or "module:oracle"."""
    return ":" in how and not how.endswith((":", ".csv"))


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0
