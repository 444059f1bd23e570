"""Run a replica on a Ray cluster: an ordinary server on its own port, watched by a Ray actor.

Importing this module doesn't import Ray: `ray_cluster` makes actors of these classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import hashlib
import http.client
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from hasten.bundle import MANIFEST, SIGNATURE, read, unpacked
from hasten.core.processes import interpreter
from hasten.core.records import from_record, to_record
from hasten.errors import HastenError, InputError, named
from hasten.serving.cluster.ingress import ReplicaEntry
from hasten.serving.cluster.shelf import Shelf, private_root
from hasten.serving.settings import ServerSettings

log = logging.getLogger("hasten.serving")

_HEARTBEAT_S = 1.0
_FORGOTTEN_S = 15.0
"""Time without a heartbeat after which a replica counts as gone."""
_LEAVE_S = 1.0
"""Time for which a replica that has announced its end still takes requests on their way to it."""
_FULL = 0.8
"""Load to aim for, as a share of the samples that a replica may process at once."""
_ILL_S = 60.0
"""Time after which a server that doesn't answer is replaced."""
_FAILED = "failed: "
_CLIENTS = "clients.toml"
_PR_SET_PDEATHSIG = 1
"""Constant of linux/prctl.h; see man 2 prctl."""


# -- files that a replica needs on its machine


@dataclass(frozen=True)
class Parcel:
    """Files for a replica, in the cluster's object store.

    Attributes:
        name: Name of the folder that the files make up, derived from their contents.
        files: Relative path -> reference to the file's bytes.
    """

    name: str
    files: dict[str, Any]


def behind_door(settings: ServerSettings, folder: Path) -> ServerSettings:
    """Return the settings for replicas, which listen on their nodes' addresses and so always ask for a token.

    They take a secret of their own for all requests, by which the door asks them. Where clients need no
    token, the door sends it for them, too; else the replicas also know the clients.

    Args:
        settings: Settings of the pool.
        folder: Private folder for the secret.
    """
    file = folder / "secret"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(secrets.token_urlsafe(32))
    known = bool(settings.token_files())
    tokens = folder / _CLIENTS if known else None  # each replica writes a file of its own
    return dataclasses.replace(settings, token_file=file, tokens=tokens, behind_door=not known)


def packed(settings: ServerSettings, put: Callable[[Any], Any]) -> list[Parcel]:
    """Put bundles, operator libraries and the secret into the object store.

    Args:
        settings: Settings of the server, which name the files.
        put: Function that stores bytes and returns a reference to them.

    Returns:
        One parcel per bundle, in the settings' order; then one per library; then the secret's.

    Raises:
        InputError: a file can't be read, or a bundle is damaged or isn't trusted.
    """
    parcels = []
    for model in settings.models:
        trusted = model.settings.trusted
        place = unpacked(model.path, trusted)
        names = [MANIFEST, *read(place, trusted).files]
        if (place / SIGNATURE).is_file():
            names.insert(1, SIGNATURE)
        known = b"".join(_bytes(place / each) for each in names if each in (MANIFEST, SIGNATURE))
        name = f"bundle-{hashlib.sha256(known).hexdigest()[:32]}"
        parcels.append(Parcel(name, {each: put(_bytes(place / each)) for each in names}))
    for path in _libraries(settings):
        data = _bytes(path)
        name = f"operators-{hashlib.sha256(data).hexdigest()[:32]}"
        parcels.append(Parcel(name, {path.name: put(data)}))
    token = settings.token()
    if token is not None:
        # A random name, since a hash of the token would be visible to every user of the machine.
        parcels.append(Parcel(f"token-{secrets.token_hex(16)}", {"token": put(token)}))
    return parcels


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def _libraries(settings: ServerSettings) -> list[Path]:
    return list(dict.fromkeys(each for one in settings.models for each in one.settings.custom_ops))


def with_folders(settings: ServerSettings, folders: list[Path]) -> ServerSettings:
    """Return settings with this machine's paths, given the folder of each parcel in order."""
    count, libraries = len(settings.models), _libraries(settings)
    places = {
        old: folder / old.name
        for old, folder in zip(libraries, folders[count : count + len(libraries)], strict=True)
    }
    models = tuple(
        dataclasses.replace(
            model,
            path=folder,
            settings=dataclasses.replace(
                model.settings, custom_ops=tuple(places[each] for each in model.settings.custom_ops)
            ),
        )
        for model, folder in zip(settings.models, folders[:count], strict=True)
    )
    token = None if settings.token_file is None else folders[-1] / "token"
    return dataclasses.replace(settings, models=models, token_file=token)


