"""Every chart of a report, and the files that hold each of them alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hasten.bundle import unpacked
from hasten.core.records import write_whole
from hasten.errors import InputError
from hasten.reporting import (
    accuracy_plots,
    certificate_plot,
    estimate_sections,
    machine_plots,
    size_sections,
    speed_plots,
)
from hasten.reporting.drawing import Plot
from hasten.reporting.evidence import Report, gathered
from hasten.reporting.slides import slide
from hasten.reporting.style import DARK, LIGHT


def charts(report: Report) -> Iterator[Plot]:
    """Yield the charts of a report's page, in their order there."""
    result = report.result
    found: list[Plot | None]
    if result.estimates is not None:
        found = [estimate_sections.frontier(result.estimates, result.budget_ns)]
    elif result.sizes is not None:
        found = [
            size_sections.frontier(report, result.sizes),
            certificate_plot.certificate(result.ladder),
        ]
    else:
        found = list(_measured(report))
    yield from (plot for plot in found if plot is not None)


def _measured(report: Report) -> Iterator[Plot | None]:
    result, profile = report.result, report.profile
    yield speed_plots.speeds(result.rows, result.spread)
    if result.asked is not None and any(one.ratio for one in result.outcomes):
        yield accuracy_plots.trials(result, result.asked)
    if report.figures is not None:
        yield speed_plots.distributions(report.figures)
    yield certificate_plot.certificate(result.ladder)
    if profile is not None and profile.exact and profile.winner:
        yield machine_plots.kinds(profile)
    yield machine_plots.floors(report.limit, result.rows)
    if report.curve:
        yield machine_plots.batches(report.curve)


def plots(bundle: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Write a bundle's summary and each chart of its report as files that stand alone.

    `summary` is a slide of 16 by 9; charts are 830 CSS pixels wide. Each comes as NAME-light.svg,
    NAME-dark.svg, NAME-light.png and NAME-dark.png. A chart also comes 420 pixels wide, for phones,
    as NAME-narrow-light.svg and so on.

    Args:
        bundle: Folder of the bundle.
        folder: Folder to write to, which is made where there is none. Files of the same names are
            replaced.

    Returns:
        Paths of the files.

    Raises:
        InputError: there is no bundle, its run didn't finish, or a file can't be written.
        IntegrityError: the bundle is damaged.
    """
    opened, to = unpacked(bundle), Path(folder)
    report = gathered(opened)
    if to.resolve().is_relative_to(opened.resolve()):
        raise InputError(
            f"{to} is in the bundle, and writing there would damage it; give another folder"
        )
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't make the folder {to}: {error.strerror or error}") from error
    report_slide, drawings = slide(report), list(charts(report))
    written: list[Path] = []
    for look, palette in (("light", LIGHT), ("dark", DARK)):
        files = [(report_slide.key, report_slide.alone(palette))]
        for plot in drawings:
            files.append((plot.key, plot.alone(palette)))
            files.append((f"{plot.key}-narrow", plot.alone(palette, narrow=True)))
        for key, (as_svg, as_png) in files:
            for ending, data in (("svg", f"{as_svg}\n".encode()), ("png", as_png)):
                written.append(to / f"{key}-{look}.{ending}")
                write_whole(written[-1], data)
    return written
