"""The sections of the page, each from a report's records; a section without records is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

from hasten.bundle.cold import STAGES
from hasten.bundle.requests import in_words
from hasten.certificate.verdict import Judgement
from hasten.core.words import amount, points
from hasten.reporting import accuracy_plots, certificate_plot, machine_plots, speed_plots
from hasten.reporting.commands import commands
from hasten.reporting.evidence import Floor, Loaded, Part, Report, Started
from hasten.reporting.markup import (
    NONE,
    Html,
    code,
    details,
    element,
    items,
    name,
    paragraph,
    section,
    table,
)
from hasten.reporting.result import Outcome, Result
from hasten.reporting.rows import columns, latency, method_columns, per_step, won
from hasten.reporting.summary import (
    every_request,
    first_figure,
    how_fast,
    noise,
    on_fewer_threads,
    whole_way,
)
from hasten.reporting.words import FACTS, GUARDS, moment, role, sentence, span, times


def answers(report: Report) -> Html:
    """Answer the questions that every reader asks first, in their order."""
    cards = [_how_fast(report.result), _how_sure(report)]
    own = [floor for floor in report.limit if floor.name == report.result.winner.role]
    cards += [_how_far(floor) for floor in own[:1]]
    return element("section", element("ol", *cards, class_="answers"), id_="answers")


def _card(question: str, figure: str, *content: Html, tone: str = "") -> Html:
    shown = paragraph(figure, class_=f"figure {tone}".strip())
    return element("li", element("h2", question), shown, *content)


def _how_fast(result: Result) -> Html:
    further = [on_fewer_threads(result), noise(result)]
    decoded = [paragraph(sentence(result.decoded))] if result.decoded else []
    by_model = f"what ships is {how_fast(result)}"
    if whole_way(result) is not None:
        lines = [*decoded, paragraph(sentence(f"without decoding, {by_model}"))]
    else:
        lines = [paragraph(sentence(by_model)), *decoded]
    return _card(
        "How much faster?",
        f"{1 / first_figure(result).estimate:.2f}x",
        *lines,
        *(paragraph(sentence(line), class_="quiet") for line in further if line),
    )


def _how_sure(report: Report) -> Html:
    result = report.result
    question = "How sure are we that it is as accurate?"
    about = paragraph(f"For {result.population}.", class_="quiet")
    if result.status == "certified":
        tested = _tested(result.judgement) if result.judgement else NONE
        return _card(
            question, "✓ certified", paragraph(f"{result.why}."), tested, about, tone="good"
        )
    if result.status == "uncertified":
        why = paragraph(sentence(result.why))
        return _card(question, "✗ not certified", why, about, tone="bad")
    why = paragraph(sentence(result.why))
    return _card(question, "✓ exact", why, about, tone="good")


def _tested(found: Judgement) -> Html:
    allowed = points(f"{100 * found.max_drop:.6g}")
    draws = amount(found.n, "sample" if found.groups is None else "group")
    return paragraph(f"Tested on {draws} that the search never saw; the limit was {allowed}.")


_BINDS = {
    "bytes": "reading memory",
    "overhead": "what the engine adds to each request",
}


def _how_far(floor: Floor) -> Html:
    binds = (
        paragraph(f"The main part of that is {_BINDS.get(floor.binds, floor.binds)}.")
        if floor.binds
        else NONE
    )
    return _card(
        "How far from what this machine can do?",
        f"{times(floor.ratio)}x",
        paragraph(
            f"the shortest time possible: this machine's ceilings allow {latency(floor.floor_ns)}."
        ),
        binds,
    )


def notes(report: Report) -> Html:
    """Show what else the reader should know."""
    lines = report.result.notes
    return section("notes", "What else to know", items(lines)) if lines else NONE


def figures(report: Report) -> Html:
    """Show the final table, and how many times faster each row is."""
    result = report.result
    head, *rows = columns(result.rows)
    shown = [(role(key), name(label), *rest) for key, label, *rest in rows]
    plot = speed_plots.speeds(result.rows, result.spread)
    return section(
        "figures",
        "The figures",
        table("The final figures", head, shown),
        paragraph(sentence(also)) if (also := every_request(result)) else NONE,
        paragraph(f"{per_step(result)}.") if result.steps != 1 else NONE,
        paragraph(sentence(report.copies)) if report.copies else NONE,
        plot.html(
            "These figures come from rounds timed after the choice. Each ratio is paired round "
            "by round, with its 95% interval. The band shows how far the same model differed "
            "from itself."
        )
        if plot
        else NONE,
    )


def methods(report: Report) -> Html:
    """Compare the methods of making the model lighter, by their best candidates."""
    result = report.result
    if not result.methods:
        return NONE
    head, *rows = method_columns(
        result.methods, score=result.asked.noun if result.asked else "score"
    )
    shown = [(method, name(label), *rest) for method, label, *rest in rows]
    trained = [(method.name, method.trained) for method in result.methods if method.trained]
    budget = "" if result.budget_ns is None else f" under {latency(result.budget_ns)}"
    return section(
        "methods",
        "The methods for a lighter model",
        paragraph(f"{won(result)}."),
        table("The methods, fastest first", head, shown),
        paragraph(
            f"Each method is shown by its most accurate form{budget} or, where it has none, its "
            "fastest, timed in the same rounds as the figures above. The search split is only a "
            "guide; only the sealed data can certify.",
            class_="quiet",
        ),
        table("How they came about", ("method", "training"), trained) if trained else NONE,
    )


def distributions(report: Report) -> Html:
    """Show the raw latencies of the final rounds."""
    plot = None if report.figures is None else speed_plots.distributions(report.figures)
    if report.figures is None or plot is None:
        return NONE
    refused = report.figures.refused
    left_out = f" {refused:,} rounds were refused: the host was busy." if refused else ""
    caption = (
        "Each point is a request that counts; warm-up is left out. Models took turns in random "
        f"order, so anything that slows the host slows them all.{left_out}"
    )
    return section("latencies", "Latencies", plot.html(caption))


def trials(report: Report) -> Html:
    """Show every candidate of the search."""
    result, asked = report.result, report.result.asked
    if asked is None or not any(outcome.ratio for outcome in result.outcomes):
        tried = table("What was tried", ("candidate", "outcome"), _tried(result))
        return section("trials", "What was tried", tried, _settings(report))
    slower = sum(1 for one in result.outcomes if one.fate == "not judged")
    caption = (
        "Up and left is better. The search chose by these figures, and they certify nothing: the "
        "fastest of many looks faster than it is. The line joins the candidates that no other "
        "beats in both speed and accuracy. Those and the ones on the ladder are filled, and have 95% "
        "intervals."
    )
    if slower:
        caption += f" {slower} slower candidate{'s' if slower > 1 else ''} without a judgement {'are' if slower > 1 else 'is'} only in the table."
    return section(
        "trials",
        "Speed against accuracy",
        accuracy_plots.trials(result, asked).html(caption),
        _settings(report),
    )


def _settings(report: Report) -> Html:
    """Show every setting behind the labels."""
    outcomes = report.result.outcomes
    if not outcomes or len(outcomes) != len(report.settings):
        return NONE
    pairs = zip(outcomes, report.settings, strict=True)
    rows = [(name(outcome.label), name(tried.spelled())) for outcome, tried in pairs]
    return details(
        "Every setting", table("The candidates' settings", ("candidate", "settings"), rows)
    )


def _tried(result: Result) -> list[tuple[str, str]]:
    return [(name(label), said) for label, said in result.tried.items()]


def certificate(report: Report) -> Html:
    """Show the verdicts of the sealed data, rung by rung."""
    result, asked = report.result, report.result.asked
    if not result.ladder:
        return NONE
    plot = certificate_plot.certificate(result.ladder)
    said = [
        (
            str(number),
            name(rung.label),
            rung.judgement.in_words() if rung.judgement else f"failed: {rung.failure}",
        )
        for number, rung in enumerate(result.ladder, 1)
    ]
    caption = (
        "The ladder was frozen before the sealed data was read once. It was tested from safest "
        "to fastest up to the first failure, so choosing costs no confidence."
    )
    facts = [
        (key, value)
        for key, value in (
            ("holds for", result.population),
            ("batch sizes", result.batches or "-"),
            ("sealed data", f"{_counted(report.sealed)} samples that the search never saw"),
            ("looks at these data", str(report.sealed.get("look", "-"))),
            (
                "statistical test",
                next((r.judgement.method for r in result.ladder if r.judgement), "-"),
            ),
            ("confidence", f"{100 * asked.confidence:.6g}%" if asked else "-"),
            ("what is bounded", GUARDS[asked.guard] if asked else "-"),
            ("score", f"{asked.noun} ({asked.metric})" if asked else "-"),
        )
        if value != "-"
    ]
    return section(
        "certificate",
        "The certificate",
        plot.html(caption) if plot else NONE,
        table("What the sealed data said", ("rung", "model", "verdict"), said),
        table("What the certificate is about", ("fact", "value"), facts),
    )


def _counted(sealed: Mapping[str, object]) -> str:
    samples = sealed.get("samples")
    return f"{samples:,}" if isinstance(samples, int) else "-"


def _folders(sealed: Mapping[str, object]) -> str:
    """Say which class each folder of the data is, where their order numbers the classes."""
    names = sealed.get("classes")
    listed = names if isinstance(names, list) else []
    return ", ".join(f"{number} is {name!s:.80}" for number, name in enumerate(listed))


def comparison(report: Report) -> Html:
    """Show the figures, scores and decisions of the original and of what ships, on the sealed data."""
    found = report.result.comparison
    if found is None:
        return NONE
    sure = found.confidence
    rows = [
        (
            f"{one.noun}{f' ({one.reading})' if one.reading else ''}",
            f"{one.before:.4f}",
            f"{one.after:.4f}",
            one.change(sure),
            one.bounded(sure) or "-",
        )
        for one in found.figures
    ]
    head = ("figure", "before", "after", "change, approximately", "certain")
    moved = "" if found.moved is None else found.moved.in_words(found.rows)
    outputs = found.outputs_in_words() if found.outputs else ""
    return section(
        "comparison",
        "Before and after",
        table(f"On the {found.rows:,} sealed rows", head, rows) if rows else NONE,
        paragraph(f"{moved[:1].upper()}{moved[1:]}.") if moved else NONE,
        paragraph(f"{outputs[:1].upper()}{outputs[1:]}.") if outputs else NONE,
        items(found.missing) if found.missing else NONE,
        paragraph(f"{found.how} None of this chose what ships.".lstrip(), class_="quiet"),
    )


def profile(report: Report) -> Html:
    """Show where the time goes, before and after."""
    found = report.profile
    if found is None or not found.exact:
        return NONE
    if not found.winner:
        return section(
            "profile",
            "Layer by layer",
            paragraph(
                "The model that ships has no profile (the notes say why); this profile is of the "
                "exact model."
            ),
            machine_plots.top_steps("The longest steps of the exact model", found.exact),
        )
    caption = (
        "These are the steps of the cascade's fast model, without those of the model that "
        "answers again. "
        if report.cascade
        else ""
    ) + (
        "Conversions change precision or memory layout, and movement copies; neither is arithmetic. "
        "Profiling slows a model, so the sums are larger than its latency."
    )
    return section(
        "profile",
        "Layer by layer",
        machine_plots.kinds(found).html(caption),
        element("h3", "The longest steps of what ships"),
        machine_plots.top_steps("The longest steps of what ships", found.winner),
        details(
            "The longest steps of the exact model",
            machine_plots.top_steps("The longest steps of the exact model", found.exact),
        ),
    )


def limit(report: Report) -> Html:
    """Show the distance to the floor."""
    plot = machine_plots.floors(report.limit, report.result.rows)
    if plot is None:
        return NONE
    caption = (
        "The stroke is the floor: the shortest time in which this machine's measured ceilings "
        "allow the model's operations and bytes."
    )
    return section("limit", "What this machine can do", plot.html(caption))


def curve(report: Report) -> Html:
    """Show speed by batch and by sessions."""
    if not report.curve:
        return NONE
    covered = report.result.batches
    caption = "This is only about speed." + (
        f" The certificate covers {covered}." if covered else ""
    )
    plot = machine_plots.batches(report.curve)
    return section("batches", "Batches and sessions", plot.html(caption))


def load(report: Report) -> Html:
    """Show the results in the scenarios of a load generator."""
    if not report.load:
        return NONE
    lines = [
        (one.scenario, one.said[0].removeprefix(f"{one.scenario}: "))
        for one in report.load
        if one.said
    ]
    about = [paragraph(said, class_="quiet") for said in dict.fromkeys(_about(report.load))]
    return section(
        "load", "Under load", table("In each scenario", ("scenario", "figures"), lines), *about
    )


def _about(loads: Sequence[Loaded]) -> Iterator[str]:
    """Say how requests were sent, once for all scenarios."""
    for one in loads:
        yield from (f"{line[:1].upper()}{line[1:]}." for line in one.said[1:])


def ways(report: Report) -> Html:
    """Show where the time goes from a file's bytes to the decision, before and after."""
    found = report.ways
    if found is None:
        return NONE
    sides = [{part.name: part for part in side} for side in (found.before, found.after)]
    lines = [
        (stage, *(cell for side in sides for cell in _part_cells(side.get(stage))))
        for stage in dict.fromkeys(name for side in sides for name in side)
    ]
    head = ("stage", *(f"{what} {when}" for when in ("before", "after") for what in _PARTS))
    about = paragraph(
        f"From a file's bytes to the decision, with {amount(found.files, 'file')} outside the sealed data, in "
        f"turns, on {amount(found.threads, 'thread')}. Before is the model as it was given on the "
        "default engine, and after is what ships.",
        class_="quiet",
    )
    return section("ways", "Where the time goes", table("Time of each stage", head, lines), about)