# -- the roster of replicas


@dataclass(frozen=True)
class Book:
    """State of the roster.

    Attributes:
        entries: Name of each replica that sent a heartbeat recently -> entry.
        failure: Reason why a replica couldn't serve, if no replica has since; otherwise "".
        stocked: Whether the roster holds the parcels.
    """

    entries: dict[str, ReplicaEntry]
    failure: str
    stocked: bool


@dataclass
class Roster:
    """Actor that holds the parcels, and knows where the replicas listen.

    The roster may be restarted and lose its state: replicas repeat their entries in heartbeats, and
    the process that deployed them puts the parcels in again.

    Attributes:
        clock_s: Monotonic clock, in seconds.
    """

    clock_s: Callable[[], float] = time.monotonic
    _parcels: list[Parcel] = field(default_factory=list)
    _entries: dict[str, tuple[ReplicaEntry, float]] = field(default_factory=dict)
    _failure: str = ""
    _clients: str = ""

    def put_in(self, parcels: list[Parcel]) -> None:
        """Store the parcels that replicas need."""
        self._parcels = parcels

    def take_out(self) -> list[Parcel]:
        """Return the parcels that a replica needs; empty if none were put in since the start."""
        return self._parcels

    def admit(self, clients: str) -> None:
        """Store the clients that replicas know, as `read_clients` reads them; "" to serve all alike."""
        self._clients = clients

    def clients(self) -> str:
        """Return the clients; "" if none were told since the start."""
        return self._clients

    def enter(self, name: str, entry: ReplicaEntry) -> str:
        """Record that a replica is running, or is leaving; return the digest of the clients."""
        self._entries[name] = entry, self.clock_s()
        self._failure = ""
        return known_by(self._clients)

    def leave(self, name: str) -> None:
        """Record that a replica is gone."""
        self._entries.pop(name, None)

    def fail(self, why: str) -> None:
        """Record why a replica can't serve."""
        self._failure = why

    def book(self) -> Book:
        """Return the roster's state, without replicas whose heartbeats stopped."""
        now_s = self.clock_s()
        self._entries = {
            name: (entry, heard_s)
            for name, (entry, heard_s) in self._entries.items()
            if now_s - heard_s < _FORGOTTEN_S
        }
        entries = {name: entry for name, (entry, _) in self._entries.items()}
        return Book(entries, self._failure, bool(self._parcels))


def known_by(clients: str) -> str:
    """Return the digest by which a replica sees that clients have changed; "" for none."""
    return hashlib.sha256(clients.encode()).hexdigest() if clients else ""


# -- the load of a replica


