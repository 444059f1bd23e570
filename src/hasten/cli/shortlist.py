"""hasten shortlist."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.options import Latency, Seconds, one_line_errors

if TYPE_CHECKING:
    from hasten.lightening.shortlisting import Shortlist, ShortlistEntry


class Shape(click.ParamType[tuple[int, ...]]):
    """The shape of one sample, written "3x64x64"."""

    name = "shape"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            sizes = tuple(int(part) for part in str(value).split("x"))
        except ValueError:
            sizes = ()
        if len(sizes) != 3 or min(sizes) < 1:
            self.fail(
                f"{value!r} is no shape; write channels x height x width: 3x64x64", param, ctx
            )
        return sizes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--task",
    type=click.Choice(["classify", "detect"]),
    default="classify",
    show_default=True,
    help="What it is to do.",
)
@click.option(
    "--classes", type=click.IntRange(min=1), required=True, help="How many it tells apart."
)
@click.option(
    "--input", "input_shape", type=Shape(), required=True, help="Of one sample, as 3x64x64."
)
@click.option(
    "--budget",
    "budget_s",
    type=Latency(),
    required=True,
    help="What one request may take, as 2ms.",
)
@click.option("--engine", "engines", multiple=True, help="Try this engine only; may be repeated.")
@click.option(
    "--architecture", "architectures", multiple=True, help="Try this one only; may be repeated."
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many to list.",
)
@click.option(
    "--time-limit",
    "time_limit_s",
    type=Seconds(),
    default="40s",
    show_default=True,
    help="Nothing new is measured after so long.",
)
@click.option("--fresh", is_flag=True, help="Measure anew what was measured before.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of what was measured before; by default in the user's cache folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all that was measured as JSON.")
def shortlist(as_json: bool, top: int, engines: tuple[str, ...], **options: Any) -> None:
    """Say which architectures fit a budget on this machine, before anything is trained."""
    with one_line_errors("stopped; what was measured is kept, the next call goes on"):
        from hasten.cli.screen import screen
        from hasten.core.records import to_record
        from hasten.lightening.shortlisting import shortlist as run

        chosen: dict[str, Any] = {"engines": engines} if engines else {}
        with screen() as listen:
            result = run(**options, **chosen, listen=listen)
        click.echo(json.dumps(to_record(result), indent=1) if as_json else in_words(result, top))


def in_words(result: Shortlist, top: int) -> str:
    """Write a shortlist as a table, and what to know of it."""
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
        f"{measure}: as published of width 1 and the usual input, not of this one",
    ]
    if busy := sum(not one.prospect.calm for one in result.measured):
        lines.append(
            f"note: the host was busy while {busy} of them were measured; --fresh measures anew"
        )
    if not result.complete:
        lines.append("note: the time limit left something to try; call again to go on")
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
