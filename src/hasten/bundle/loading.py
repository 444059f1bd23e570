"""Load a bundle: open its model, and warn where its certificate doesn't cover this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hasten.bundle.covered import certified_sizes
from hasten.bundle.engines import engine_of, reference_of
from hasten.bundle.loaded import Loaded, MeasuredElsewhere, NotCertifiedHere, UnfinishedRun
from hasten.bundle.machines import differences
from hasten.bundle.manifest import Manifest, Part
from hasten.bundle.packing.names import is_address
from hasten.bundle.requirements import distributions, programs
from hasten.bundle.stored import Stored, stored_at
from hasten.core.cache_folder import cache_folder
from hasten.core.devices import at_hand
from hasten.core.lookups import RowNumbers
from hasten.core.presence import is_folder
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.pool import SessionPool, sessions_for
from hasten.errors import InputError

if TYPE_CHECKING:
    from hasten.bundle.signatures import PublicKey, Trusted

_LONG_S = 1.0
"""Seconds of a compiler in an opening from which on the log says so."""
LOG = logging.getLogger("hasten.load")
"""Log of openings that took long."""


def load(
    path: str | os.PathLike[str],
    *,
    which: Literal["winner", "exact"] = "winner",
    custom_ops: Sequence[Path] = (),
    threads: int | None = None,
    sessions: int | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    any_batch: bool = False,
    trusted: Trusted = None,
    reference: bool = False,
    beside_others: bool = False,
) -> Loaded:
    """Check a bundle and open its model on the engine that it names, for any number of threads.

    Args:
        path: The bundle's folder; a packed bundle, as a file or as an address that begins with "http://" or
            "https://", of which at most the model that is opened is unpacked, into memory. A chain is opened
            by `hasten.chain`.
        which: "winner", or "exact" for the exact model that the winner was compared to.
        custom_ops: Libraries with the user's own operators, the same files as when the bundle was
            made.
        threads: Largest number of threads to run one request on; by default as many as the bundle was
            made for.
        sessions: Largest number of requests to answer in parallel, each called from a thread of its own. The model
            is loaded once per session, when that many calls first run at once. By default as many as
            this process has processors for and half of the memory holds, and one on a device.
        cache: Folder that keeps what the engine compiles, for the next time; False for none. By default
            the one that the environment variable HASTEN_CACHE names, else `~/.cache/hasten`. A folder
            that can't be used, or that others can write to, costs the time of compiling only.
        any_batch: Whether a certified model answers batches of any size as they come. By default it
            answers in batches of the sizes that its certificate covers, and larger ones in such parts;
            one whose engine computes rows apart, each bit for bit as it is alone, takes any.
        trusted: Public key of minisign, its file, or several, one of which must have signed the bundle;
            None where an unsigned one will do.
        reference: Whether to calculate the model in numpy, which needs no compiler and is slow. Only for a
            quantized network of the engine "compiled": the answers are the same bits where each step
            calculates with bytes, and near where it ends in floats.
        beside_others: Whether other models answer in this process too, or other work needs its processors: the
            engine's idle threads then sleep. By default those of some engines wait for the next request by
            spinning, which is a little faster for requests one right after the other, and takes the processors
            from all else. The answers are the same.

    Returns:
        The open bundle, a callable; close it, or use it in a `with` block.

    Raises:
        InputError: there is no bundle, it contains no exact model, the engine isn't installed, or
            an argument can't be read.
        CandidateError: the engine can't open the model here.
        IntegrityError: the manifest or a file of the model is damaged or tampered with, a file has another
            size than stated, or the bundle is from a newer version or not signed by such a key. Where it must
            be signed, each file of a folder is checked.

    Warns:
        NotCertifiedHere: this machine or engine version isn't the certified one, or this machine has
            fewer threads; a later call warns once if its shapes aren't the certified ones.
        UnfinishedRun: the model is certified, but its run has not finished, so another may still ship.
        MeasuredElsewhere: an exact model, whose answers hold everywhere, was measured on another
            machine or engine version.
    """
    if is_address(path) or not is_folder(path):
        # This brings graphs and YAML, which a folder doesn't need.
        from hasten.inputs.chains import is_chain

        if is_chain(path):
            raise InputError(f"{path} is a chain, not a bundle's folder: open it by hasten.chain")
    _check_count("threads, the number of threads for one request,", threads)
    _check_count("sessions, the number of requests answered in parallel,", sessions)
    if which not in ("winner", "exact"):
        raise InputError(f"which, the model to open, must be 'winner' or 'exact': got {which!r}")
    keys = _keys(trusted)
    began_s = time.perf_counter()
    with contextlib.ExitStack() as undo:
        stored = stored_at(path, keys)
        undo.callback(stored.close)
        opened = _open(
            stored,
            which,
            custom_ops,
            threads,
            sessions,
            cache,
            any_batch=any_batch,
            reference=reference,
            beside_others=beside_others,
            began_s=began_s,
        )
        undo.pop_all()
        return opened


def _open(
    stored: Stored,
    which: Literal["winner", "exact"],
    custom_ops: Sequence[Path],
    threads: int | None,
    sessions: int | None,
    cache: str | os.PathLike[str] | bool | None,
    *,
    any_batch: bool,
    reference: bool,
    beside_others: bool,
    began_s: float,
) -> Loaded:
    """Open a model of a bundle; see `load`, which was called at `began_s`."""
    from hasten.measure.environment import environment

    manifest = stored.manifest
    item = manifest.winner if which == "winner" else manifest.exact
    if item is None:
        raise InputError(
            f"{stored.name} was made with keep_exact=False: it contains no exact model"
        )
    here = at_hand(manifest.target)
    threads = max(1, min(threads or manifest.target.threads, manifest.target.threads, here.threads))
    engine = (
        reference_of(item, stored.name, manifest.environment)
        if reference
        else engine_of(item, threads, manifest.environment)
    )
    engine = engine.beside() if beside_others else engine
    for runtime in engine.runtimes:
        runtime.version()
    facts = environment(here, of=distributions(item.engine)) | programs(item.engine)
    exact = which == "exact" or manifest.status == "exact"
    target = here.with_threads(threads)
    late = (
        engine.reads_late and not custom_ops
    )  # a library is hashed now, and nothing is cached with one
    with stored.opening(item, custom_ops, late=late) as artifact:
        # An exact model's differences are about its speed, which isn't the same everywhere.
        notes = differences(manifest, here, facts, item, None if exact else artifact)
        if manifest.status == "uncertified" and not exact:
            notes.insert(0, manifest.why)
        elif not exact and manifest.certified_early:
            warnings.warn(f"{stored.name}: {manifest.why}", UnfinishedRun, stacklevel=3)
        if reference and not exact and not engine.same_everywhere(artifact):
            notes.append("the reference engine calculates floats, whose last bits differ")
        if notes:
            kind = MeasuredElsewhere if exact else NotCertifiedHere
            warnings.warn(_warning(notes, exact=exact), kind, stacklevel=3)
        limit = sessions or sessions_for(engine, artifact, target, here.threads)
        compiled = _compiled(cache, artifact, item, manifest)
        numbers = RowNumbers.of(manifest.lookups, artifact.inputs)
        pool = SessionPool(engine, artifact, target, limit, compiled, numbers)
    judged = which == "winner" and manifest.status == "certified"
    opened = Loaded(
        stored,
        pool,
        notes,
        artifact.request,
        artifact.request if judged else (),
        from_cache=compiled is not None and compiled.found > 0,
        ways=min(limit, max(1, threads // (engine.threads or threads))),
        covered=certified_sizes(manifest) if judged and not pool.rows_apart else None,
        any_batch=any_batch,
        extents=manifest.shapes,
        padder=engine.shared_padder(artifact),
        which=which,
    )
    opened.opened_s = time.perf_counter() - began_s
    if pool.compiling_s > _LONG_S:
        told = ""  # without a cache, a scratch folder may keep it for a while
        if compiled is not None and compiled.kept:
            told = f"; the next opening finds what was compiled in {compiled.folder.path}"
        elif compiled is not None:
            told = "; no cache keeps what was compiled"
        LOG.warning(
            "%s was opened in %.1f s, of which compiling took %.1f s%s",
            stored.name,
            opened.opened_s,
            pool.compiling_s,
            told,
        )
    return opened


def _compiled(
    cache: str | os.PathLike[str] | bool | None, artifact: Artifact, item: Part, manifest: Manifest
) -> CompileCache | None:
    """Return the cache for a part's model, with the hashes that its files were checked against."""
    kept = cache_folder(cache)
    if kept is None:
        return None
    there = (artifact.path, *artifact.files)
    names = (item.artifact.path, *item.artifact.files)
    hashes = {
        file: manifest.files[name.as_posix()][0] for file, name in zip(there, names, strict=True)
    }
    return CompileCache(kept, hashes)


def _keys(trusted: Trusted) -> tuple[PublicKey, ...]:
    if trusted is None:
        return ()
    from hasten.bundle.signatures import keys_of

    return keys_of(trusted)


def _check_count(what: str, count: object) -> None:
    if count is not None and (type(count) is not int or count < 1):
        raise InputError(f"{what} must be a whole number of at least 1: got {count!r}")


def _warning(notes: Sequence[str], *, exact: bool) -> str:
    """Return the text of a warning that this machine differs from the bundle's."""
    if not exact:
        return f"not certified here: {'; '.join(notes)}"
    return (
        f"measured elsewhere: {'; '.join(notes)}; the answers are exact here too, within the "
        "tolerance, but another candidate may be faster here: run hasten optimize on this "
        "machine to find out"
    )
