"""Define `hasten shortlist`, which lists architectures that fit a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli import completing
from hasten.cli.config import Configurable
from hasten.cli.options import Latency, Seconds, one_line_errors

if TYPE_CHECKING:
    from hasten.lightening.shortlisting import Shortlist, ShortlistEntry


class Shape(click.ParamType[tuple[int, ...]]):
    """Parse the shape of one sample, written "3x64x64"."""

    name = "shape"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            sizes = tuple(int(part) for part in str(value).split("x"))
        except ValueError:
            sizes = ()
        if len(sizes) != 3 or min(sizes) < 1:
            self.fail(
                f"{value!r} is not a shape; write channels x height x width: 3x64x64", param, ctx
            )
        return sizes


@click.command(cls=Configurable, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--task",
    type=click.Choice(["classify", "detect"]),
    default="classify",
    show_default=True,
    help="Task of the network.",
)
@click.option("--classes", type=click.IntRange(min=1), required=True, help="Number of classes.")
@click.option(
    "--input",
    "input_shape",
    type=Shape(),
    required=True,
    help="Shape of one sample, such as 3x64x64.",
)
@click.option(
    "--budget",
    "budget_s",
    type=Latency(),
    required=True,
    help="Longest latency of one request, such as 2ms.",
)
@click.option(
    "--engine",
    "engines",
    shell_complete=completing.engines,
    multiple=True,
    help="Try this engine only; may be repeated.",
)
@click.option(
    "--architecture",
    "architectures",
    multiple=True,
    help="Try this architecture only; may be repeated.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of architectures to list.",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    type=Seconds(),
    help="Time after which no new measurement starts.  [default: 40s; up to four times as long "
    "if no architecture is known to fit and one still may]",
)
@click.option("--fresh", is_flag=True, help="Ignore earlier measurements and measure again.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of earlier measurements.  [default: a folder in the user's cache]",
)
@click.option("--json", "as_json", is_flag=True, help="Print all measurements as JSON.")
def shortlist(as_json: bool, top: int, engines: tuple[str, ...], **options: Any) -> None:
    """List architectures that fit a budget on this machine, before anything is trained."""
    with one_line_errors("stopped; measurements are kept: call again to continue"):
        from hasten.cli.screen import screen
        from hasten.core.records import to_record
        from hasten.lightening.shortlisting import shortlist as run

        chosen: dict[str, Any] = {"engines": engines} if engines else {}
        if options["time_limit_s"] is None:
            del options["time_limit_s"]
            chosen["insist"] = True
        with screen() as listen:
            result = run(**options, **chosen, listen=listen)
        click.echo(json.dumps(to_record(result), indent=1) if as_json else in_words(result, top))


def in_words(result: Shortlist, top: int) -> str:
    """Write a shortlist as a table, followed by notes on how to read it."""
    from hasten.cli.tables import aligned
    from hasten.reporting.rows import latency

    measure = "ImageNet top-1" if result.task == "classify" else "COCO AP"
    head = ("architecture", "width", "pixels", "p50", "fastest by", "mult-adds", "params", measure)
    shown = result.entries[:top]
    own = max(result.input_shape[1:])
    lines = [
        aligned([head, *(_row(one, own) for one in shown)]),
        "",
        f"{len(shown)} of {len(result.entries)} families that fit {latency(result.budget_ns)}, the "
        f"most promising first; {len(result.measured)} networks known, untrained",
        f"{measure}: as published for width 1 and the usual input size, not for this input",
    ]
    if busy := sum(not one.prospect.calm for one in result.measured):
        lines.append(
            f"note: the host was busy while {busy} of them were measured; --fresh measures again"
        )
    if not result.complete:
        lines.append("note: the time limit ended the search early; call again to continue")
    lines += [f"note: {name}: {why}" for name, why in result.failed.items()]
    return "\n".join(lines)


def _row(one: ShortlistEntry, own_pixels: int) -> Sequence[str]:
    from hasten.reporting.rows import latency

    prospect = one.prospect
    return (
        one.architecture,
        f"{one.width:g}",
        str(one.pixels or own_pixels),
        latency(prospect.latency_ns, prospect.low_ns, prospect.high_ns),
        prospect.label,
        f"{one.madds / 1e6:.3g}M",
        f"{one.parameters / 1e6:.3g}M",
        f"{one.accuracy:g}%",
    )
