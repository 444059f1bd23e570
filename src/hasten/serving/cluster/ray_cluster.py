"""Serve on a Ray cluster: replicas as a Ray Serve application, with their ingress on this machine.

Bundles are put into the cluster's object store once; each machine's first replica writes them to its
own disk, and every replica checks every checksum. So no file has to be at the same path on all nodes,
but the same version of hasten, with the engines, has to be installed on every node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from hasten.bundle import read, unpacked
from hasten.core.records import to_record
from hasten.core.telemetry import OFF
from hasten.errors import InputError
from hasten.serving.changing_files import ChangingFiles
from hasten.serving.cluster.federation import Federation
from hasten.serving.cluster.ingress import Ingress, ReplicaEntry
from hasten.serving.cluster.pooling import Pool
from hasten.serving.cluster.replica import (
    Book,
    Parcel,
    Replica,
    Roster,
    behind_door,
    packed,
    wanted_replicas,
)
from hasten.serving.cluster.shelf import door_folder
from hasten.serving.protocol.rights import Client, Rights
from hasten.serving.protocol.tokens import clients_text
from hasten.serving.settings import ServerSettings

log = logging.getLogger("hasten.serving")

APPLICATION = "hasten"
NAMESPACE = "hasten"
ROSTER = "hasten-roster"
_LOOK_S = 0.2
_ANSWER_S = 10.0
_KNOCK_S = 5.0
_LEAST_SLOTS = 16
_UPSCALE_DELAY_S = 5.0
_DOWNSCALE_DELAY_S = 60.0
_LOOK_BACK_S = 15.0
_GRACE_S = 10.0
"""Time beside the drain time in which a replica deregisters and frees its engines."""


def deploy(
    settings: ServerSettings,
    *,
    address: str | None = None,
    min_replicas: int = 1,
    max_replicas: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Serve on a Ray cluster until SIGTERM or SIGINT, then end the application.

    Args:
        settings: Settings of the server: models to serve, and addresses to listen on. This machine
            has to be a node of the cluster.
        address: Address of the cluster, HOST:PORT; by default the value of RAY_ADDRESS, or else a
            new cluster on this machine alone that ends with this function.
        min_replicas: Fewest replicas.
        max_replicas: Largest number of replicas, under high load.
        say: Callback for messages to people: where the server listens, and when it is ready.

    Returns:
        Exit code: 0 if the server ended because a signal asked it to.

    Raises:
        InputError: Ray isn't installed, no cluster answers, a port isn't available, or the models
            can't be served.
    """
    _check(settings, min_replicas, max_replicas)
    ray, serve = _ray()
    with contextlib.ExitStack() as ending:
        folder = ending.enter_context(door_folder())
        entries: dict[str, ReplicaEntry] = {}
        inner = behind_door(settings, folder)
        secret = inner.token()
        known = Known(settings)
        pool = ending.enter_context(Pool(inner, lambda: _places(entries)))
        federation = ending.enter_context(
            Federation(
                lambda: _places(entries),
                pool.page,
                settings.origins() if inner.behind_door else None,
                lambda: known.rights,
                secret or b"",
            )
        )
        slots = max(_LEAST_SLOTS, 4 * max_replicas)
        sent = secret if inner.behind_door else None
        ingress = Ingress(settings, folder, slots, federation.port, sent)
        ending.callback(ingress.close)
        ending.enter_context(_connected(ray, address or os.environ.get("RAY_ADDRESS")))
        ended = ending.enter_context(_told_to_end())  # after Ray has set its own handlers
        _warn_of_room(ray, settings, min_replicas, say)
        parcels = packed(inner, ray.put)
        roster = _start_roster(ray)
        ending.callback(_end_application, serve)
        ray.get([roster.put_in.remote(parcels), roster.admit.remote(known.text)])
        _start_application(serve, pool.of_replicas(inner), min_replicas, max_replicas)
        ingress.start()
        _say_where(settings, ingress, say)
        watch = Watch(ray, serve, roster, parcels, ingress, entries, known)
        watch.until(lambda: len(watch.serving) >= min_replicas, ended)
        if not ended.is_set():
            say("ready")
        watch.until(lambda: False, ended)
        log.info("draining")
        ingress.drain()
    return 0


