"""Define the types of options, options that commands share, and the errors that end a command."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from hasten.cli import completing
from hasten.errors import CandidateError, InputError, LabelsWanted, visible

F = TypeVar("F", bound=Callable[..., Any])


class Share(click.ParamType[float]):
    """Parse a share, written "1%" or "0.01"."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{text!r} is not a share; write 1% or 0.01", param, ctx)


class Seconds(click.ParamType[float]):
    """Parse a time span into seconds, written "90", "90s", "5m" or "1h"."""

    name = "time"
    _units = {"s": 1.0, "m": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        unit = self._units.get(text[-1:])
        try:
            return float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{text!r} is not a time span; write 90s, 5m or 1h", param, ctx)


class Latency(click.ParamType[float]):
    """Parse a latency into seconds, written "20ms", "500us", "200ns" or "0.02s"."""

    name = "latency"
    _units = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9, "s": 1.0}

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        unit = next((unit for unit in self._units if text.endswith(unit)), None)
        try:
            if unit is None:
                raise ValueError(text)
            return float(text.removesuffix(unit)) * self._units[unit]
        except ValueError:
            self.fail(f"{text!r} is not a latency; write 20ms, 500us, 200ns or 0.02s", param, ctx)


class Size(click.ParamType[int]):
    """Parse a size into bytes, written "64MB", "64MiB", "512kB" or "1000000"."""

    name = "size"
    _units = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        text = str(value).strip().lower()
        unit = next((unit for unit in self._units if text.endswith(unit)), "")
        try:
            return round(float(text.removesuffix(unit)) * self._units.get(unit, 1))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a size; write 64MB, 64MiB or 1000000", param, ctx)


class BatchSizes(click.ParamType[tuple[int, ...]]):
    """Parse batch sizes, written "1,4,8"."""

    name = "sizes"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} are not batch sizes; write 1,4,8", param, ctx)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Parse numbers, written "0.485,0.456,0.406"."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers; write 0.5 or 0.485,0.456,0.406", param, ctx)


_IMAGE_OPTIONS = (
    click.option(
        "--pipeline",
        "pipeline_file",
        shell_complete=completing.pipelines,
        type=click.Path(path_type=Path),
        help="YAML file with size, resize, mean, std, ... of the images, or with each step, or only "
        "with steps after the model; a folder of Hugging Face; or an ONNX file of Ultralytics.",
    ),
    click.option(
        "--image-size", type=int, help="Side in pixels of the square image that the model takes."
    ),
    click.option(
        "--image-resize",
        type=int,
        help="Length in pixels to which the shorter side is resized before the crop.",
    ),
    click.option(
        "--image-mean",
        type=Numbers(),
        help="Mean of pixel values in [0, 1]: one number, or one per channel.",
    ),
    click.option(
        "--image-std",
        type=Numbers(),
        help="Standard deviation of pixel values in [0, 1]: one number, or one per channel.",
    ),
    click.option(
        "--image-layout", type=click.Choice(["CHW", "HWC"]), help="Order of the image's axes."
    ),
)
_FLAGS = ("image_size", "image_resize", "image_mean", "image_std", "image_layout")


class OneLine(click.Group):
    """Group of commands that reports a usage error in one line, like every other error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and keep the command's own as they were typed as the context's object."""
        typed = tuple(args)
        rest = super().parse_args(ctx, args)
        after = len(typed) - len(rest) - 1  # options of the group stand before its command
        ctx.obj = typed[after:]
        return rest

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; a usage error exits with code 2."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer
                error.show()
                sys.exit(2)
            where = error.ctx.command_path if error.ctx else "hasten"
            print(
                f"hasten: {error.format_message().rstrip('.')}; see {where} --help", file=sys.stderr
            )
            sys.exit(2)
        except click.Abort:
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)


custom_ops_option = click.option(
    "--custom-ops",
    shell_complete=completing.libraries,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Library with custom operators; may be repeated.",
)
trust_code_option = click.option(
    "--trust-code",
    is_flag=True,
    help="Run code that MODEL's folder or file contains; without this option such a model is refused.",
)


