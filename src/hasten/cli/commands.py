"""Define the commands: each parses its options, calls one function and prints the result."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten import __version__
from hasten.cli import completing
from hasten.cli.config import VARIABLE, Configurable, asked, config_of
from hasten.cli.deep import check_deeply
from hasten.cli.options import (
    GUARD_HELP,
    OVER_HELP,
    BatchSizes,
    Latency,
    OneLine,
    Seconds,
    Share,
    custom_ops_option,
    details_option,
    guard_choice,
    image_options,
    image_pipeline_of,
    in_flags,
    one_line_errors,
    one_or_more,
    order_of_flags,
    order_options,
    over_choice,
    report_option,
    trust_code_option,
    trusted_option,
)
from hasten.core.invocation import typed
from hasten.core.words import amount
from hasten.errors import CandidateError, InputError

if TYPE_CHECKING:
    from hasten.evaluation.seen import Recheck


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hasten")
@click.option(
    "--config",
    metavar="FILE",
    envvar=VARIABLE,
    help="File with options for commands, or off.  [default: hasten.toml of this folder or of "
    "one above it, up to "
    "the root of the repository]",
)
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """Find the fastest version of your model that is certified to still give the right answers."""
    with one_line_errors():
        ctx.default_map = config_of(ctx, config)


@main.command(cls=Configurable)
@click.argument("model", shell_complete=completing.models)
@click.option(
    "--data",
    shell_complete=completing.data,
    help="Evaluation data: an .npz file, a folder of images, of sounds or of texts, a table (rows.csv or rows.parquet, "
    "with rows.csv:label for a column of labels), a .txt or .jsonl file of texts, or module:function.  [default: made-up inputs, for a first try]",
)
@click.option(
    "--objective",
    type=click.Choice(["p50", "mean", "p99"]),
    default="p50",
    show_default=True,
    help="Latency statistic to minimize; p99 takes longer to measure.",
)
@click.option("--training", shell_complete=completing.data, help="Training data to calibrate from.")
@click.option(
    "--small-model",
    shell_complete=completing.models,
    help="Smaller model that answers where it is good enough.",
)
@image_options
@click.option(
    "--keep-float", multiple=True, metavar="NODE", help="Keep this node in float; may be repeated."
)
@custom_ops_option
@click.option(
    "--time-limit",
    type=Seconds(),
    help="Longest time for the whole command, such as 90s, 5m or 1h.",
)
@click.option(
    "--trial-limit",
    type=Seconds(),
    help="Longest time for one step of one candidate.  [default: 5m; 15m if FPGA designs are placed and routed]",
)
@click.option(
    "--latency-bound",
    "latency_bound_s",
    type=Latency(),
    help="Also measure how many requests per second stay within this latency, such as 20ms.",
)
@click.option(
    "--target",
    shell_complete=completing.targets,
    default="host",
    show_default=True,
    help="Device to optimize for: cuda, tpu:v5e, fpga:ecp5, qnn, ...; hasten doctor lists them.",
)
@click.option(
    "--budget",
    "budget_s",
    type=Latency(),
    help="Longest latency of one request, such as 200ns or 5ms.",
)
@click.option(
    "--ask-labels",
    is_flag=False,
    flag_value="page",
    metavar="[=HOW]",
    help="Ask for labels only of those sealed samples on which answers differ: on a page next to the bundle; "
    "or =csv, =wait (the page is served, and the run waits), =my.py:oracle, =labels.csv.",
)
@trust_code_option
@order_options
@details_option
def optimize(as_json: bool, details: bool, model: str, data: str | None, **options: Any) -> None:
    """Make the fastest certified version of MODEL.

    Without data, it makes the fastest version of the model's own precision; the result says what others could
    reach and what data a certificate takes.

    With a target that isn't attached to this machine, the exit code is 0 if the bundle holds a model
    for that target; it is 1 if the bundle holds the original model for this host instead. It is 3 if
    the run needs labels: once they are given, --resume continues it.
    """
    began = time.monotonic()
    with one_line_errors("stopped; finished work is kept: continue with --resume"):
        from hasten import optimize as run
        from hasten.cli.card import show
        from hasten.cli.screen import screen

        pipeline = image_pipeline_of(options)
        with typed(asked(), began), screen() as listen:
            result = run(model, data, pipeline=pipeline, listen=listen, **order_of_flags(options))
        if as_json:
            click.echo(as_text(result))
        else:
            show(result, began, with_details=details)
    if result.estimates is not None and result.shipped is None:
        raise SystemExit(1)


@main.command(cls=Configurable)
@click.argument("bundle", shell_complete=completing.bundles)
@click.option(
    "--against",
    shell_complete=completing.models,
    help="Deployment to compare with: an .onnx file or my.py:predict.  "
    "[default: the bundle's exact model]",
)
@click.option(
    "--data",
    shell_complete=completing.data,
    help="Requests to send.  [default: those that the bundle keeps, else random ones]",
)
@click.option(
    "--end-to-end",
    is_flag=True,
    help="Compare the whole path from a file's bytes to the decision; --data is a folder of files, and "
    "my.py:predict gets a file's bytes.",
)
@click.option(
    "--pipeline",
    "pipeline_file",
    shell_complete=completing.pipelines,
    type=click.Path(path_type=Path),
    help="Steps of the model that BUNDLE is compared with, as optimize takes them, for --end-to-end.  "
    "[default: the bundle's own]",
)
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "server", "offline"]),
    help="Run this MLCommons load scenario instead of comparing latencies.",
)
@click.option(
    "--latency-bound",
    "latency_bound_s",
    type=Latency(),
    help="Latency bound of --scenario server, such as 20ms.",
)
@click.option(
    "--sessions",
    type=int,
    help="Sessions that answer in parallel in a scenario.  [default: 1]",
)
@click.option(
    "--duration",
    "duration_s",
    type=Seconds(),
    help="Length of each run of a scenario.  [default: 5s]",
)
@click.option(
    "--cold",
    is_flag=True,
    help="Time fresh processes from their start to the first answer, with and without the cache.",
)
@click.option("--starts", type=int, help="Counted starts of each kind with --cold.  [default: 7]")
@click.option(
    "--time-limit",
    "time_limit_s",
    type=Seconds(),
    help="Longest time for the whole comparison, such as 30s or 5m.",
)
@custom_ops_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(as_json: bool, bundle: str, **options: Any) -> None:
    """Compare BUNDLE's latency with your current deployment's, or run it under load.

    BUNDLE may also be a chain, DET.hasten+crop+OCR.hasten or CHAIN.yaml, with --end-to-end or --cold and
    --data.
    """
    with one_line_errors():
        starts = options.pop("starts")
        if options.pop("cold"):
            from hasten.inputs.chains import is_chain

            chained = is_chain(bundle)
            data = options.pop("data") if chained else None
            if any(options.values()):
                kind, kept = ("chain", "--data and --starts") if chained else ("bundle", "--starts")
                raise InputError(
                    f"--cold starts only the {kind}: leave out everything except {kept}"
                )
            _cold(as_json, bundle, data, 7 if starts is None else starts)
            return
        if starts is not None:
            raise InputError("--starts needs --cold: add it")
        load = {
            name: value
            for name in ("scenario", "latency_bound_s", "sessions", "duration_s")
            if (value := options.pop(name)) is not None
        }
        file, end_to_end = options.pop("pipeline_file"), options.pop("end_to_end")
        if "scenario" in load:
            if file is not None or end_to_end:
                raise InputError("--scenario puts the model under load: leave out --end-to-end")
            if options.pop("time_limit_s") is not None:
                raise InputError(
                    "--scenario has runs of a fixed length: leave out --time-limit, and give --duration"
                )
            _under_load(as_json, bundle, {**options, **load})
            return
        if file is not None and not end_to_end:
            raise InputError("--pipeline is for --end-to-end: add it")
        if load:
            raise InputError(
                "--latency-bound, --sessions and --duration need a --scenario: add one"
            )
        from hasten import bench as run
        from hasten.cli.screen import stages, table

        if file is not None:
            from hasten.inputs.pipeline.config import from_path

            options["pipeline"] = from_path(file)
        result = run(bundle, end_to_end=end_to_end, **options)
        if as_json:
            click.echo(as_text(result))
            return
        click.echo(table([result.against, result.bundle]))
        if result.stages:
            click.echo(stages(result))
        click.echo(f"{amount(result.threads, 'thread')}, batch 1, requests: {result.requests}")
        for note in result.notes:
            click.echo(f"note: {note}")


@main.command(cls=Configurable)
@click.argument("bundle", shell_complete=completing.bundles)
@click.option(
    "--data",
    shell_complete=completing.data,
    required=True,
    help="Data that the bundle was not made with.",
)
@click.option(
    "--metric",
    shell_complete=completing.metrics,
    multiple=True,
    callback=one_or_more,
    help="Metric to score with; may be repeated for several outputs; required if the bundle's is "
    "my.py:score.  [default: the bundle's]",
)
@report_option
@click.option(
    "--max-drop",
    type=Share(),
    help="Largest accepted drop in accuracy.  [default: the certificate's]",
)
@click.option(
    "--confidence",
    type=Share(),
    help="Confidence of the test.  [default: the certificate's]",
)
@click.option(
    "--guard",
    type=guard_choice,
    help=f"{GUARD_HELP}  [default: the certificate's]",
)
@click.option("--mean-over", type=over_choice, help=f"{OVER_HELP}  [default: the certificate's]")
@click.option(
    "--batch-sizes",
    type=BatchSizes(),
    help="Batch sizes at which the limit must hold too, such as 1,4,8.  [default: the certificate's]",
)
@click.option(
    "--reference",
    is_flag=True,
    help="Calculate the answers of a quantized network of compiled C in NumPy: slowly, without a compiler.",
)
@image_options
@custom_ops_option
@click.option(
    "--keep",
    is_flag=True,
    help="Keep a chain's certificate in a file beside it, if the limit holds; hasten serve shows it.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    help="File to write the outcome to as JUnit XML, for a CI server.",
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path),
    help="File to add the outcome to as Markdown, such as $GITHUB_STEP_SUMMARY.",
)
@click.option(
    "--history",
    type=click.Path(path_type=Path),
    help="File of JSON lines to add the outcome to; the summary shows its newest ones.",
)
@click.option(
    "--commit",
    default="",
    envvar=["GITHUB_SHA", "CI_COMMIT_SHA"],
    help="Commit that is tested, for the history.  [default: $GITHUB_SHA or $CI_COMMIT_SHA]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def certify(as_json: bool, bundle: str, data: str, keep: bool, **options: Any) -> None:
    """Test BUNDLE on new data; the exit code is 0 if the limit holds, 1 if not.

    It is 2 if there was no test. An exact BUNDLE needs no limit: without
    --max-drop the exit code is 0 if no answer differs from its exact model's.
    """
    began = time.monotonic()
    with one_line_errors():
        from hasten import certify as run
        from hasten.evaluation.gate import Files

        options["report"] = options["report"] or None
        wanted = {name: options.pop(name) for name in ("junit", "summary", "history", "commit")}
        files = Files(**wanted)
        files.check()
        if keep:
            _check_place(bundle)
        try:
            result = run(bundle, data, pipeline=image_pipeline_of(options), **options)
        except (InputError, CandidateError) as error:
            try:
                files.write(bundle, in_flags(str(error)), time.monotonic() - began)
            except InputError as unwritten:
                click.echo(f"hasten: {unwritten}", err=True)
            raise
        click.echo(as_text(result) if as_json else result.in_words())
        files.write(bundle, result, time.monotonic() - began)
        if keep and (said := _kept(result)):
            click.echo(said, err=as_json)
    raise SystemExit(0 if result.passed else 1)


def _kept(result: Recheck) -> str:
    """Keep a chain's certificate, unless there is none; return a line for people, "" for none."""
    if not result.passed:
        if result.place is None or not result.place.exists():
            return ""
        return (
            f"note: {result.place} still has the certificate of an earlier test: remove it if this test "
            "speaks against it"
        )
    if result.certificate is None:
        return (
            "note: no certificate is kept, because these samples gave the same answers in an earlier "
            "test: test with new ones"
        )
    return f"certificate: {result.keep()}"