class Known:
    """Clients that the pool knows, read again when their file changes.

    Args:
        settings: Settings of the pool.

    Raises:
        InputError: a file can't be read, states no valid tokens, or clients that are known otherwise.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._files = ChangingFiles("tokens", settings.token_files(), lambda: _clients(settings))

    @property
    def rights(self) -> Rights | None:
        """Rights of the clients; None to serve all alike."""
        return Rights(self._files.value) if self._files.value else None

    @property
    def text(self) -> str:
        """Clients as the replicas read them; "" to serve all alike."""
        return clients_text(self._files.value)

    def look(self) -> bool:
        """Read the file again if it has changed; whether other clients are known now."""
        before = self._files.value
        self._files.look()
        return self._files.value != before


class Watch:
    """Watcher that tells the ingress which replicas there are.

    Args:
        ray: Module `ray`.
        serve: Module `ray.serve`.
        roster: Handle of the roster's actor.
        parcels: Files that the roster has to hold.
        ingress: Ingress to the replicas.
        entries: Name of each replica -> entry; kept up to date.
        known: Clients that the roster has to know.
    """

    def __init__(
        self,
        ray: Any,
        serve: Any,
        roster: Any,
        parcels: list[Parcel],
        ingress: Ingress,
        entries: dict[str, ReplicaEntry],
        known: Known,
    ) -> None:
        self._known, self._told = known, True
        self._ray, self._serve, self._roster, self._ingress = ray, serve, roster, ingress
        self._parcels, self._entries = parcels, entries
        self._ever_served = self._lost = False

    @property
    def serving(self) -> list[str]:
        """Names of the replicas that take requests."""
        return [name for name, entry in self._entries.items() if not entry.leaving]

    def until(self, enough: Callable[[], bool], ended: threading.Event) -> None:
        """Watch the replicas until `enough` returns True, or `ended` is set.

        Raises:
            InputError: the models can't be served, or the ingress keeps exiting.
        """
        while not enough() and not ended.wait(_LOOK_S):
            self._look()
            self._ingress.look_after()

    def _look(self) -> None:
        try:
            book: Book = self._ray.get(self._roster.book.remote(), timeout=_ANSWER_S)
            if not book.stocked:  # the roster was restarted
                self._ray.get(self._roster.put_in.remote(self._parcels), timeout=_ANSWER_S)
            if self._known.look() or not book.stocked or not self._told:
                self._told = False
                self._ray.get(self._roster.admit.remote(self._known.text), timeout=_ANSWER_S)
                self._told = True
        except self._ray.exceptions.RayError as error:
            if not self._lost:  # the replicas that the ingress knows still answer
                log.error("the cluster's list of replicas can't be read: %s", error)
            self._lost = True
            return
        if self._lost or not book.stocked:
            # A restarted roster learns of each replica by its next heartbeat.
            self._lost = not book.stocked
            return
        before = len(self._entries)
        self._entries.clear()
        self._entries.update(book.entries)
        if before != len(book.entries):
            log.info("replicas: %d", len(self.serving))
        self._ever_served = self._ever_served or bool(book.entries)
        self._ingress.update(book.entries)
        if not self._ever_served:
            self._check_application(book.failure)

    def _check_application(self, failure: str) -> None:
        """Check that replicas can still be expected.

        Raises:
            InputError: there will be no replica; the message says why.
        """
        if failure:
            raise InputError(failure)
        application = self._serve.status().applications.get(APPLICATION)
        if application is not None and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [
                application.message,
                *(each.message for each in application.deployments.values()),
            ]
            text = " ".join(" ".join(reasons).split())
            raise InputError(f"Ray can't deploy the models: {text:.600}")


def _ray() -> tuple[Any, Any]:
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray lowers its workers' priority by default, but here clients wait for them.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    except ImportError as error:
        raise InputError("serving on Ray needs ray: pip install 'hasten[ray]'") from error
    return ray, serve


def _check(settings: ServerSettings, min_replicas: int, max_replicas: int) -> None:
    """Check the settings before anything is started.

    Raises:
        InputError: a cluster can't be served with these settings.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise InputError(
            "min_replicas= must be at least 1 and at most max_replicas=; got "
            f"{min_replicas} and {max_replicas}"
        )
    if any(model.chain is not None for model in settings.models):
        raise InputError(
            "a chain can't be served on Ray: serve its bundles, or serve the chain without on="
        )
    if settings.http is None and settings.grpc is None:
        raise InputError("nothing to listen on: give http= or grpc= a port")
    if settings.shared_memory:
        raise InputError(
            "replicas on Ray may be on other machines than their clients: leave out shared_memory="
        )
    if settings.control:
        raise InputError(
            "a client that loads or unloads a model would reach only one of the replicas: leave out "
            "allow_control="
        )
    if settings.client_ca is not None:
        raise InputError(
            "the ingress to Ray doesn't ask clients for certificates: leave out tls_client_ca=, and give "
            "clients tokens by tokens="
        )
    _clients(settings)
    settings.tls()


