"""Open a chain: its bundles in one process, behind one thread-safe `decide`."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Literal, Self

from hasten.bundle.chains.batches import batch_sizes, run_rows
from hasten.bundle.chains.certificate import certificate_file, kept_certificate
from hasten.bundle.chains.plan import ChainPlan, Member, Stage, named
from hasten.bundle.folder import read_sizes
from hasten.bundle.loaded import Loaded, NotCertifiedHere, UnfinishedRun
from hasten.bundle.loading import load
from hasten.bundle.manifest import Manifest
from hasten.bundle.packing.unpacking import unpacked
from hasten.bundle.signatures import PublicKey, Trusted, keys_of
from hasten.errors import InputError
from hasten.inputs.chains import SOURCE, Chain, Node, chain_of
from hasten.inputs.pipeline.base import Pipeline


class OpenChain:
    """An open chain: a thread-safe `decide`, from a picture's bytes to the chain's decision.

    The decision is that of the model that sees the source; each of its boxes gets the decisions about
    its crop under the models' names, None where the box wasn't cut or a condition didn't hold. Where
    several models see the source, the decision is a dict of theirs by name.

    Attributes:
        chain: The chain.
        members: Its open bundles, by their nodes' names.
        batch_sizes: Batch sizes in which each model is asked, by node's name.
        not_certified: Reasons why the bundles' own certificates don't hold here, each after its node's
            name.
        certified: Sentence of the chain's own certificate, if one is kept beside it and holds here; ""
            otherwise.

    Args:
        chain: The chain.
        members: Its open bundles, by their nodes' names.
        sizes: Batch sizes in which each model is asked, by node's name.
        notes: Reasons for `not_certified`.
        certified: Sentence of the chain's own certificate.
    """

    def __init__(
        self,
        chain: Chain,
        members: Mapping[str, Loaded],
        sizes: Mapping[str, tuple[int, ...]],
        notes: Sequence[str],
        certified: str = "",
    ) -> None:
        self.chain = chain
        self.members = dict(members)
        self.batch_sizes = dict(sizes)
        self.not_certified = tuple(notes)
        self.certified = certified
        self._plan = ChainPlan(
            chain,
            {
                name: Member(
                    pipeline_of(name, one.manifest),
                    one.inputs,
                    max(sizes[name]),
                    one.manifest.varying,
                )
                for name, one in members.items()
            },
        )

    def decide(
        self,
        value: Any,
        *,
        deadline_s: float | None = None,
        cancelled: threading.Event | None = None,
        stages: list[Stage] | None = None,
    ) -> Any:
        """Decode a picture once, run the chain's models, and return the decision.

        Args:
            value: File's bytes or path, or a decoded picture `(height, width, 3)` uint8 in RGB.
            deadline_s: Time from now after which nothing more is begun, in seconds. A model that
                runs already isn't stopped.
            cancelled: Event after which nothing more is begun.
            stages: List that gets the times of the stages, in the order in which they ran.

        Returns:
            Plain values that JSON can represent, where every model's pipeline ends in such.

        Raises:
            InputError: the value can't be read or doesn't fit, or a decision isn't what the next node
                needs; the message names the node.
            CandidateError: an engine failed, or the chain is closed; the message names the node.
            TimeoutError: the deadline passed.
            concurrent.futures.CancelledError: the event was set.
        """
        run = self._plan.run(value, _checking(deadline_s, cancelled), stages)
        try:
            ask = next(run)
            while True:
                with named(ask.model):
                    answers = run_rows(
                        self.members[ask.model], ask.requests, self.batch_sizes[ask.model]
                    )
                ask = run.send(answers)
        except StopIteration as end:
            return end.value
        finally:
            run.close()

    def close(self) -> None:
        """Wait for the calls that are running, refuse those in line, and free the engines."""
        for one in self.members.values():
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_chain(
    chain: Chain | Sequence[Node] | str | os.PathLike[str],
    *,
    which: Literal["winner", "exact"] = "winner",
    custom_ops: Mapping[str, Sequence[Path]] | None = None,
    threads: int | None = None,
    sessions: int | None = None,
    max_batch: int | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    trusted: Trusted = None,
) -> OpenChain:
    """Check a chain and its bundles, and open them in this process.

    Args:
        chain: A chain, its nodes, the path of a YAML file, or a line such as
            `det.hasten+crop+ocr.hasten`.
        which: Models to open: the bundles' "winner", or the "exact" ones.
        custom_ops: Libraries with the user's own operators, by the names of the models that need
            them.
        threads: Largest number of threads to run one request of a model on; by default as many as
            its bundle was made for.
        sessions: Largest number of requests of one model to answer in parallel; see `hasten.load`.
        max_batch: Largest number of crops in one batch, also where a certificate doesn't cover it.
            By default certified models are asked in batches that their certificates cover, and
            others in those that are the fastest here.
        cache: Folder that keeps what engines compile; see `hasten.load`.
        trusted: Public key, its file, or several, one of which must have signed each bundle; see
            `hasten.load`. The chain's own file isn't signed.

    Returns:
        The open chain; close it, or use it in a `with` block.

    Raises:
        InputError: a bundle is missing, has no pipeline or gives what the next node can't take, or
            an argument can't be read; the message names the node.
        CandidateError: an engine can't open its model here.
        IntegrityError: a bundle is damaged, or not signed by such a key.

    Warns:
        NotCertifiedHere: a bundle's certificate doesn't cover this machine.
        UnfinishedRun: a bundle's run has not finished, so another model may still ship.
    """
    if max_batch is not None and (type(max_batch) is not int or max_batch < 1):
        raise InputError(f"max_batch must be a whole number of at least 1: got {max_batch!r}")
    file, chain = certificate_file(chain), chain_of(chain)
    libraries = _libraries(chain, custom_ops or {})
    keys = keys_of(trusted)
    check_chain(chain, keys)
    opening = functools.partial(
        load,
        which=which,
        threads=threads,
        sessions=sessions,
        cache=cache,
        any_batch=max_batch is not None,
        trusted=keys or None,
        beside_others=True,
    )
    with contextlib.ExitStack() as undo:
        members, sizes, notes = {}, {}, []
        for name, one in _opened(chain, opening, libraries, undo):
            size: tuple[int, ...] = (1,)
            note = ""
            if chain.stream[name] != SOURCE:
                with _unwarned(name):
                    size, note = batch_sizes(one, 1 if which == "exact" else max_batch)
            members[name], sizes[name] = one, size
            notes += [f"{name}: {each}" for each in (*one.not_certified, note) if each]
        kept = None
        if which == "winner" and max_batch is None and not keys:
            manifests = {name: one.manifest for name, one in members.items()}
            kept, _ = kept_certificate(file, chain, manifests)
        chained = OpenChain(chain, members, sizes, notes, "" if kept is None else kept.claim)
        undo.pop_all()
    for name, one in members.items() if which == "winner" else ():
        if one.manifest.certified_early:
            warnings.warn(f"{name}: {one.manifest.why}", UnfinishedRun, stacklevel=2)
    if notes and which == "winner":
        warnings.warn(f"not certified here: {'; '.join(notes)}", NotCertifiedHere, stacklevel=2)
    return chained


def _libraries(chain: Chain, given: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Path, ...]]:
    """Return the operator libraries of each model of a chain.

    Raises:
        InputError: some are for a model that the chain doesn't have.
    """
    names = [model.name for model in chain.models]
    if unknown := given.keys() - set(names):
        raise InputError(
            f"custom_ops names {min(unknown)!r}, but the chain's models are {', '.join(names)}"
        )
    return {name: tuple(given.get(name, ())) for name in names}


def _opened(
    chain: Chain,
    opening: Callable[..., Loaded],
    libraries: Mapping[str, tuple[Path, ...]],
    undo: contextlib.ExitStack,
) -> Iterator[tuple[str, Loaded]]:
    """Yield each model of a chain, open; a bundle that several nodes use is opened once.

    Args:
        chain: The chain.
        opening: Function of a bundle's path and `custom_ops` that opens it.
        libraries: Operator libraries of each model.
        undo: Stack that closes the bundles.
    """
    opened: dict[tuple[Path, tuple[Path, ...]], Loaded] = {}
    for model in chain.models:
        operators = libraries[model.name]
        key = (Path(model.bundle).resolve(), operators)
        if key not in opened:
            with _unwarned(model.name):
                opened[key] = undo.enter_context(opening(model.bundle, custom_ops=operators))
        yield model.name, opened[key]


@contextlib.contextmanager
def _unwarned(name: str) -> Iterator[None]:
    """Suppress warnings about a model of a chain, of which `open_chain` warns, and let errors name it."""
    with warnings.catch_warnings(), named(name):
        warnings.simplefilter("ignore")
        yield


def check_chain(chain: Chain, trusted: Sequence[PublicKey] = ()) -> dict[str, Manifest]:
    """Check that a chain's bundles give what its nodes need; return their manifests by node.

    Args:
        chain: The chain.
        trusted: Keys, one of which must have signed each bundle; none where unsigned ones will do.

    Raises:
        InputError: a bundle is missing, has no pipeline, or doesn't fit; the message names the node.
        IntegrityError: a bundle is damaged, or not signed by such a key.
    """
    manifests, members = {}, {}
    for model in chain.models:
        with named(model.name):
            manifest = manifests[model.name] = read_sizes(unpacked(model.bundle, trusted), trusted)
        pipeline = pipeline_of(model.name, manifest)
        members[model.name] = Member(pipeline, manifest.winner.artifact.inputs)
    ChainPlan(chain, members)
    return manifests


def pipeline_of(name: str, manifest: Manifest) -> Pipeline:
    """Return the pipeline of a chain's model.

    Raises:
        InputError: its bundle has none.
    """
    if manifest.pipeline is None:
        raise InputError(
            f"{name}: its bundle was made from arrays and has no pipeline, so it can't take a picture: "
            "make it with a pipeline"
        )
    return manifest.pipeline


def _checking(deadline_s: float | None, cancelled: threading.Event | None) -> Callable[[], None]:
    """Return a function that raises once a deadline has passed or an event is set.

    Raises:
        InputError: the deadline isn't a time from now.
    """
    if deadline_s is not None and not deadline_s > 0:
        raise InputError(f"deadline_s={deadline_s!r}: give a time above 0, in seconds")
    until = None if deadline_s is None else time.monotonic() + deadline_s

    def check() -> None:
        if cancelled is not None and cancelled.is_set():
            raise CancelledError("the chain's decision was cancelled")
        if until is not None and time.monotonic() >= until:
            raise TimeoutError(f"the deadline of {deadline_s:g} s passed before the decision")

    return check