def _check_place(bundle: str) -> None:
    """Check before a test that its certificate can be kept.

    Raises:
        InputError: it isn't a chain's, or its folder can't be written to.
    """
    from hasten.bundle.chains.certificate import certificate_file

    place = certificate_file(bundle)
    if place is None:
        raise InputError(
            "--keep is for a chain: a bundle contains its certificate, and no test changes it"
        )
    if not os.access(place.parent, os.W_OK):
        raise InputError(f"can't write {place}: its folder isn't there, or isn't yours to write to")


@main.command()
@click.option(
    "--forget",
    is_flag=True,
    help="Delete the whole ledger, so that earlier runs are no longer known. One that is damaged is set aside.",
)
def ledger(forget: bool) -> None:
    """Show, or forget, which samples earlier runs of yours used.

    What was searched on is never sealed again, and what was tested on is tested at a lower level
    after a refusal, so that no certificate is won by running again. The environment variable
    HASTEN_LEDGER names another folder for it, or is "off" for none.
    """
    from hasten.certificate.ledger import Ledger

    with one_line_errors():
        known = Ledger.of_user()
        if forget:
            known.forget()
        for name, value in known.summary():
            click.echo(f"{name + ':':14}{value}")


@main.command()
@click.option(
    "--ceilings",
    is_flag=True,
    help="Also measure this machine's peak compute and memory rates; takes about ten seconds.",
)
@click.option(
    "--deep",
    type=click.Choice(["cuda"]),
    help="Check this device itself instead, for up to 5 minutes: memory, copies, graphs, threads, answers, A/A. "
    "The exit code is 0 if all checks hold, 1 if one fails, and 3 if one couldn't be done.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(ceilings: bool, deep: str | None, as_json: bool) -> None:
    """List what this machine has: cores, instruction sets, engines, extras."""
    from hasten.evaluation.doctor import examine

    with one_line_errors():
        if deep:
            if ceilings:
                raise InputError(
                    "--ceilings measures this host, and --deep checks a device: give only one of "
                    "them"
                )
            check_deeply(deep, as_json)
        findings = examine(ceilings=ceilings)
        if as_json:
            click.echo(json.dumps(dict(findings), indent=2))
            return
        for name, value in findings:
            click.echo(f"{name + ':':14}{value}")


@main.command()
@click.argument("which", type=click.Choice(["photos", "digits"]), default="photos")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the bundle.  [default: photos.hasten or digits.hasten]",
)
@details_option
def demo(which: str, out: Path | None, details: bool) -> None:
    """Optimize a real model: EfficientNet-Lite0 on photos, or a CNN on handwritten digits."""
    began = time.monotonic()
    with one_line_errors():
        from hasten.cli.demos import find

        run = find(which)
        from hasten.cli.card import show
        from hasten.cli.screen import screen

        with typed(asked()), screen() as listen:
            result = run(out or Path(f"{which}.hasten"), listen)
        show(result, began, with_details=details)