class ReplicaLoad:
    """Load of a replica, calculated from its server's statistics.

    Args:
        targets: Model and version -> number of samples that may be in progress at once.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    def __init__(
        self,
        targets: Mapping[tuple[str, str], int],
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._targets, self._clock_ns = targets, clock_ns
        self._before: dict[tuple[str, str], tuple[int, int]] = {}

    def since_last(self, statistics: Mapping[str, Any]) -> float:
        """Return the load since the last call: 1 if as many samples were in progress as may be.

        The mean number of requests in progress is their total time divided by the elapsed time
        (Little's law); each counts as the mean number of samples per request.

        Args:
            statistics: Answer of `/v2/models/stats`.
        """
        load, now_ns = 0.0, self._clock_ns()
        for model in statistics["model_stats"]:
            key, answered = (model["name"], model["version"]), model["inference_stats"]["success"]
            before_ns, before_spent_ns = self._before.get(key, (0, 0))
            self._before[key] = now_ns, answered["ns"]
            # The counters of a restarted process begin at 0.
            spent_ns = answered["ns"] - before_spent_ns
            if before_ns and now_ns > before_ns and spent_ns > 0:
                rows = model["inference_count"] / answered["count"]
                load += rows * spent_ns / (now_ns - before_ns) / self._targets.get(key, 2)
        return load


def target(config: Mapping[str, Any]) -> int:
    """Return how many samples of a model may be in progress: per session, a best batch and one more.

    Args:
        config: Answer of `/v2/models/NAME/config`.
    """
    sessions = sum(group["count"] for group in config["instance_group"])
    sizes = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
    return int(sessions * (max(sizes, default=1) + 1))


def wanted_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Decide the number of replicas, as Ray Serve's autoscaling policy: aim for a load of 80 %."""
    loads: Mapping[Any, float] = (context.aggregated_metrics or {}).get("load", {})
    return sum(loads.values()) / _FULL, {}


# -- the replica


class Replica:
    """Ray Serve deployment of a server, ready once its models are loaded and warmed up.

    The server is a separate process with its own supervisor, so that no part of Ray is between a
    client and a model, and a crash of an engine is recovered at once.

    Args:
        record: Record of the server's settings.
        roster: Name of the roster's actor.
        namespace: Ray namespace of the roster.
        release: Version of hasten that is deployed.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, record: Any, roster: str, namespace: str, release: str
    ) -> None:
        self._roster_name, self._namespace = roster, namespace
        self._roster: Any = None
        self._heart: asyncio.Task[None] | None = None
        self._name, self._admitted, self._said = secrets.token_hex(8), "", ""
        try:
            if release != version("hasten"):
                raise InputError(
                    f"this node has hasten {version('hasten')}, but {release} is deployed: install the "
                    "same version on every node"
                )
            self._settings = await self._settled(from_record(ServerSettings, record))
            await self._start()
        except HastenError as error:
            await self._ask("fail", str(error))
            raise RuntimeError(str(error)) from error

    async def _settled(self, settings: ServerSettings) -> ServerSettings:
        """Write the parcels to this machine, and return the settings with its paths and address."""
        self._shelf = shelf = await asyncio.to_thread(lambda: Shelf(private_root()))
        folders = []
        parcels = await self._ask("take_out")
        if not parcels:
            raise RuntimeError("the roster was just restarted, and has no bundles yet")
        for parcel in parcels:
            names, references = list(parcel.files), list(parcel.files.values())
            files = dict(zip(names, await asyncio.gather(*references), strict=True))
            folders.append(await asyncio.to_thread(shelf.place, parcel.name, files))
        if settings.tokens is not None:
            folder = await asyncio.to_thread(shelf.place, f"clients-{self._name}", {})
            file = folder / _CLIENTS
            await self._admit(file)
            if not self._admitted:
                raise RuntimeError("the roster was just restarted, and knows no clients yet")
            settings = dataclasses.replace(settings, tokens=file)
        await asyncio.to_thread(shelf.tidy)
        return dataclasses.replace(
            with_folders(settings, folders), host=_own_address(), http=0, certificate=None, key=None
        )

    async def _admit(self, file: Path) -> None:
        """Write the clients that the door knows to this replica's file, which its server reads again."""
        clients = await self._ask("clients")
        if clients:  # a roster that was just restarted knows none yet
            await asyncio.to_thread(_write_private, file, clients)
            self._admitted = known_by(clients)

    async def _start(self) -> None:
        """Start the server, and wait until every model is loaded."""
        # The server dies with the thread that started it, and this one lasts as long as the replica.
        self._process = subprocess.Popen(
            [*interpreter(), "-m", "hasten.serving.cluster.replica", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ray kills a worker's whole process group, but the server must drain
            pass_fds=self._shelf.descriptors,  # and it keeps its files until then
        )
        self._entry = await asyncio.to_thread(self._until_ready)
        targets = {}
        for one in (await self._own("POST", "/v2/repository/index")) or []:
            name, number = one["name"], one["version"]
            path = f"/v2/models/{quote(name, safe='')}/versions/{number}/config"
            targets[name, number] = target(await self._own("GET", path))
        self._load = ReplicaLoad(targets)
        self._ready_s = time.monotonic()
        self._heart = asyncio.get_running_loop().create_task(self._beat())

    def _until_ready(self) -> ReplicaEntry:
        """Read the server's output until it is ready.

        Returns:
            The entry with its ports.

        Raises:
            InputError: the server can't serve.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin as pipe:
            json.dump(to_record(self._settings), pipe)
        ports: dict[str, int] = {}
        for line in self._process.stdout:
            said = line.strip()
            if said == "ready":
                threading.Thread(target=self._read_on, daemon=True).start()
                grpc = ports.get("grpc")
                return ReplicaEntry(self._settings.host, ports["http"], grpc, self._process.pid)
            if said.startswith("listening on "):
                scheme, _, place = said.removeprefix("listening on ").partition("://")
                ports[scheme] = int(place.rpartition(":")[2])
            elif said.startswith(_FAILED):
                raise InputError(said.removeprefix(_FAILED))
        raise InputError(f"the server exited with {self._process.wait()}; see Ray's log")

    def _read_on(self) -> None:
        """Discard the server's further output, since a full pipe would block the server."""
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass

    async def _own(self, method: str, path: str) -> Any:
        """Send a request to the replica's server; return its JSON."""
        return await asyncio.to_thread(self._asked, method, path)

    def _asked(self, method: str, path: str) -> Any:
        connection = http.client.HTTPConnection(self._entry.host, self._entry.http, timeout=5.0)
        token = self._settings.token()
        headers = {} if token is None else {"Authorization": f"Bearer {token.decode()}"}
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"{path} answers {answer.status}")
        return json.loads(text) if text else None

    # -- messages to the roster

    async def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        if self._roster is None:
            self._roster = ray.get_actor(self._roster_name, self._namespace)
        return await getattr(self._roster, method).remote(*arguments)

    async def _beat(self) -> None:
        """Send heartbeats to the roster, by which a restarted roster learns of this replica."""
        while self._process.poll() is None:
            await self._enter()
            await asyncio.sleep(_HEARTBEAT_S)

    async def _enter(self) -> None:
        """Send a heartbeat; whatever fails, the next one tries again."""
        import ray

        try:
            known = await self._ask("enter", self._name, self._entry)
            if self._settings.tokens is not None and known not in ("", self._admitted):
                await self._admit(self._settings.tokens)
        except (ray.exceptions.RayError, ValueError):  # the deploying process may be gone
            self._roster = None
        except OSError as error:
            self._say_once(f"the previous tokens stay in use: can't write them: {error}")
        except Exception as error:
            self._roster = None
            self._say_once(f"a heartbeat failed: {named(error)}")
        else:
            self._said = ""

    def _say_once(self, text: str) -> None:
        """Log what keeps heartbeats from succeeding, once until one does."""
        if text != self._said:
            self._said = text
            log.error("%s", text, exc_info=True)

    # -- the interface to Ray Serve

    async def check_health(self) -> None:
        """Check that the replica is healthy.

        Raises:
            RuntimeError: the server has ended, or hasn't answered for a long time.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"the server exited with {self._process.returncode}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            await self._own("GET", "/v2/health/ready")
            self._ready_s = time.monotonic()
        if time.monotonic() - self._ready_s > _ILL_S:
            raise RuntimeError("a model doesn't answer")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the replica's load; see `ReplicaLoad`."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return {"load": self._load.since_last(await self._own("GET", "/v2/models/stats"))}
        return {"load": 0.0}

    async def __del__(self) -> None:
        """Answer running requests, and end the server."""
        import ray

        if self._heart is None:
            return
        self._heart.cancel()
        self._entry = dataclasses.replace(self._entry, leaving=True)
        try:
            await self._enter()
            await asyncio.sleep(_LEAVE_S)
        finally:
            self._process.terminate()
        await asyncio.to_thread(self._process.wait)
        if self._settings.tokens is not None:
            shutil.rmtree(self._settings.tokens.parent, ignore_errors=True)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            await self._ask("leave", self._name)


def _write_private(file: Path, text: str) -> None:
    """Write a file beside and rename it, so that nobody reads half of it."""
    beside = file.with_name(f"{file.name}.new")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)
    beside.rename(file)


def _own_address() -> str:
    """Return the address by which the cluster's other nodes reach this one."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(str(n["NodeManagerAddress"]) for n in ray.nodes() if n["NodeID"] == here)


def main() -> NoReturn:
    """Serve with the settings on standard input until the parent process, named by its id, ends."""
    from hasten.serving.logs import log_to_stderr
    from hasten.serving.supervision.supervisor import Supervisor

    settings = from_record(ServerSettings, json.load(sys.stdin))
    log_to_stderr(as_json=settings.json_logs)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        raise SystemExit(1)

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    try:
        code = Supervisor(settings, say).run()
    except HastenError as error:
        say(f"{_FAILED}{error}")
        code = 2
    raise SystemExit(code)


if __name__ == "__main__":
    main()
