"""Add up the evidence of all replicas at the door, which alone raises alarms and lets exact models answer.

Each replica counts what it audits; the door asks for the counts, and what came since it last asked is
more evidence of one process. So the chance of a false alarm is 5% over all replicas together, however
many come and go, and together they see a breach as soon as one server with all their traffic would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import logging
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from hasten.bundle import read, unpacked
from hasten.certificate.monitor import Batch
from hasten.core.records import from_record
from hasten.errors import IntegrityError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.models.watched import digest_at, held
from hasten.serving.monitoring.drift import Drift
from hasten.serving.monitoring.judging import Judging
from hasten.serving.monitoring.watch import Watch, door_of
from hasten.serving.observation.metrics import monitors
from hasten.serving.settings import ModelPlace, ServerSettings

log = logging.getLogger("hasten.serving")

_LOOK_S = 1.0
_PATIENCE_S = 5.0
_AGAIN = 60
"""Looks after which a replica that couldn't open the fast model again is told to try once more."""
Places = Callable[[], Mapping[str, tuple[str, int]]]


class Pool:
    """Monitor of several servers of the same bundles.

    Args:
        settings: Settings of the servers.
        places: Function that returns the name of each replica -> host and port.

    Attributes:
        watches: Model and version -> monitor of all its replicas.
    """

    def __init__(self, settings: ServerSettings, places: Places) -> None:
        self._places, self._secret = places, secrets.token_hex(16)
        token = settings.token()
        self._headers = {} if token is None else {"Authorization": f"Bearer {token.decode()}"}
        self.watches = {
            (model.name, model.version): _watch(model)
            for model in settings.models
            if model.settings.shadow
        }
        self._seen: dict[tuple[str, str, str, str], Batch] = {}
        self._strange: set[str] = set()
        self._released: dict[str, int] = {}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._over, self._looking = threading.Event(), threading.Lock()

    def of_replicas(self, settings: ServerSettings) -> ServerSettings:
        """Return the settings for the replicas: they count, and leave alarms to the door."""
        models = tuple(
            dataclasses.replace(model, settings=self._of_replica(model))
            for model in settings.models
        )
        return dataclasses.replace(settings, models=models)

    def _of_replica(self, model: ModelPlace) -> ModelSettings:
        """Return a model's settings for the replicas, whose own folders keep no alarms."""
        settings = dataclasses.replace(model.settings, monitor_state="off")
        if settings.shadow:
            return dataclasses.replace(settings, pooled=self._secret, webhook="", on_alarm="tell")
        folder = unpacked(model.path, settings.trusted)
        kept = held(folder, digest_at(folder), model.settings)
        if not kept:
            return settings
        extra = {"model": model.name, "version": model.version}
        log.warning("%s, from the next start on", kept, extra=extra)
        return dataclasses.replace(settings, which="exact")

    def look(self) -> None:
        """Ask every replica for what it has counted, and tell it which model has to answer."""
        with self._looking:  # two looks at once would count the same answers twice
            for (name, version), watch in self.watches.items():
                watch.looked_again()  # a person may have cleared the alarm
                path = (
                    f"/v2/models/{quote(name, safe='')}/versions/{quote(version, safe='')}/monitor"
                )
                blind: list[str] = []
                for host, port in self._places().values():
                    facts = self._asked(host, port, path)
                    if facts is None or not self._is_own(facts):
                        continue
                    blind.append(str(facts.get("blind", "")))
                    self._add(watch, name, version, facts)
                    if self._is_wrong(watch.keeps_exact, facts):
                        order = {"secret": self._secret, "exact": watch.keeps_exact}
                        self._asked(host, port, path, order)
                watch.blind = blind[0] if blind and all(blind) else ""

    def _is_wrong(self, exact: bool, facts: Mapping[str, Any]) -> bool:
        """Whether a replica has to be told which model answers; not while it opens the fast one again."""
        if exact == bool(facts.get("taken_over")):
            return False
        if exact:
            return True
        began = str(facts.get("began"))
        self._released[began] = self._released.get(began, -1) + 1
        return self._released[began] % _AGAIN == 0

    def _is_own(self, facts: Mapping[str, Any]) -> bool:
        """Whether a replica counts for this door; one that outlived another door counted for that one."""
        if facts.get("door") == door_of(self._secret):
            return True
        began = str(facts.get("began"))
        if began not in self._strange:
            self._strange.add(began)
            log.warning(
                "a replica was started by an earlier process in front of the servers: what it audits "
                "isn't counted until it is replaced"
            )
        return False

    def _add(self, watch: Watch, name: str, version: str, facts: Mapping[str, Any]) -> None:
        """Take in what a replica has counted since it was last asked."""
        for watched in watch.judging.limits:
            record = facts.get("totals", {}).get(watched.key)
            if record is None:
                continue
            try:
                now = from_record(Batch, record)
            except IntegrityError as error:
                log.error("a replica's counts can't be read: %s", error)
                continue
            place = name, version, watched.key, str(facts.get("began"))
            before = self._seen.get(place)
            if before is None or now.n > before.n:
                self._seen[place] = now
                watch.add(watched, [now if before is None else now - before])

    def _asked(
        self, host: str, port: int, path: str, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any] | None:
        """Ask a replica; None if it doesn't answer."""
        shown = f"[{host}]" if ":" in host else host
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{shown}:{port}{path}", data, self._headers)
        with contextlib.suppress(
            OSError, ValueError, http.client.HTTPException
        ):  # it may be gone, or its models not yet ready
            with self._opener.open(request, timeout=_PATIENCE_S) as answer:
                found = json.loads(answer.read())
                return found if isinstance(found, dict) else None
        return None

    def page(self) -> str:
        """Return the evidence of all replicas as metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        known = [(place, watch.facts()) for place, watch in self.watches.items()]
        registry = CollectorRegistry()
        registry.register(_Families([*monitors(known)]))
        return generate_latest(registry).decode()

    def _work(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                self.look()
            except Exception:  # the door goes on without a monitor rather than not at all
                log.exception("the replicas' evidence couldn't be added up")

    def __enter__(self) -> Self:
        if self.watches:
            threading.Thread(target=self._work, name="hasten-pool", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for watch in self.watches.values():
            watch.close()


class _Families:
    """Collector that hands finished families to a registry."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def _watch(model: ModelPlace) -> Watch:
    settings, trusted = model.settings, model.settings.trusted
    place = unpacked(model.path, trusted)
    judging = Judging(read(place, trusted), settings.shadow_limit)
    return Watch(
        model.name,
        model.version,
        digest_at(place),
        judging,
        Drift((), dict),
        state=settings.monitor_state,
        webhook=settings.webhook,
        take_over=settings.on_alarm == "exact",
    )
