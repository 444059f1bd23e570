"""Watch one served model: count its audited answers as evidence, and raise the alarm."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hasten.certificate.monitor import Batch
from hasten.core.tensors import Tensors
from hasten.core.varying import of_one_size
from hasten.serving.monitoring.drift import Drift
from hasten.serving.monitoring.judging import Judging
from hasten.serving.monitoring.kept import (
    Alarm,
    Kept,
    Record,
    Watched,
    as_it_is,
    now,
    state_folder,
    taken_over,
    told,
)
from hasten.serving.monitoring.labels import Labels
from hasten.serving.monitoring.webhook import post
from hasten.serving.wire.json_labels import labels_of

log = logging.getLogger("hasten.serving")

_BLIND_AFTER = 3
"""Failures of the exact model in a row after which the monitor says that it is blind."""


def door_of(secret: str) -> str:
    """Return the name of the door that adds up a server's evidence, which doesn't tell its secret.

    Args:
        secret: Secret of the door; "" for a server alone, which has none.
    """
    return hashlib.sha256(secret.encode()).hexdigest()[:16] if secret else ""


class Watch:
    """Monitor of one bundle that is served; its methods are for any thread.

    Args:
        model: Name of the model for clients.
        version: Version of the model.
        bundle: SHA-256 of the bundle's manifest.
        judging: Limits that its answers are held to.
        drift: Signals that are shown beside it.
        state: Folder that keeps the evidence, "off", or "" for the user's own.
        webhook: Address that is told of alarms; "" for none.
        take_over: Whether the exact model answers from an alarm on.
        secret: Secret of the door that adds up the evidence of several servers, this one's too; then
            only the door raises alarms. "" for a server alone.

    Attributes:
        judging: Limits that the answers are held to.
        drift: Signals that are shown beside the evidence.
        labels: Answers that wait for their labels; None where labels say nothing.
        audited: Answers that were compared since this process began to serve the bundle.
        dropped: Answers that were chosen, and not compared, as there was no idle time.
        failed: Answers that the exact model failed on.
        blind: Line that says why nothing is compared; "" where it is.
        alarmed: Callback for when the exact model has to take over, on any thread.
    """

    def __init__(
        self,
        model: str,
        version: str,
        bundle: str,
        judging: Judging,
        drift: Drift,
        *,
        state: str = "",
        webhook: str = "",
        take_over: bool = False,
        secret: str = "",
    ) -> None:
        self._extra = {"model": model, "version": version}
        self.bundle, self._webhook, self._take_over = bundle, webhook, take_over
        self.judging, self.drift = judging, drift
        self.alarmed: Callable[[], None] = lambda: None
        self.audited = self.dropped = self.failed = self._failures = 0
        self.blind = ""
        self._over = threading.Event()
        self._secret, self._began = secret, secrets.token_hex(8)
        self._totals: dict[str, Batch] = {}
        self._telling: set[tuple[str, Alarm]] = set()
        self._kept = Kept(bundle, state_folder(state), self._warn, self._note, self._warn)
        self._shown: dict[str, tuple[float, float]] = {}
        self.labels = Labels(judging.loss, self._labelled) if judging.labelled else None
        self._told(self._kept.changed(taken_over) if self.keeps_exact else self._kept.record)

    # -- what comes in

    def audit(self, inputs: Tensors, outputs: Tensors, exact: Tensors, key: bytes) -> bool:
        """Count an answer beside the exact model's; return whether it is changed, even in part.

        Args:
            inputs: Inputs of the sample.
            outputs: Answer that went out.
            exact: The exact model's answer.
            key: Key of the answer whose label is awaited; b"" for none.

        Raises:
            InputError: the outputs aren't of the form that the metric reads.
        """
        changed = self.judging.changed(outputs, exact)
        self.drift.look(inputs, of_one_size(outputs, self.judging.varying))
        if self._failures >= _BLIND_AFTER:
            self._warn("the exact model answers again, so the monitor can compare again")
        self._failures, self.blind = 0, ""
        if self.judging.answers is not None:
            self._add(self.judging.answers, [changed])
        if self.labels is not None and key:
            self.labels.audited(key, outputs, exact)
        self.audited += 1
        return changed > 0

    def skip(self, key: bytes) -> None:
        """Count an answer that was chosen and isn't compared, whatever it is."""
        self.dropped += 1
        self._forget(key)

    def fail(self, key: bytes, why: str) -> None:
        """Count an answer that the exact model failed on; say, once, when it fails again and again."""
        self._failures += 1
        self._forget(key)
        if self._failures == _BLIND_AFTER:
            self.blind = f"the exact model fails: {why:.200}"
            self._warn(
                f"the monitor is blind: {self.blind}; the server goes on answering, but no "
                "answers are compared"
            )
        self.failed += 1  # last: who sees the count sees what it is due to

    def _forget(self, key: bytes) -> None:
        if self.labels is not None and key:
            self.labels.drop(key)

    def _labelled(self, losses: list[float]) -> None:
        assert self.judging.labelled is not None
        self._add(self.judging.labelled, losses)

    def _add(self, watched: Watched, values: list[float]) -> None:
        batches = [watched.null.batch([value]) for value in values]
        if not self._secret:
            self.add(watched, batches)
            return
        for batch in batches:
            before = self._totals.get(watched.key)
            self._totals[watched.key] = batch if before is None else before + batch

    def add(self, watched: Watched, batches: Sequence[Batch]) -> None:
        """Take in audited answers as evidence, and raise the alarm where they break the limit."""
        at, before = now(), self._kept.record.alarms

        def added(record: Record) -> Record:
            for batch in batches:
                record = record.added(watched, batch, at, take_over=self._take_over)
            return record

        record = self._kept.changed(added)
        self._telling = {each for each in self._telling if each[0] in record.alarms}
        self._show(watched, record)
        if record.alarms != before:
            self._told(record)
        if record.taken_over:
            self.alarmed()

    # -- what goes out

    def _told(self, record: Record) -> None:
        """Say each alarm in the log, and to the webhook until it has heard."""
        for watched in self.judging.limits:
            self._show(watched, record)
        for key, alarm in record.alarms.items():
            once = key, dataclasses.replace(alarm, told=False)
            if once in self._telling:
                continue
            self._telling.add(once)
            log.error("alarm: %s", self._sentence(alarm, record), extra=self._extra)
            if self._webhook and not alarm.told:
                post(self._webhook, self._body(alarm, record), self._heard(key, alarm), self._over)

    def _sentence(self, alarm: Alarm, record: Record) -> str:
        then = (
            "the exact model answers until `hasten monitor BUNDLE --clear`"
            if record.taken_over
            else "the fast model continues to answer"
        )
        meaning = self.judging.meaning(alarm.what, alarm.limit)
        return f"{alarm.in_words()}; {meaning}; {then}"

    def _body(self, alarm: Alarm, record: Record) -> dict[str, Any]:
        return {
            "event": "alarm",
            **self._extra,
            "bundle": self.bundle,
            "text": self._sentence(alarm, record),
            "taken_over": record.taken_over,
            **{k: v for k, v in dataclasses.asdict(alarm).items() if k != "told"},
        }

    def _heard(self, key: str, alarm: Alarm) -> Callable[[], None]:
        return lambda: self._note_heard(key, alarm)

    def _note_heard(self, key: str, alarm: Alarm) -> None:
        self._kept.changed(lambda record: told(record, {key: alarm}))

    def _show(self, watched: Watched, record: Record) -> None:
        evidence = record.evidence.get(watched.key)
        if evidence is None:  # it was cleared
            self._shown.pop(watched.key, None)
        else:
            self._shown[watched.key] = evidence.interval()

    def is_door(self, secret: str) -> bool:
        """Whether a secret is that of the door that adds up this server's evidence."""
        return bool(self._secret) and hmac.compare_digest(secret.encode(), self._secret.encode())

    def take_over(self) -> None:
        """Let the exact model take over, by the door's order."""
        self._kept.changed(taken_over)
        self.alarmed()

    @property
    def record(self) -> Record:
        """Record that is kept of the bundle."""
        return self._kept.record

    @property
    def keeps_exact(self) -> bool:
        """Whether the exact model has to answer, until somebody clears the alarm."""
        record = self._kept.record
        return record.taken_over or (self._take_over and bool(record.alarms))

    def looked_again(self) -> None:
        """Read what other processes, or a person, have made of the evidence meanwhile."""
        self._told(self._kept.changed(as_it_is))

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the monitor, for JSON."""
        record = self._kept.record
        again, path = self.drift.asked_again, self._kept.path
        return {
            "bundle": self.bundle,
            "limits": [
                self._limit(watched, record) for watched in self.judging.limits if not self._secret
            ],
            "totals": {key: dataclasses.asdict(batch) for key, batch in self._totals.items()},
            "began": self._began,
            "door": door_of(self._secret),
            "why": self.judging.why,
            "alarms": [alarm.in_words() for alarm in record.alarms.values()],
            "taken_over": record.taken_over,
            "begun_anew": record.begun_anew,
            "audited": self.audited,
            "dropped": self.dropped,
            "failed": self.failed,
            "blind": self.blind,
            "kept": None if path is None else str(path),
            "labels": None if self.labels is None else self._labels(self.labels),
            "drift": {
                "asked_again": None if again is None else list(again),
                "margin": dataclasses.asdict(self.drift.margin),
                "outside": dataclasses.asdict(self.drift.outside),
            },
            "lines": list(record.lines),
        }

    def _limit(self, watched: Watched, record: Record) -> dict[str, Any]:
        evidence = record.evidence.get(watched.key) or watched.null.begun()
        low, high = self._shown.get(watched.key, (-1.0 if watched.null.net else 0.0, 1.0))
        return {
            "what": watched.what,
            "limit": watched.null.limit,
            "alpha": watched.alpha,
            "n": evidence.n,
            "losses": evidence.losses,
            "gains": evidence.gains,
            "low": low,
            "high": high,
            "log_capital": evidence.log_value,
            "alarm": watched.key in record.alarms,
        }

    @staticmethod
    def _labels(labels: Labels) -> dict[str, Any]:
        return {**dataclasses.asdict(labels.counts), "waiting": labels.waiting, "last": labels.last}

    def label(self, client: str, body: bytes) -> dict[str, int]:
        """Take a request's labels with the ids of their requests; return how many came to what.

        Args:
            client: Name of the client that sends them; "" where clients aren't told apart.
            body: Labels as JSON.

        Raises:
            ProtocolError: the request has another form, or is too long.
        """
        assert self.labels is not None
        return self.labels.take(client, labels_of(body))

    def _warn(self, text: str) -> None:
        log.warning("%s", text, extra=self._extra)

    def _note(self, text: str) -> None:
        log.info("%s", text, extra=self._extra)

    def close(self) -> None:
        """End the tries to reach the webhook."""
        self._over.set()
