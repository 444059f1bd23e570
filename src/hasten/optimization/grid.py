"""Candidates to try: a grid to begin with, then neighbours of the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from hasten.bundle.batch_mates import share_batch_axis
from hasten.core.devices import FAMILIES
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.installed import engine_kinds, tried_on
from hasten.measure.candidate import Single
from hasten.passes.base import Pass, Selective, Stage
from hasten.passes.small_model import SmallModel, small_model_of

T = TypeVar("T")
_ENGINES_PER_VARIANT = 2
_SOURCES_VARIED = 2


def _by_turns(queues: Sequence[Sequence[T]]) -> Iterator[T]:
    """Yield the first item of every queue, then the second of every queue, and so on."""
    for i in range(max(map(len, queues), default=0)):
        for queue in queues:
            if i < len(queue):
                yield queue[i]


def _passes(
    stage: Stage, model: Model, target: Target, wanted: Sequence[str] | None = None
) -> list[list[Pass]]:
    """Return the variants of each pass of a stage that suits the target, in the order of rank."""
    family = FAMILIES.get(target.family)
    selective = family is not None and family.selective and stage != "exact"
    kinds = [
        kind
        for name, kind in Pass.members().items()
        if (wanted is None or name in wanted)
        and kind.stage == stage
        and not kind.missing()
        and (not selective or target.family in kind.families)
    ]
    return [list(kind.variants(model, target)) for kind in sorted(kinds, key=lambda k: k.rank)]


def _kept(step: Pass, keep_float: tuple[str, ...]) -> Pass:
    return step.keeping(keep_float) if keep_float and isinstance(step, Selective) else step


def _useful(step: Pass, engine: Engine) -> bool:
    """Whether a pass does more than the engine does by itself."""
    return not (step.settles and engine.settles)


def takes(engine: Engine, step: Pass) -> bool:
    """Whether an engine can run the output of a pass."""
    quantized = step.gives == "onnx" and step.quantized
    return step.gives in engine.formats and not (quantized and engine.float_only)


def grid(
    model: Model,
    target: Target,
    *,
    engine_names: Sequence[str] = (),
    pass_names: Sequence[str] | None = None,
    keep_float: tuple[str, ...] = (),
    small_models: Sequence[SmallModel] = (),
) -> list[Single]:
    """Return the first proposals: the likeliest variant of every pass, on every engine.

    The untouched model on every engine comes first: nothing slower than these may ship.

    Args:
        model: The original model.
        target: Device to run on.
        engine_names: Names of the runtimes to try; empty for those that suit the target.
        pass_names: Names of the transformations to try; None for all.
        keep_float: Names of nodes of the original that no pass may quantize.
        small_models: Smaller models to try in the original's place, as they are and in int8.

    Raises:
        InputError: an engine's name is unknown, or no engine is installed.
    """
    names = engine_names or tried_on(target.family)
    engines = list(_by_turns([list(k.variants(target)) for k in engine_kinds(names)]))
    untouched = [Single((), engine) for engine in engines if model.format in engine.formats]
    # Without a conversion there may be nothing to run, so every variant is a candidate.
    converted = [
        Single((_kept(step, keep_float).suited(engine),), engine)
        for step in _by_turns(_passes("conversion", model, target))
        for engine in engines
        if takes(engine, step)
    ]
    batched = share_batch_axis(model.inputs, model.outputs)
    exact = [
        _with_first(step, engine, batched)
        for step in _by_turns(_passes("exact", model, target, pass_names))
        for engine in engines
        if engine.exact and takes(engine, step) and _useful(step, engine)
    ]
    lossy = [
        Single((_likeliest_on(engine, _kept(step, keep_float), target),), engine)
        for step in _likeliest(model, target, pass_names)
        for engine in engines
        if takes(engine, step)
    ]
    for small in small_models:
        further = [] if small.quantized else _likeliest(small.source(model), target, pass_names)
        chains = [(small,), *((small, step) for step in further)]
        lossy += [
            Single((*chain[:-1], _likeliest_on(engine, chain[-1], target)), engine)
            for chain in chains
            for engine in engines
            if takes(engine, chain[-1])
        ]
    return list(dict.fromkeys([*untouched, *converted, *exact, *lossy]))


def hurried(candidates: Sequence[Single]) -> list[Single]:
    """Return the candidates of a grid in an order in which a short time reaches each kind.

    Those that need no transformation come first, exact ones before others. The rest alternates between inexact
    and exact ones, since inexact ones gain most. Of each inexact form, the engines that are usually fastest come
    first.

    Args:
        candidates: The candidates, as `grid` returns them.
    """
    ready = [one for one in candidates if all(step.stage == "conversion" for step in one.passes)]
    made = [one for one in candidates if one not in ready]
    inexact, exact = ([one for one in made if one.exact == kind] for kind in (False, True))
    forms = list(dict.fromkeys(_form(one) for one in inexact))
    inexact.sort(key=lambda one: (forms.index(_form(one)), one.engine.hurry))
    return [*sorted(ready, key=lambda one: not one.exact), *_by_turns([inexact, exact])]


def _form(candidate: Single) -> tuple[type[Pass], ...]:
    return tuple(type(step) for step in candidate.passes)


def _with_first(step: Pass, engine: Engine, batched: bool) -> Single:
    """Return a pass on an engine; one that settles shapes is left to the engine where that keeps batches.

    The pass would close the batch axis too, and a server could never batch what ships.
    """
    own = engine.settling() if step.settles and batched else None
    return Single((step,), engine) if own is None else Single((), own)


def substitutes(refused: Mapping[Single, str], model: Model) -> list[Single]:
    """Return what engines propose in place of candidates that they refused.

    Args:
        refused: Candidates that were skipped, with the reason.
        model: The original model.
    """
    found = [(one, one.engine.substitute(said)) for one, said in refused.items()]
    return [
        Single(one.passes, other)
        for one, other in found
        if other is not None
        and (takes(other, one.passes[-1]) if one.passes else model.format in other.formats)
    ]


def originals(model: Model) -> list[Single]:
    """Return the untouched model on this host's engines, each with its default settings.

    These are the reference where none of a device's engines runs the model as it is.

    Args:
        model: The original model.

    Raises:
        InputError: no engine is installed.
    """
    host = Target.host()
    first = [next(iter(kind.variants(host))) for kind in engine_kinds()]
    return [Single((), engine) for engine in first if model.format in engine.formats]


def _likeliest(model: Model, target: Target, wanted: Sequence[str] | None) -> list[Pass]:
    """Return the likeliest variant of each lossy pass."""
    return [variants[0] for variants in _passes("lossy", model, target, wanted) if variants]


def _likeliest_on(engine: Engine, step: Pass, target: Target) -> Pass:
    """Return the form of a pass that is to be tried first on an engine, which is the fastest."""
    return step if engine.prefers_narrow(target) else step.suited(engine)


def variations(
    fastest: Sequence[Single],
    model: Model,
    target: Target,
    keep_float: tuple[str, ...] = (),
    pass_names: Sequence[str] | None = None,
    failed: Sequence[Single] = (),
) -> list[Single]:
    """Return further variants of the passes, each on the two engines where its first did best.

    They help where the first variants are fast but not accurate enough. Of the original and the
    smaller models, only the two that the fastest candidates were made from are varied. Where the
    first variant of a pass failed on each engine, the others are tried on the first of these.

    Args:
        fastest: Candidates that were tried, fastest first.
        model: The original model.
        target: Device to run on.
        keep_float: Names of nodes of the original that no pass may quantize.
        pass_names: Names of the transformations to try; None for all.
        failed: Candidates that failed, in the order of the grid.
    """
    known = [*fastest, *failed]
    sources = dict.fromkeys(small_model_of(c.passes) for c in known if _varies(c.passes))
    found: list[list[Single]] = []
    for small in list(sources)[:_SOURCES_VARIED]:
        begin = () if small is None else (small,)
        kept = keep_float if small is None else ()
        source = model if small is None else small.source(model)
        for queue in _passes("lossy", source, target, pass_names):
            if not queue:
                continue
            ranked, unable = (_engines_of(type(queue[0]), small, c) for c in (fastest, failed))
            varied: list[Single] = []
            for step in queue:  # the first one too, which engines may have got in a faster form
                on = [
                    Single((*begin, _kept(step, kept).suited(engine)), engine)
                    for engine in ranked or unable[:1]
                ]
                # What an engine can't calculate with becomes a form that was tried already.
                new = [one for one in on if one not in known]
                varied += [one for one in on[:_ENGINES_PER_VARIANT] if one in new] or new[:1]
            found.append(varied)
    return list(_by_turns(found))


def _engines_of(
    kind: type[Pass], small: SmallModel | None, candidates: Sequence[Single]
) -> list[Engine]:
    """Return the engines of those candidates of a source that have a pass, each once."""
    own = [c for c in candidates if small_model_of(c.passes) == small]
    return list(dict.fromkeys(c.engine for c in own if kind in map(type, c.passes)))


def _varies(passes: Sequence[Pass]) -> bool:
    """Whether the last pass of a chain may have other variants."""
    return bool(passes) and not passes[-1].exact and not isinstance(passes[-1], SmallModel)


def neighbours(
    best: Sequence[Single], helpful: Sequence[Pass], target: Target, *, settled: bool = False
) -> list[Single]:
    """Return candidates one step from the best: other scheduling, or an exact pass put first.

    Args:
        best: Most promising candidates, best first.
        helpful: Exact passes that made the untouched model faster.
        target: Device to run on.
        settled: Whether engines that settle shapes for one sample made the untouched model faster.
    """
    found = []
    for candidate in best:
        own = candidate.engine.settling() if settled and candidate.passes else None
        if own is not None and not any(step.settles for step in candidate.passes):
            found.append(Single(candidate.passes, own))
        found += [Single(candidate.passes, other) for other in candidate.engine.tunings(target)]
        if candidate.passes and not any(
            step.exact or isinstance(step, SmallModel) for step in candidate.passes
        ):
            found += [
                Single((step, *candidate.passes), candidate.engine)
                for step in helpful
                if _useful(step, candidate.engine)
            ]
    return list(dict.fromkeys(found))