@main.command(cls=Configurable)
@click.argument("model", shell_complete=completing.models)
@click.option(
    "--data",
    shell_complete=completing.data,
    help="Requests to run.  [default: those that the bundle keeps, else random ones]",
)
@click.option(
    "--engine",
    "engines",
    shell_complete=completing.engines,
    multiple=True,
    help="Profile on this engine only; may be repeated.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Number of the longest steps to list.",
)
@image_options
@custom_ops_option
@trust_code_option
@click.option("--json", "as_json", is_flag=True, help="Print the latencies of each step as JSON.")
def profile(as_json: bool, top: int, model: str, **options: Any) -> None:
    """Show where MODEL, or a bundle, spends its time, step by step."""
    with one_line_errors():
        from hasten import profile as run
        from hasten.cli.profile_table import profile_table

        profiles = run(model, pipeline=image_pipeline_of(options), **options)
        if as_json:
            click.echo(as_text(profiles))
            return
        click.echo("\n\n".join(profile_table(one, top) for one in profiles))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option(
    "--warm",
    is_flag=True,
    help="Keep the compiled model, so that BUNDLE opens quickly here the next time.",
)
@custom_ops_option
@trusted_option
def load(
    bundle: Path, warm: bool, custom_ops: tuple[Path, ...], trusted: tuple[str, ...] | None
) -> None:
    """Open BUNDLE once, answer one of its requests, and say how long that took."""
    with one_line_errors():
        from hasten.evaluation.opening import opened_once

        for line in opened_once(bundle, warm=warm, custom_ops=custom_ops, trusted=trusted):
            click.echo(line)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.bundles)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File of the page.  [default: next to the bundle, its name with .html]",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the summary and each chart to FOLDER instead, as SVG and PNG, for light and dark pages.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the records behind the page as JSON instead."
)
def report(as_json: bool, bundle: Path, out: Path | None, plots: Path | None) -> None:
    """Write everything that BUNDLE's run measured and certified to one HTML page."""
    if as_json and out is not None:
        raise click.UsageError(
            "--json prints, and --out names a file to write: leave one of them out"
        )
    if plots is not None and (as_json or out is not None):
        raise click.UsageError("--plots writes only pictures: leave out --json and --out")
    with one_line_errors():
        if plots is not None:
            from hasten import plots as drawn

            click.echo(f"plots: {amount(len(drawn(bundle, plots)), 'file')} in {plots}")
            return
        from hasten import report as run
        from hasten.reporting.evidence import gathered

        if as_json:
            click.echo(as_text(gathered(bundle)))
            return
        click.echo(f"report: {run(bundle, out)}")


