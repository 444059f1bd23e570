"""Test of a whole chain on new samples: its own decisions against those of its exact models."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hasten.bundle.chains.certificate import (
    ChainCertificate,
    certificate_file,
    machine_of,
    node_digests,
)
from hasten.bundle.chains.opened import OpenChain, check_chain, open_chain, pipeline_of
from hasten.certificate.betting import BettingPrior
from hasten.certificate.ledger import user_ledger
from hasten.certificate.looks import Judged, answers_digest
from hasten.certificate.planning import check_limits
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, judge
from hasten.core.records import digest, to_record
from hasten.errors import CandidateError, InputError
from hasten.evaluation.chain_samples import chain_samples
from hasten.evaluation.decisions import Comparison
from hasten.evaluation.seen import Recheck, fresh, looked
from hasten.inputs.chains import Chain, chain_of
from hasten.inputs.metrics.agreement import Agreement

METRIC = "agreement"


def certify_chain(
    chain: Chain | str | os.PathLike[str],
    data: Any,
    *,
    max_drop: float | None,
    confidence: float | None = None,
) -> Recheck:
    """Bound the share of samples on which a chain decides otherwise than its exact models do.

    The parts' certificates don't add up to one of the whole: a box that moves a little changes what the
    reader sees. So the chain's own decisions are compared, by `hasten.evaluation.decisions.Comparison`.
    A sample on which the chain fails and its exact models don't counts as changed. The bound is that of
    Clopper and Pearson where no groups are given.

    Args:
        chain: The chain, in any form that `hasten.chain` takes.
        data: Folder of pictures, texts or other files as the chain's first model takes them, maybe with a
            `groups.csv`; for a model of rows also a table, such as a CSV file. Samples that a bundle
            of the chain was made with are left out, unless there are no others.
        max_drop: Largest share of changed decisions.
        confidence: Confidence of the verdict; by default 0.95.

    Raises:
        InputError: the chain or the data can't be used, or a bundle holds no exact model.
        IntegrityError: a bundle is damaged, or doesn't say what it was made with.
    """
    place = certificate_file(chain)
    chain = chain_of(chain)
    if max_drop is None:
        raise InputError("a chain has no certificate and therefore no limit: give max_drop=")
    sure = 0.95 if confidence is None else confidence
    check_limits(max_drop, sure)
    ledger = user_ledger()
    manifests = check_chain(chain)
    comparison = Comparison(chain, {n: pipeline_of(n, one) for n, one in manifests.items()})
    samples = chain_samples(chain, manifests, data)
    earlier = ledger.past().earlier(1 - sure)
    chosen = fresh(samples.dataset, samples.seen, earlier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_chain(chain, which="exact") as exact, open_chain(chain) as winner:
            agreement = []
            for index in chosen.samples.indices:
                agreement.append(_agree(comparison, winner, exact, samples.values[index]))
    scores = np.array(agreement, np.float64)
    own = np.ones_like(scores)

    def judged(promise: Promise) -> Judged:
        judgement = judge(
            own,
            scores,
            guard="changed",
            max_drop=max_drop,
            confidence=promise.confidence,
            metric=METRIC,
            prior=BettingPrior(),
            groups=chosen.units,
            binary=True,
        )
        return [("chain", judgement)]

    promise = Promise(Agreement(), "changed", max_drop, sure)
    nodes = {"chain": digest(node_digests(chain, manifests))}
    test = answers_digest(chosen.hashes, own, nodes, {"chain": scores}, chosen.units, promise)
    (entry,), kind, look = looked(ledger, chosen, test, promise, judged)
    assert isinstance(entry[1], Judgement)
    checked = Recheck(
        kind,
        entry[1],
        used=len(chosen.samples),
        left_out=len(samples.dataset) - len(chosen.samples),
        look=look,
        elsewhere=chosen.elsewhere,
        notes=ledger.notes,
        remembered=ledger.file is not None,
        place=place,
    )
    if not checked.passed or kind == "regression check":
        return checked
    certificate = ChainCertificate(
        checked.judgement.in_words(),
        kind,
        to_record(checked.judgement),
        checked.used,
        checked.left_out,
        node_digests(chain, manifests),
        {name: machine_of(manifest) for name, manifest in manifests.items()},
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(checked, certificate=certificate)


def _agree(comparison: Comparison, winner: OpenChain, exact: OpenChain, value: Any) -> bool:
    """Whether a chain decides on a sample as its exact models do."""
    expected = exact.decide(value)
    try:
        found = winner.decide(value)
    except (InputError, CandidateError):
        return False
    return comparison.agrees(found, expected)
