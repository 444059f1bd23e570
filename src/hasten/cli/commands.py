"""The commands. Each parses, calls one function and prints what it gives."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from hasten import __version__
from hasten.cli.options import (
    Latency,
    OneLine,
    Seconds,
    Share,
    custom_ops_option,
    guard_choice,
    image_options,
    image_pipeline_of,
    one_line_errors,
    order_of_flags,
    order_options,
)
from hasten.core.invocation import typed
from hasten.errors import InputError


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hasten")
def main() -> None:
    """The fastest version of your model that is certified to still give the right answers."""


@main.command()
@click.argument("model")
@click.option("--data", required=True, help=".npz, a folder of images, or module:function.")
@click.option(
    "--objective",
    type=click.Choice(["p50", "mean", "p99"]),
    default="p50",
    show_default=True,
    help="What of the latency is to be small; p99 takes longer to tell.",
)
@click.option("--training", help="Training data to calibrate from.")
@click.option("--small-model", help="A smaller model, to answer wherever it is good enough.")
@image_options
@click.option(
    "--keep-float", multiple=True, metavar="NODE", help="Leave this node alone; may be repeated."
)
@custom_ops_option
@click.option("--time-limit", type=Seconds(), help="For the search, as 90s, 5m, 1h.")
@click.option(
    "--trial-limit",
    type=Seconds(),
    help="For one step of one candidate; by default 5m, and 15m where designs are placed and routed.",
)
@click.option(
    "--latency-bound",
    "latency_bound_s",
    type=Latency(),
    help="Measure how many requests a second stay under it, as 20ms.",
)
@click.option(
    "--target",
    default="host",
    show_default=True,
    help="The device: cuda, tpu:v5e, fpga:ecp5, qnn, ...; hasten doctor lists them.",
)
@click.option(
    "--budget", "budget_s", type=Latency(), help="What one request may take, as 200ns or 5ms."
)
@order_options
def optimize(as_json: bool, model: str, data: str, **options: Any) -> None:
    """Make the fastest certified version of MODEL.

    For a device that isn't here, the exit code is 0 if something for it ships, 1 if not: then the
    bundle holds the original, for this host.
    """
    began = time.monotonic()
    with one_line_errors("stopped; what is done is kept, go on with --resume"):
        from hasten import optimize as run
        from hasten.cli.screen import screen, summary

        pipeline = image_pipeline_of(options)
        with typed(click.get_current_context().obj), screen() as listen:
            result = run(model, data, pipeline=pipeline, listen=listen, **order_of_flags(options))
        click.echo(as_text(result) if as_json else summary(result, began))
    if result.estimates is not None and result.shipped is None:
        raise SystemExit(1)


@main.command()
@click.argument("bundle")
@click.option(
    "--against", help="An .onnx file, or my.py:predict; by default the bundle's exact model."
)
@click.option("--data", help="Requests; by default those that the bundle keeps, else made up.")
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "server", "offline"]),
    help="Put it under load instead, in one of MLCommons' scenarios.",
)
@click.option(
    "--latency-bound", "latency_bound_s", type=Latency(), help="Of --scenario server, as 20ms."
)
@click.option(
    "--sessions", type=int, help="Of a scenario: how many answer side by side; by default one."
)
@click.option(
    "--duration", "duration_s", type=Seconds(), help="Of each run of a scenario; by default 5s."
)
@custom_ops_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(as_json: bool, bundle: str, **options: Any) -> None:
    """Time BUNDLE in turns with what you have today, or under load."""
    with one_line_errors():
        load = {
            name: value
            for name in ("scenario", "latency_bound_s", "sessions", "duration_s")
            if (value := options.pop(name)) is not None
        }
        if "scenario" in load:
            _under_load(as_json, bundle, {**options, **load})
            return
        if load:
            raise InputError(
                "--latency-bound, --sessions and --duration are of a --scenario: name one"
            )
        from hasten import bench as run
        from hasten.cli.screen import table

        result = run(bundle, **options)
        if as_json:
            click.echo(as_text(result))
            return
        click.echo(table([result.against, result.bundle]))
        click.echo(f"{result.threads} thread(s), batch 1, requests: {result.requests}")
        for note in result.notes:
            click.echo(f"note: {note}")


@main.command()
@click.argument("bundle")
@click.option("--data", required=True, help="Data that the bundle was not made with.")
@click.option("--metric", help="By default the bundle's; needed again where that is my.py:score.")
@click.option("--max-drop", type=Share(), help="By default the certificate's.")
@click.option("--confidence", type=Share(), help="By default the certificate's.")
@click.option("--guard", type=guard_choice, help="By default the certificate's.")
@image_options
@custom_ops_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def certify(as_json: bool, bundle: str, data: str, **options: Any) -> None:
    """Test BUNDLE on new data; the exit code is 0 if it holds, 1 if not."""
    with one_line_errors():
        from hasten import certify as run

        result = run(bundle, data, pipeline=image_pipeline_of(options), **options)
        click.echo(as_text(result) if as_json else result.in_words())
    raise SystemExit(0 if result.passed else 1)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option(
    "--requirements",
    "as_requirements",
    is_flag=True,
    help="Print what it needs, for pip install --requirement.",
)
@click.option("--serve", is_flag=True, help="With --requirements: also what serves it.")
def inspect(bundle: Path, as_json: bool, as_requirements: bool, serve: bool) -> None:
    """Check BUNDLE and say what is in it."""
    from hasten.bundle import differences, read, requirements
    from hasten.bundle.evidence import batch_curve
    from hasten.bundle.requests import in_words
    from hasten.cli.tables import curve_table
    from hasten.core.devices import at_hand
    from hasten.measure.environment import environment

    with one_line_errors():
        if as_json and as_requirements:
            raise InputError("--json and --requirements print two things: give one of them")
        if serve and not as_requirements:
            raise InputError("--serve says what to add to --requirements: give both")
        manifest = read(bundle)
        if as_json:
            click.echo(as_text(manifest))
            return
        if as_requirements:
            click.echo("\n".join(requirements(manifest, ["serve"] if serve else [])))
            return
        curve = batch_curve(bundle, manifest)
        size = sum(size_bytes for _, size_bytes in manifest.files.values())
        facts = [
            ("status", f"{manifest.status}: {manifest.why}"),
            ("model", manifest.winner.label),
            ("inputs", "; ".join(map(str, manifest.winner.artifact.inputs))),
            ("outputs", "; ".join(map(str, manifest.winner.artifact.outputs))),
            ("exact model", manifest.exact.label if manifest.exact else "left out"),
            ("samples", in_words(manifest.requests)),
            ("population", (manifest.certificate or {}).get("population", "none")),
            ("made on", f"{manifest.target.processor}, {manifest.target.threads} thread(s)"),
            *([("made for", manifest.target.device)] if manifest.target.kind != "host" else []),
            ("made at", manifest.created),
            ("size", f"{size / 1e6:.1f} MB in {len(manifest.files)} files, each as it was written"),
        ]
        here = at_hand(manifest.target)
        unlike = differences(manifest, here, environment(here))
        facts.append(("this machine", "; ".join(unlike) or "as it was made on"))
        for name, value in facts:
            click.echo(f"{name + ':':14}{value}")
        if curve:
            click.echo(f"\n{curve_table(curve)}")


@main.command()
@click.option(
    "--ceilings", is_flag=True, help="Measure what it can do at all, too: some ten seconds."
)
def doctor(ceilings: bool) -> None:
    """Say what this machine has: cores, instruction sets, engines, extras."""
    from hasten.evaluation.doctor import examine

    with one_line_errors():
        for name, value in examine(ceilings=ceilings):
            click.echo(f"{name + ':':14}{value}")


@main.command()
@click.argument("which", type=click.Choice(["photos", "digits"]), default="photos")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder.")
def demo(which: str, out: Path | None) -> None:
    """Optimize a real model: EfficientNet-Lite0 on photos, or a CNN on handwritten digits."""
    began = time.monotonic()
    with one_line_errors():
        from hasten.cli.demos import find

        run = find(which)
        from hasten.cli.screen import screen, summary

        with typed(click.get_current_context().obj), screen() as listen:
            result = run(out or Path(f"{which}.hasten"), listen)
        click.echo(summary(result, began))


@main.command()
@click.argument("model")
@click.option("--data", help="Requests; by default those that the bundle keeps, else made up.")
@click.option("--engine", "engines", multiple=True, help="On this engine only; may be repeated.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="How many of the longest steps to list.",
)
@image_options
@custom_ops_option
@click.option("--json", "as_json", is_flag=True, help="Print every step's latencies as JSON.")
def profile(as_json: bool, top: int, model: str, **options: Any) -> None:
    """Say where MODEL, or a bundle, spends its time, step by step."""
    with one_line_errors():
        from hasten import profile as run
        from hasten.cli.profile_table import profile_table

        profiles = run(model, pipeline=image_pipeline_of(options), **options)
        if as_json:
            click.echo(as_text(profiles))
            return
        click.echo("\n\n".join(profile_table(one, top) for one in profiles))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file; by default the bundle's name and .html, beside it.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the records behind it as JSON instead."
)
def report(as_json: bool, bundle: Path, out: Path | None) -> None:
    """Write what BUNDLE's run measured and certified as one HTML page."""
    if as_json and out is not None:
        raise click.UsageError("--json prints, and --out is for the page: leave one of them out")
    with one_line_errors():
        from hasten import report as run
        from hasten.reporting.evidence import gathered

        if as_json:
            click.echo(as_text(gathered(bundle)))
            return
        click.echo(f"report: {run(bundle, out)}")


def _under_load(as_json: bool, bundle: str, options: dict[str, Any]) -> None:
    """Run a scenario; each run is a line on standard error."""
    from hasten import load_test
    from hasten.evaluation.scenarios import in_words, try_in_words

    if options.pop("against") is not None:
        raise InputError("a scenario is of the bundle alone: leave out --against or --scenario")
    result = load_test(
        bundle, **options, listen=lambda load: click.echo(try_in_words(load), err=True)
    )
    click.echo(as_text(result) if as_json else "\n".join(in_words(result)))


def as_text(record: Any) -> str:
    from hasten.core.records import to_record

    return json.dumps(to_record(record), indent=1)