def _cold(as_json: bool, bundle: str, data: str | None, starts: int) -> None:
    """Time starts of fresh processes, and print a row for each kind."""
    from hasten.bundle.cold import cold_start, cold_start_of_chain
    from hasten.cli.tables import starts_table
    from hasten.inputs.chains import is_chain

    if is_chain(bundle):
        from hasten.bundle.chains.opened import check_chain
        from hasten.inputs.chains import chain_of
        from hasten.inputs.data.files import sample_files

        if data is None:
            raise InputError(
                "a chain's first answer is about a file: give a folder of files in --data"
            )
        chain = chain_of(bundle)
        pipeline = check_chain(chain)[chain.roots[0].name].pipeline
        result = cold_start_of_chain(bundle, sample_files(Path(data), pipeline)[0], starts=starts)
    else:
        result = cold_start(bundle, starts=starts)
    if as_json:
        click.echo(as_text(result))
        return
    click.echo(starts_table(result.rows))
    click.echo(
        f"medians of {starts} starts each, alternately; the cache keeps {result.kept_bytes:,} bytes"
    )


def _under_load(as_json: bool, bundle: str, options: dict[str, Any]) -> None:
    """Run a scenario, and print one line per run to standard error."""
    from hasten import load_test
    from hasten.evaluation.scenarios import in_words, try_in_words

    if options.pop("against") is not None:
        raise InputError("a scenario runs only the bundle: leave out --against or --scenario")
    result = load_test(
        bundle, **options, listen=lambda load: click.echo(try_in_words(load), err=True)
    )
    click.echo(as_text(result) if as_json else "\n".join(in_words(result)))


def as_text(record: Any) -> str:
    from hasten.core.records import to_record

    return json.dumps(to_record(record), indent=1)