class MetricOption(click.Option):
    """Option that names a metric; its help lists the available metrics, including plug-ins."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """List the metrics' spellings when help is shown: no metric is imported before that."""
        from hasten.inputs.metrics.choice import forms

        self.help = f"Metric to score with; may be repeated for several outputs: {forms()}."
        return super().get_help_record(ctx)


class ReportOption(click.Option):
    """Option that names a figure; its help lists the metrics over a set, including plug-ins."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """List the spellings when help is shown: no metric is imported before that."""
        from hasten.inputs.set_metrics.choice import set_forms

        self.help = (
            "Figure over the sealed data, stated before and after; may be repeated: "
            f"{set_forms()}; none for none.  [default: those of a binary classification if labels are 0 and 1, mAP if they are boxes]"
        )
        return super().get_help_record(ctx)


def one_or_more(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Any:
    """Return None where an option wasn't given, its text where it was once, else all texts."""
    return (given[0] if len(given) == 1 else list(given)) if given else None


metric_option = click.option(
    "--metric",
    shell_complete=completing.metrics,
    cls=MetricOption,
    multiple=True,
    metavar="METRIC",
    callback=one_or_more,
)
report_option = click.option(
    "--report", shell_complete=completing.figures, cls=ReportOption, multiple=True, metavar="METRIC"
)
guard_choice = click.Choice(["net", "lost", "changed"])
over_choice = click.Choice(["samples", "groups"])
effort_choice = click.Choice(["quick", "normal", "thorough"])
GUARD_HELP = (
    "What the limit bounds: the net drop in accuracy, the share of right answers lost, or the share "
    "of answers changed."
)

OVER_HELP = "What the certificate's mean covers if samples have groups or repeat each other: all samples, or groups, each counted once."