_PARTS = ("p50", "p99", "share")


def _part_cells(part: Part | None) -> tuple[str, str, str]:
    if part is None:
        return "-", "-", "-"
    return latency(part.p50_ns), latency(part.p99_ns), f"{100 * part.share:.0f}%"


def cold(report: Report) -> Html:
    """Show how long fresh processes take until their first answer."""
    if report.cold is None:
        return NONE
    lines = [
        (name(row.label), *(latency(median(row_ns)) for row_ns in _lengths(row)))
        for row in report.cold.rows
    ]
    head = ("what", *STAGES, "to the first answer")
    counts = {len(row.stages_ns) for row in report.cold.rows}
    about = paragraph(
        f"Medians of {amount(max(counts), 'start')} of fresh processes each, in turns, with the files in "
        "memory.",
        class_="quiet",
    )
    return section("cold", "Cold start", table("Time of a start", head, lines), about)


def _lengths(row: Started) -> Iterator[list[float]]:
    """Yield the lengths of each stage, and of the whole, over the starts."""
    yield from (list(lengths) for lengths in zip(*row.stages_ns, strict=True))
    yield [sum(stages) for stages in row.stages_ns]


def failures(report: Report) -> Html:
    """Show what failed or had nothing to do, with the reasons."""
    gone = [o for o in report.result.outcomes if o.fate in ("failed", "skipped")]
    if not gone:
        return NONE
    return section(
        "failures", "What failed or was skipped, and why", table("What failed", *_gone(gone))
    )


