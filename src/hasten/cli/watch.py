"""Define `hasten watch`, which answers a stream of pictures as it comes."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli import completing
from hasten.cli.config import Configurable
from hasten.cli.options import Latency, Seconds, custom_ops_option, one_line_errors, trusted_option
from hasten.cli.tables import aligned
from hasten.errors import InputError

if TYPE_CHECKING:
    from hasten.serving.streams.tally import Watched


@click.command(cls=Configurable, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option(
    "--source",
    required=True,
    help="Video file, folder of pictures, camera such as /dev/video0, or rtsp:// address.",
)
@click.option(
    "--fps",
    type=float,
    help="Frames per second.  [default: the source's own; 30 for a folder]",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=Latency(),
    help="Longest time from capture to decision, such as 33ms.  [default: one period]",
)
@click.option(
    "--drop-late",
    is_flag=True,
    help="Drop decisions that come after the deadline, instead of marking them as missed.",
)
@click.option(
    "--as-fast-as-possible",
    is_flag=True,
    help="Answer every frame of a recording, without waiting for the times of its frames.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Video to write with the decisions drawn in: .mp4, .mkv or .mov.",
)
@click.option(
    "--decisions",
    type=click.Path(path_type=Path),
    help="File to write with a line of JSON for each answered frame.",
)
@click.option(
    "--reconnect",
    "reconnect_s",
    type=Seconds(),
    default="0s",
    show_default=True,
    help="How long to try to reach a camera that disconnected.",
)
@click.option(
    "--for", "duration_s", type=Seconds(), help="Length of the watch.  [default: the source's]"
)
@click.option("--exact", is_flag=True, help="Answer with the bundle's exact model.")
@custom_ops_option
@trusted_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def watch(
    bundle: Path,
    exact: bool,
    custom_ops: tuple[Path, ...],
    trusted: tuple[str, ...] | None,
    as_json: bool,
    deadline_s: float | None,
    **options: Any,
) -> None:
    """Answer a stream's frames with BUNDLE, or a chain, as they arrive, the newest first.

    A frame that a newer one overtakes is dropped, never queued. Ctrl-C ends the watch, with the
    counts and with complete files.

    The exit code is 1 if a camera went away for good, if a recording is cut short, or if a file
    that was asked for couldn't be written.
    """
    with one_line_errors(), _term_is_interrupt():
        from hasten import chain, load
        from hasten import watch as run
        from hasten.core.records import to_record
        from hasten.inputs.chains import is_chain

        deadline_ns = None if deadline_s is None else round(1e9 * deadline_s)
        which: Any = "exact" if exact else "winner"
        if is_chain(bundle) and custom_ops:
            raise InputError(
                "--custom-ops is for a single bundle: open the chain with hasten.chain"
            )
        opened: Any = (
            chain(bundle, which=which, sessions=1, trusted=trusted)
            if is_chain(bundle)
            else load(
                bundle,
                which=which,
                custom_ops=custom_ops,
                sessions=1,
                trusted=trusted,
                beside_others=True,  # frames are read and drawn meanwhile
            )
        )
        with opened, _live_line() as listen:
            watched = run(opened, deadline_ns=deadline_ns, listen=listen, **options)
        click.echo(
            json.dumps(to_record(watched), indent=1) if as_json else "\n".join(in_words(watched))
        )
    lacking = options["out"] is not None and watched.overlay is None and watched.captured
    if watched.ended in ("lost", "cut short") or lacking:
        sys.exit(1)


@contextlib.contextmanager
def _term_is_interrupt() -> Iterator[None]:
    """End a watch on SIGTERM as on Ctrl-C, with whole files."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _live_line() -> Iterator[Callable[[Watched], None] | None]:
    """Yield what shows the counts on one line of a terminal; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        # Live hides the cursor, which a process that is killed or crashes couldn't show again.
        live.console.show_cursor()
        yield lambda watched: live.update(
            Text(line(watched), no_wrap=True, overflow="ellipsis"), refresh=True
        )


def line(watched: Watched) -> str:
    """Return the counts in one line."""
    said = (
        f"{watched.captured:,} captured, {watched.answered:,} answered, {watched.dropped:,} dropped, "
        f"{watched.missed:,} missed"
    )
    if watched.latency_ns:
        said += (
            f"; p50 {_ms(watched.p50_ns)}, p99 {_ms(watched.p99_ns)}, most {_ms(watched.most_ns)}"
        )
    return f"{said}; {watched.notes[-1]}" if watched.notes else said


def in_words(watched: Watched) -> list[str]:
    """Return the result in a few lines: a table, the files and the notes."""
    paced = watched.deadline_ns is not None
    rate = f"{watched.rate_per_s:g} frames a second" if paced else "as fast as possible"
    ended = {
        "end": "to its end",
        "stopped": "until it was stopped",
        "cut short": "until it failed",
        "lost": "until the camera disconnected",
    }[watched.ended]
    rows = [
        ("captured", f"{watched.captured:,}"),
        ("answered", f"{watched.answered:,}{_share(watched.answered, watched.captured)}"),
        ("dropped", f"{watched.dropped:,}{_share(watched.dropped, watched.captured)}"),
        *(
            [
                (
                    "missed",
                    f"{watched.missed:,}{_share(watched.missed, watched.answered)}, answered after "
                    f"{_ms(watched.deadline_ns)}",
                )
            ]
            if paced
            else []
        ),
        *(
            [
                (
                    "late",
                    f"{watched.late:,} of those dropped, decided after {_ms(watched.deadline_ns)}",
                )
            ]
            if watched.late
            else []
        ),
        *(
            [("refused", f"{watched.refused:,} of those dropped, which the bundle can't decide on")]
            if watched.refused
            else []
        ),
        *([("unreadable", f"{watched.unreadable:,}")] if watched.unreadable else []),
        ("p50", _ms(watched.p50_ns)),
        ("p99", _ms(watched.p99_ns)),
        ("most", _ms(watched.most_ns)),
    ]
    lines = [
        f"{watched.source}, {rate}, watched for {watched.duration_ns / 1e9:.1f} s, {ended}",
        aligned(rows),
    ]
    if watched.overlay is not None:
        left_out = f", {watched.overlay_dropped:,} frames left out"
        lines.append(f"overlay: {watched.overlay}{left_out if watched.overlay_dropped else ''}")
    if watched.decisions is not None:
        lines.append(f"decisions: {watched.decisions}")
    return lines + [f"note: {note}" for note in watched.notes]


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if part and whole else ""


def _ms(value_ns: int | None) -> str:
    return "none" if value_ns is None else f"{float(f'{value_ns / 1e6:.3g}'):g} ms"
