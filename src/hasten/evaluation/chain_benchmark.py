"""Comparison of a chain as a whole with the chain of its exact models, from a picture's bytes to the decision."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hasten.bundle import Manifest, artifact_of, engine_of, unpacked
from hasten.bundle.chains.opened import OpenChain, check_chain, open_chain
from hasten.bundle.chains.plan import Stage, parts_of
from hasten.core.devices import at_hand, check_measurable
from hasten.core.model import Format, Model
from hasten.core.presence import is_there
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import amount
from hasten.engines.base import Artifact, Session
from hasten.engines.end_to_end import REQUEST, STAGES, EndToEnd
from hasten.engines.failures import failed
from hasten.engines.only_timed import OnlyTimed
from hasten.engines.python_function import PythonFunction
from hasten.errors import CandidateError, InputError
from hasten.evaluation.benchmark import CHAIN, EXACT_CHAIN, GIVEN, Comparison, files_of
from hasten.evaluation.rivals import CANDIDATE, Rival, raced, row_of
from hasten.inputs.chains import Chain, chain_of
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.pipeline.resample import compile_now
from hasten.measure.deadline import Deadline
from hasten.measure.effort import Effort
from hasten.measure.race import AGAIN, BASELINE
from hasten.measure.stages import reported

_MOST_KEPT = 20_000
_SIZES = "batch sizes"
"""Property with the largest batch of crops of each model, as JSON."""
MEAN = "chains are compared by their mean, since pictures with more boxes cost more than others"
"""Note on the statistic."""


@dataclass(frozen=True)
class TimedChain(OnlyTimed):
    """Decide on a file's bytes by a chain.

    Attributes:
        chain: The chain.
        which: Models that it asks: "winner" or "exact".
        files: Files to answer; a request names one by its number.
    """

    chain: Chain
    which: str
    files: tuple[Path, ...]

    formats: ClassVar[frozenset[Format]] = frozenset()

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        raise NotImplementedError("a chain's models are built already")

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Read the files into memory, and open the chain."""
        contents = [file.read_bytes() for file in self.files]
        compile_now()  # not while requests are timed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what isn't certified here is timed, too
            opened = open_chain(
                self.chain,
                which="exact" if self.which == "exact" else "winner",
                threads=target.threads,
                sessions=1,
            )
        with opened:
            yield _ChainSession(opened, self.files, contents)

    def words(self) -> str:
        return "a chain, from bytes to decision"


class _ChainSession(Session):
    batch_sizes = (1,)

    def __init__(self, opened: OpenChain, files: tuple[Path, ...], contents: list[bytes]) -> None:
        self._opened, self._files, self._contents = opened, files, contents
        self.inputs, self.outputs = REQUEST, ()
        self._spans_ns: dict[str, deque[int]] = {}

    def run(self, inputs: Tensors) -> dict[str, Array]:
        stages: list[Stage] = []
        number = int(inputs["file"][0])
        try:
            self._opened.decide(self._contents[number], stages=stages)
        except InputError as error:
            raise failed(f"{self._files[number]} can't be answered", error) from error
        decode, *others = stages
        self._note(decode.name, decode.total_ns)
        for node, stage in zip(self._opened.chain.in_order, others, strict=True):
            for part, span_ns in parts_of(node, stage).items():
                self._note(f"{node.name} {part}", span_ns)
        return {}

    def _note(self, name: str, span_ns: int) -> None:
        self._spans_ns.setdefault(name, deque(maxlen=_MOST_KEPT)).append(span_ns)

    def properties(self) -> Mapping[str, str]:
        sizes = {name: max(sizes) for name, sizes in self._opened.batch_sizes.items()}
        spans_ns = {name: list(spans) for name, spans in self._spans_ns.items()}
        return {STAGES: json.dumps(spans_ns), _SIZES: json.dumps(sizes)}