_ORDER_OPTIONS = (
    click.option(
        "--max-drop",
        type=Share(),
        default="1%",
        show_default=True,
        help="Largest accepted drop in accuracy.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default="model.hasten",
        show_default=True,
        help="Folder of the bundle.",
    ),
    metric_option,
    report_option,
    click.option("--guard", type=guard_choice, default="net", show_default=True, help=GUARD_HELP),
    click.option(
        "--mean-over", type=over_choice, default="samples", show_default=True, help=OVER_HELP
    ),
    click.option(
        "--confidence",
        type=Share(),
        default="95%",
        show_default=True,
        help="Confidence of the certificate.",
    ),
    click.option(
        "--effort",
        type=effort_choice,
        default="normal",
        show_default=True,
        help="How hard to try: quick takes about a minute for a small model on an idle machine.",
    ),
    click.option(
        "--engine",
        "engines",
        shell_complete=completing.engines,
        multiple=True,
        help="Try this engine only; may be repeated.",
    ),
    click.option(
        "--pass",
        "passes",
        shell_complete=completing.passes,
        multiple=True,
        help="Try this transformation only; may be repeated.",
    ),
    click.option(
        "--population",
        default="inputs like the ones in this data",
        help="Population that the data was drawn from, as the certificate will state it.",
    ),
    click.option(
        "--calibration",
        type=int,
        default=300,
        show_default=True,
        help="Largest number of samples with which the quantizers' ranges are calibrated.",
    ),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Seed of the data split and of every random order.",
    ),
    click.option("--no-exact", is_flag=True, help="Leave the exact model out of the bundle."),
    click.option("--no-requests", is_flag=True, help="Keep no samples of the data in the bundle."),
    click.option(
        "--accept-uncertified",
        is_flag=True,
        help="Put the fastest candidate into the bundle even if none can be certified.",
    ),
    click.option(
        "--allow-near-copies",
        is_flag=True,
        help="Judge on data of which the training data seems to contain copies; the certificate says so.",
    ),
    click.option(
        "--end-to-end",
        is_flag=True,
        help="Let the model normalize pixels itself, so that images go in as uint8, and decode JPEG files smaller for what ships, if that is faster and certified.",
    ),
    click.option(
        "--state",
        "states",
        multiple=True,
        help="State that the model carries: the input that takes it and the output that gives the next one, h=h_out; may be repeated. A sample of the data is then a whole sequence of steps.",
    ),
    click.option(
        "--scored",
        type=click.Choice(["all", "last"]),
        help="Steps of a sequence that its score covers.  [default: the last one if each sequence has one label, else all]",
    ),
    click.option(
        "--pad",
        multiple=True,
        help="Value that pads an input if samples differ in shape, unless it is 0: "
        "padding_mask=1; may be repeated.",
    ),
    click.option("--resume", is_flag=True, help="Continue the run that was stopped."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def order_options(command: F) -> F:
    """Add the options that all commands that write a bundle share."""
    for option in reversed(_ORDER_OPTIONS):
        command = option(command)
    return command


trusted_option = click.option(
    "--trusted",
    multiple=True,
    metavar="KEYFILE",
    callback=lambda context, parameter, given: given or None,
    help="Public key, or its file: refuse a bundle that isn't signed by it. May be repeated.",
)


details_option = click.option(
    "--details", is_flag=True, help="Print every row of the table and every note as well."
)


def order_of_flags(options: dict[str, Any]) -> dict[str, Any]:
    """Translate a command's options into keyword arguments of the library."""
    given = dict(options)
    for flag, keyword in (("time_limit", "time_limit_s"), ("trial_limit", "trial_limit_s")):
        if flag in given:
            given[keyword] = given.pop(flag)
    given["keep_exact"] = not given.pop("no_exact")
    given["keep_requests"] = not given.pop("no_requests")
    for name in ("engines", "passes", "report"):
        given[name] = given[name] or None
    return given


def image_options(command: F) -> F:
    """Add the options that state how images are prepared."""
    for option in reversed(_IMAGE_OPTIONS):
        command = option(command)
    return command


def image_pipeline_of(options: dict[str, Any]) -> Any:
    """Remove the image options from a command's options, and return their `Pipeline`, or None.

    Raises:
        InputError: both a file and flags are given, or flags without a size.
    """
    from hasten.inputs.pipeline.config import from_path, image_pipeline

    file = options.pop("pipeline_file")
    given = {
        name.removeprefix("image_"): value
        for name in _FLAGS
        if (value := options.pop(name)) is not None
    }
    if file is not None and given:
        raise InputError(
            "--pipeline already states how images are prepared: leave out the --image options"
        )
    if file is not None:
        return from_path(file)
    if not given:
        return None
    if "size" not in given:
        raise InputError("--image-size is missing: the side of the square that the model takes")
    for name in ("mean", "std"):
        if len(given.get(name, ())) == 1:
            given[name] = given[name][0]
    return image_pipeline(**given)


@contextlib.contextmanager
def one_line_errors(stopped: str = "stopped") -> Iterator[None]:
    """Print an error as one line and exit with code 2; exit with code 130 after Ctrl-C.

    A run that waits for labels says so in one line, and exits with code 3. Names in a file, which
    messages quote, can't write to the terminal: control characters are written out.

    Args:
        stopped: Message after Ctrl-C: whether anything is kept, and how to continue.
    """
    try:
        yield
    except LabelsWanted as wanted:
        print(f"hasten: {visible(in_flags(str(wanted)))}", file=sys.stderr)
        sys.exit(3)
    except (InputError, CandidateError) as error:
        print(f"hasten: {visible(in_flags(str(error)))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"hasten: {stopped}", file=sys.stderr)
        sys.exit(130)


def in_flags(message: str) -> str:
    """Replace the Python keywords in a message of the library by the command's flags.

    "latency_bound_s= is ..." becomes "--latency-bound is ...", "max_batch=1" becomes "--max-batch 1".
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return message
    root = context.find_root().command
    others = root.commands.values() if isinstance(root, click.Group) else ()
    flags = {
        param.name: max(param.opts, key=len)
        for command in (*others, context.command)  # its own options win over other commands'
        for param in command.params
        if isinstance(param, click.Option) and param.name
    }

    def flag(found: re.Match[str]) -> str:
        name, quoted, plain = found.groups()
        value = quoted or plain
        if value == "False" and (without := f"no_{name.removeprefix('keep_')}") in flags:
            return flags[without]
        known = flags.get(name) or flags.get(name.removesuffix("_s"))
        if known is None:
            return found[0]
        return f"{known} {value}" if value not in ("", "True") else known

    return re.sub(r"\b([a-z]\w*)=(?:[\"']([^\"']*)[\"']|(\w*))", flag, message)
