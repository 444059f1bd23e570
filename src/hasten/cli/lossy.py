"""Define what `hasten pack --lossy` adds: its options, and the run from a bundle to a small file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hasten.cli import completing
from hasten.cli.config import asked
from hasten.cli.options import GUARD_HELP, Share, guard_choice, metric_option
from hasten.core.invocation import typed

F = TypeVar("F", bound=Callable[..., Any])
_PLAN = ("minutes", "epochs", "batch", "rate", "loss", "features")


class Shares(click.ParamType[tuple[float, ...]]):
    """Parse shares with commas between, written "30%,10%" or "0.3,0.1"."""

    name = "shares"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        return tuple(Share().convert(part, param, ctx) for part in str(value).split(","))


_OPTIONS = (
    click.option(
        "--lossy",
        is_flag=True,
        help="Prune the model, let its weights share values, and train it again: much smaller, and certified.",
    ),
    click.option(
        "--train",
        shell_complete=completing.data,
        help="With --lossy: training data, as lighten takes it.",
    ),
    click.option(
        "--data",
        shell_complete=completing.data,
        help="With --lossy: evaluation data, which training never sees.",
    ),
    click.option(
        "--max-drop", type=Share(), help="With --lossy: largest accepted drop in accuracy."
    ),
    click.option(
        "--network",
        help="With --lossy: my.py:network or model.onnx from which the bundle was made, if the "
        "bundle's own file can't be trained.",
    ),
    click.option(
        "--kept",
        type=Shares(),
        help="With --lossy: shares of the weights to keep, such as 30%,10%.",
    ),
    click.option(
        "--bits", type=int, help="With --lossy: bits of a shared value's number.  [default: 4]"
    ),
    click.option(
        "--minutes", type=float, help="With --lossy: training time of each form.  [default: 10]"
    ),
    click.option(
        "--epochs",
        type=float,
        help="With --lossy: largest number of passes over the data.  [default: 20]",
    ),
    click.option(
        "--batch", type=int, help="With --lossy: samples per training step.  [default: 128]"
    ),
    click.option("--rate", type=float, help="With --lossy: peak learning rate.  [default: 0.002]"),
    click.option(
        "--loss", help="With --lossy: my.py:loss(outputs, labels), instead of the usual one."
    ),
    click.option(
        "--features", type=Share(), help="With --lossy: weight of inner layers in the loss."
    ),
    metric_option,
    click.option("--guard", type=guard_choice, help=GUARD_HELP),
    click.option(
        "--confidence",
        type=Share(),
        help="With --lossy: confidence of the certificate.  [default: 95%]",
    ),
    click.option(
        "--seed", type=int, help="With --lossy: seed of the split and of all random orders."
    ),
    click.option(
        "--allow-near-copies",
        is_flag=True,
        default=None,
        help="With --lossy: judge on data of which the training data seems to contain copies.",
    ),
    click.option("--resume", is_flag=True, help="With --lossy: continue the run that was stopped."),
)


def lossy_options(command: F) -> F:
    """Add the options of packing with loss, which come as None where they weren't given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def pack_with_loss(
    bundle: Path, out: Path | None, options: dict[str, Any], *, as_json: bool
) -> bool:
    """Make a smaller form of a bundle, pack it, and print how small and how sure.

    Args:
        bundle: Bundle to start from.
        out: File to write; by default the bundle's name with -lossy.hastenz, beside it. A folder of that
            name, ending in .hasten, keeps what the run found, with its report.
        options: Options that were given, by their names in the library.
        as_json: Whether to print the result as JSON.

    Returns:
        Whether a smaller form was certified; else the file holds the exact model.

    Raises:
        InputError: an option is missing, or something can't be used.
    """
    from hasten.bundle.packing.writer import CODING_HELPS, check_goal, pack
    from hasten.cli.card import show
    from hasten.cli.commands import as_text
    from hasten.cli.screen import screen
    from hasten.core.records import to_record, with_name
    from hasten.lightening.packing import PLAN, pack_lossy
    from hasten.reporting.sizes import STEADY

    began = time.monotonic()
    bundle = with_name(bundle)
    name = bundle.name.removesuffix(".hastenz").removesuffix(".hasten")
    goal = out or bundle.with_name(f"{name}-lossy.hastenz")
    check_goal(goal)
    stem = goal.name.removesuffix(".hastenz").removesuffix("-lossy")
    given = {name: value for name, value in options.items() if value is not None}
    settings = {name: given.pop(name) for name in _PLAN if name in given}
    with typed(asked()), screen() as listen:
        result = pack_lossy(
            bundle,
            given.pop("train", None),
            given.pop("data", None),
            plan=replace(PLAN, **settings),
            out=goal.with_name(f"{stem}-lossy.hasten"),
            listen=listen,
            **given,
        )
    made = pack(result.bundle, goal, keep_evidence=False)
    certified = result.sizes is not None and result.sizes.shipped is not None
    if as_json:
        click.echo(as_text({**to_record(result), "packed": to_record(made), "note": STEADY}))
    else:
        show(result, began)
        # The answers of a smaller form aren't the bits that they were in the bundle that the user named.
        click.echo(
            "\n".join(line for line in made.in_words() if not certified or line != CODING_HELPS)
        )
    return certified