def bench_chain(
    given: Chain | str | os.PathLike[str],
    against: str | os.PathLike[str] | None,
    data: Any,
    effort: Effort,
    seed: int,
    deadline: Deadline,
) -> Comparison:
    """Compare a chain with the chain of its exact models, or with a function that gets a file's bytes.

    Args:
        given: The chain, in any form that `hasten.chain` takes.
        against: "file.py:predict"; None for the chain of the exact models.
        data: Folder of pictures, or of what else the chain takes.
        effort: Lengths of turns and rounds.
        seed: Seed of the orders.
        deadline: End of the comparison.

    Raises:
        InputError: the chain or the data can't be used, or a bundle has no exact model.
        CandidateError: one of the two failed.
    """
    chain = chain_of(given)
    manifests = check_chain(chain)
    files = files_of(data, manifests[chain.roots[0].name].pipeline)
    for manifest in manifests.values():
        check_measurable(at_hand(manifest.target))
    target = Target.host()
    threads = max(manifest.target.threads for manifest in manifests.values())
    target = target.with_threads(max(1, min(target.threads, threads)))
    winner = _rival(chain, "winner", manifests, files)
    if against is None:
        other = _rival(chain, "exact", manifests, files)
    else:
        other = _function(os.fspath(against), winner.artifact, files)
    with tempfile.TemporaryDirectory(prefix="hasten-bench-") as work:
        place = Path(work)
        numbers = ArrayDataset({"file": np.arange(len(files))})
        samples = write_spool(numbers, place / "numbers")
        standings, notes, facts = raced(
            other, winner, samples, place, effort, seed, deadline, target
        )
    if not standings.stands(CANDIDATE):
        raise CandidateError(f"the chain failed: {standings.failed[CANDIDATE]}")
    sizes = [json.loads(facts[name].get(_SIZES, "{}")) for name in (BASELINE, CANDIDATE)]
    return Comparison(
        against=row_of(EXACT_CHAIN if against is None else GIVEN, other, standings, AGAIN),
        bundle=row_of(CHAIN, winner, standings, CANDIDATE),
        threads=standings.threads,
        requests=f"{amount(len(set(files)), 'file')} of {data}",
        notes=(*notes, MEAN, *_batches(*sizes)),
        stages=reported(facts[CANDIDATE]),
        stages_against=reported(facts[BASELINE]),
    )


def _rival(
    chain: Chain, which: str, manifests: Mapping[str, Manifest], files: tuple[Path, ...]
) -> Rival:
    """Return the chain of the winners, or of the exact models."""
    labels, paths = [], []
    for model in chain.models:
        manifest = manifests[model.name]
        part = manifest.winner if which == "winner" else manifest.exact
        if part is None:
            raise InputError(
                f"{model.name}: its bundle has no exact model, so there is no exact chain: say what to "
                "compare with in against="
            )
        engine_of(
            part, 1, manifest.environment
        )  # a damaged record is refused here, not as a failure of the race
        artifact = artifact_of(unpacked(model.bundle), part, manifest, ())
        labels.append(f"{model.name}: {part.label}")
        paths += [artifact.path, *artifact.files]
    held = dict.fromkeys(paths)  # a bundle that two nodes use counts once
    first, *rest = held
    asked = Artifact(first, REQUEST, (), REQUEST, tuple(rest))
    return Rival("; ".join(labels), TimedChain(chain, which, files), asked, uneven=True)


def _function(text: str, artifact: Artifact, files: tuple[Path, ...]) -> Rival:
    """Return a function that gets a file's bytes."""
    if ":" not in text or is_there(text):
        raise InputError(
            f"a chain is compared with a function that gets a file's bytes, my.py:predict: got {text}"
        )
    raw = (TensorSpec("raw", "uint8", ("size",)),)
    engine = EndToEnd(PythonFunction(text), None, files, raw, raw)
    return Rival(text, engine, artifact, uneven=True)


def _batches(exact: Mapping[str, int], winner: Mapping[str, int]) -> Sequence[str]:
    """Say where the chain's models are asked about more crops at a time than the exact ones."""
    more = [f"{name} {size}" for name, size in winner.items() if size > exact.get(name, size)]
    if not more:
        return ()
    return (
        f"largest number of crops that a model of the chain is asked about at a time: {', '.join(more)}; the "
        "exact chain asks about one at a time",
    )