def _clients(settings: ServerSettings) -> tuple[Client, ...]:
    """Read the clients that the pool knows; none to serve all alike.

    Raises:
        InputError: a file can't be read, states no valid tokens, or a client that is known by a certificate.
    """
    found = settings.clients()
    for one in found:
        if one.certificate:
            raise InputError(
                f"{settings.tokens}: on Ray clients are known by tokens alone; got a certificate for "
                f"{one.name!r:.100}"
            )
    return found


@contextlib.contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Set an event on SIGTERM or SIGINT; a second signal raises KeyboardInterrupt.

    SIGHUP, by which other servers look again, does nothing: the door looks again all the time.
    """
    ended = threading.Event()

    def end(number: int, frame: Any) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    def go_on(number: int, frame: Any) -> None:
        """Do nothing; other than SIG_IGN, programs that this process starts don't inherit it."""

    handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: go_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Join a cluster, or start one.

    Raises:
        InputError: no cluster answers.
    """
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"{address} is an address for Ray clients, but the ingress has to be on a node of the "
            "cluster: run this there, with the address HOST:6379 or auto"
        )
    # A new cluster listens on the loopback only, since no other machine has to reach it.
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        _knock(address or "")
        ray.init(
            address=address or "local",
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else own),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"no Ray cluster answers at {address or 'this machine'}: {reason:.300}; start one with "
            "`ray start --head`, and run this on one of its nodes"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Check that an address accepts connections, since Ray itself would retry for minutes.

    Raises:
        OSError: the address doesn't accept connections.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


def _cpus(settings: ServerSettings) -> int:
    """Return the processors that a replica needs; its models share them."""
    found = (
        read(unpacked(model.path, model.settings.trusted), model.settings.trusted)
        for model in settings.models
    )
    return max(manifest.target.threads for manifest in found)


def _warn_of_room(
    ray: Any, settings: ServerSettings, replicas: int, say: Callable[[str], None]
) -> None:
    wanted, there = replicas * _cpus(settings), int(ray.cluster_resources().get("CPU", 0))
    if wanted > there:
        say(
            f"{replicas} replicas with {_cpus(settings)} processors each don't fit into the "
            f"cluster's {there}: waiting for more nodes"
        )


def _start_roster(ray: Any) -> Any:
    """Start the roster's actor on this node; it ends with this process.

    Raises:
        InputError: the cluster has a roster already.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, name=ROSTER)(Roster)
    try:
        return actor.options(scheduling_strategy=here).remote()
    except ValueError as error:
        raise InputError(
            f"the application {APPLICATION!r} is already served on this cluster: stop it first"
        ) from error


def _start_application(
    serve: Any, settings: ServerSettings, min_replicas: int, max_replicas: int
) -> None:
    """Deploy the application; returns before there are any replicas."""
    settings = settings.keeping_no_sequences()
    drain_s = settings.limits.drain_ns / 1e9
    environment = {**OFF, "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}
    deployment = serve.deployment(
        name="Replica",
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "upscale_delay_s": _UPSCALE_DELAY_S,
            "downscale_delay_s": _DOWNSCALE_DELAY_S,
            "look_back_period_s": _LOOK_BACK_S,
            "policy": {"policy_function": wanted_replicas},
        },
        ray_actor_options={
            "num_cpus": _cpus(settings),
            "runtime_env": {"env_vars": environment},
        },
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=drain_s + _GRACE_S,
        graceful_shutdown_wait_loop_s=0.1,
    )(Replica)
    # The ingress here handles TLS; requests to replicas inside the cluster aren't encrypted.
    hosts = (*settings.hosts, *settings.own_names())  # clients ask for the door's names
    alone = dataclasses.replace(settings, certificate=None, key=None, hosts=hosts, trusted=())
    record = to_record(alone)
    serve.start(proxy_location="Disabled")
    serve.run_many(
        [
            serve.RunTarget(
                deployment.bind(record, ROSTER, NAMESPACE, version("hasten")),
                name=APPLICATION,
                route_prefix=None,
            )
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _end_application(serve: Any) -> None:
    try:
        serve.delete(APPLICATION)
    except Exception as error:  # the cluster may be gone, and the application with it
        log.error("the application can't be stopped: %s", " ".join(str(error).split())[:300])


def _places(entries: dict[str, ReplicaEntry]) -> dict[str, tuple[str, int]]:
    return {name: (entry.host, entry.http) for name, entry in list(entries.items())}


def _say_where(settings: ServerSettings, ingress: Ingress, say: Callable[[str], None]) -> None:
    host = settings.host
    shown = f"[{host}]" if ":" in host else host
    if ingress.http is not None:
        say(f"listening on {'https' if settings.certificate else 'http'}://{shown}:{ingress.http}")
    if ingress.grpc is not None:
        say(f"listening on grpc://{shown}:{ingress.grpc}")