def _gone(outcomes: list[Outcome]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    return ("candidate", "why"), [(name(outcome.label), outcome.said) for outcome in outcomes]


def environment(report: Report) -> Html:
    """Show where the figures were measured."""
    target = report.target
    facts = [
        *((FACTS.get(key, key), value) for key, value in report.environment.items()),
        ("threads", f"{report.result.threads} each, of {target.threads}"),
        ("memory", f"{target.memory_bytes / 2**30:.1f} GiB"),
    ]
    return section("environment", "Where", table("Where it was measured", ("fact", "value"), facts))


def again(report: Report) -> Html:
    """Show how to get the same result again."""
    asked = report.result.asked
    facts = [
        ("model's SHA-256", report.source_sha256),
        ("sealed samples' SHA-256", str(report.sealed.get("sha256", "-"))),
        ("samples in the bundle", in_words(report.requests)),
        *([("class folders", folders)] if (folders := _folders(report.sealed)) else []),
        *([("seed", str(asked.seed))] if asked else []),
        ("made", moment(report.created)),
        ("took", span(report.result.seconds)),
    ]
    blocks = [Html(paragraph(said) + code(lines)) for said, lines in commands(report)]
    return section(
        "again", "Again", *blocks, table("What it was made from", ("fact", "value"), facts)
    )


SECTIONS: tuple[Callable[[Report], Html], ...] = (
    *(answers, notes, figures, methods, trials, distributions, certificate),
    comparison,
    *(profile, limit, ways, cold, curve, load, failures, environment, again),
)
"""Functions that make the sections, in the order of the page."""
