"""A replica on a Ray cluster: the same server as anywhere, on a port of its own.

Importing this imports no Ray: who deploys it makes actors of these classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import hashlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from hasten.bundle import MANIFEST, read
from hasten.core.records import file_digest, from_record, to_record
from hasten.errors import HastenError, InputError
from hasten.serving.cluster.ingress import ReplicaEntry
from hasten.serving.settings import ServerSettings

_HEARTBEAT_S = 1.0
_FORGOTTEN_S = 15.0
"""A replica that said nothing for so long is gone."""
_LEAVE_S = 1.0
"""How long after it says goodbye a replica still takes what is on its way to it."""
_FULL = 0.8
"""The share of what it may have under way that a replica should have."""
_ILL_S = 60.0
"""A server that can't be mended in this time is replaced."""
_FAILED = "failed: "
_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h; see man 2 prctl."""


# -- what a replica needs, on whatever machine it runs


@dataclass(frozen=True)
class Parcel:
    """Files for a replica, in the cluster's object store.

    Attributes:
        name: Of the folder that they make up, after what is in it.
        files: Relative path -> a reference to its bytes.
    """

    name: str
    files: dict[str, Any]


def packed(settings: ServerSettings, put: Callable[[Any], Any]) -> list[Parcel]:
    """Put bundles, operator libraries and the token into the object store.

    Args:
        settings: Which.
        put: Takes bytes in and returns a reference to them.

    Returns:
        One parcel a bundle, in the settings' order; then one a library; then the token's.

    Raises:
        InputError: a file can't be read, or a bundle is damaged.
    """
    parcels = []
    for model in settings.models:
        names = [MANIFEST, *read(model.path).files]
        name = f"bundle-{file_digest(model.path / MANIFEST)[:32]}"
        parcels.append(Parcel(name, {each: put(_bytes(model.path / each)) for each in names}))
    for path in _libraries(settings):
        data = _bytes(path)
        name = f"operators-{hashlib.sha256(data).hexdigest()[:32]}"
        parcels.append(Parcel(name, {path.name: put(data)}))
    token = settings.token()
    if token is not None:
        # Not by its hash: a folder's name is for everybody to see.
        parcels.append(Parcel(f"token-{secrets.token_hex(16)}", {"token": put(token)}))
    return parcels


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def _libraries(settings: ServerSettings) -> list[Path]:
    return list(dict.fromkeys(each for one in settings.models for each in one.settings.custom_ops))


def unpacked(settings: ServerSettings, folders: list[Path]) -> ServerSettings:
    """Return settings with the paths of this machine, given each parcel's folder."""
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


def placed(root: Path, name: str, files: Mapping[str, Any]) -> Path:
    """Write a parcel's files, whole or not at all; replicas of one machine share them."""
    folder = root / name
    if all((folder / each).is_file() for each in files):
        return folder
    with tempfile.TemporaryDirectory(dir=root) as beside:
        for each, data in files.items():
            path = Path(beside) / "parcel" / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        # Another replica may have been faster, with the same files.
        with contextlib.suppress(OSError):
            (Path(beside) / "parcel").rename(folder)
    return folder


def private_root() -> Path:
    """Return a folder of this machine that is nobody else's.

    Raises:
        InputError: somebody else has it.
    """
    root = Path(tempfile.gettempdir()) / f"hasten-replicas-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(f"{root} isn't this user's alone: remove it")
    return root


# -- who knows where the replicas are


@dataclass(frozen=True)
class Book:
    """What the roster knows.

    Attributes:
        entries: The replicas that were heard of lately.
        failure: Why one couldn't serve, where none could since.
        stocked: Whether the parcels are in.
    """

    entries: dict[str, ReplicaEntry]
    failure: str
    stocked: bool


@dataclass
class Roster:
    """An actor that has the parcels, and knows where the replicas listen.

    It may be started anew: replicas say again and again where they are, and who deploys them puts
    the parcels in again.

    Attributes:
        clock_s: Monotonic clock, in seconds.
    """

    clock_s: Callable[[], float] = time.monotonic
    _parcels: list[Parcel] = field(default_factory=list)
    _entries: dict[str, tuple[ReplicaEntry, float]] = field(default_factory=dict)
    _failure: str = ""

    def put_in(self, parcels: list[Parcel]) -> None:
        """Keep what replicas need."""
        self._parcels = parcels

    def take_out(self) -> list[Parcel]:
        """Return what a replica needs; nothing where it wasn't put in since the start."""
        return self._parcels

    def enter(self, name: str, entry: ReplicaEntry) -> None:
        """Note that a replica is there, or is leaving."""
        self._entries[name] = entry, self.clock_s()
        self._failure = ""

    def leave(self, name: str) -> None:
        """Note that a replica is gone."""
        self._entries.pop(name, None)

    def fail(self, why: str) -> None:
        """Note why a replica can't serve."""
        self._failure = why

    def book(self) -> Book:
        """Return what it knows."""
        now_s = self.clock_s()
        self._entries = {
            name: (entry, heard_s)
            for name, (entry, heard_s) in self._entries.items()
            if now_s - heard_s < _FORGOTTEN_S
        }
        entries = {name: entry for name, (entry, _) in self._entries.items()}
        return Book(entries, self._failure, bool(self._parcels))


# -- how much a replica has to do


class ReplicaLoad:
    """How much a replica has to do, as its own statistics say.

    Args:
        targets: Model and version -> how many samples may be under way at once.
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
        """The load since this was asked last: 1 where as much was under way as may be.

        How many requests are under way in the mean is the time of all of them over the time that
        went by (Little's law); each counts as many samples as they have in the mean.

        Args:
            statistics: What `/v2/models/stats` answers.
        """
        load, now_ns = 0.0, self._clock_ns()
        for model in statistics["model_stats"]:
            key, answered = (model["name"], model["version"]), model["inference_stats"]["success"]
            before_ns, before_spent_ns = self._before.get(key, (0, 0))
            self._before[key] = now_ns, answered["ns"]
            # A process that was started anew counts from nothing.
            spent_ns = answered["ns"] - before_spent_ns
            if before_ns and now_ns > before_ns and spent_ns > 0:
                rows = model["inference_count"] / answered["count"]
                load += rows * spent_ns / (now_ns - before_ns) / self._targets.get(key, 2)
        return load


def target(config: Mapping[str, Any]) -> int:
    """How many samples of a model may be under way at once: its best batches, and one that waits.

    Args:
        config: What `/v2/models/NAME/config` answers.
    """
    sessions = sum(group["count"] for group in config["instance_group"])
    sizes = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
    return int(sessions * (max(sizes, default=1) + 1))


def wanted_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Ray Serve's autoscaling policy: as many replicas as keep each at 80 % of what it may have."""
    loads: Mapping[Any, float] = (context.aggregated_metrics or {}).get("load", {})
    return sum(loads.values()) / _FULL, {}


# -- the replica


class Replica:
    """A Ray Serve deployment: a server whose models are loaded and warm before it counts as ready.

    The server is a process of its own, with its own supervisor, so that nothing of Ray's is between
    a client and a model, and what an engine breaks is mended at once.

    Args:
        record: The server's settings.
        roster: Its name.
        namespace: The roster's.
        release: The version of hasten that is deployed.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, record: Any, roster: str, namespace: str, release: str
    ) -> None:
        self._roster_name, self._namespace = roster, namespace
        self._roster: Any = None
        self._heart: asyncio.Task[None] | None = None
        self._name = secrets.token_hex(8)
        try:
            if release != version("hasten"):
                raise InputError(
                    f"this node has hasten {version('hasten')}; deployed is {release}: install the "
                    "same on every node"
                )
            self._settings = await self._settled(from_record(ServerSettings, record))
            await self._start()
        except HastenError as error:
            await self._ask("fail", str(error))
            raise RuntimeError(str(error)) from error

    async def _settled(self, settings: ServerSettings) -> ServerSettings:
        """Get what is served, and make the settings this machine's."""
        root = private_root()
        folders = []
        parcels = await self._ask("take_out")
        if not parcels:
            raise RuntimeError("the roster was just started anew, and has no bundles yet")
        for parcel in parcels:
            names, references = list(parcel.files), list(parcel.files.values())
            files = dict(zip(names, await asyncio.gather(*references), strict=True))
            folders.append(await asyncio.to_thread(placed, root, parcel.name, files))
        return dataclasses.replace(
            unpacked(settings, folders), host=_own_address(), http=0, certificate=None, key=None
        )

    async def _start(self) -> None:
        """Serve, and wait until every model is loaded."""
        # From this thread, which lasts as long as the replica: its end ends the server, too.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hasten.serving.cluster.replica", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ray kills a worker's whole group with it: this one is to drain
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
        """Read what the server says until it is ready.

        Raises:
            InputError: it can't serve.
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
        raise InputError(f"the server ended with {self._process.wait()}; Ray's log says more")

    def _read_on(self) -> None:
        """A pipe that is full would stop it."""
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass

    async def _own(self, method: str, path: str) -> Any:
        """Ask the server."""
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

    # -- what it tells the roster

    async def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        if self._roster is None:
            self._roster = ray.get_actor(self._roster_name, self._namespace)
        return await getattr(self._roster, method).remote(*arguments)

    async def _beat(self) -> None:
        """Say again and again that it is there: the roster may have been started anew."""
        while self._process.poll() is None:
            await self._enter()
            await asyncio.sleep(_HEARTBEAT_S)

    async def _enter(self) -> None:
        import ray

        try:
            await self._ask("enter", self._name, self._entry)
        except (ray.exceptions.RayError, ValueError):  # who deployed it is gone, for now at least
            self._roster = None

    # -- what Ray Serve asks of it

    async def check_health(self) -> None:
        """Say that it is well.

        Raises:
            RuntimeError: the server has ended, or a model doesn't answer for long.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"the server ended with {self._process.returncode}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            await self._own("GET", "/v2/health/ready")
            self._ready_s = time.monotonic()
        if time.monotonic() - self._ready_s > _ILL_S:
            raise RuntimeError("a model doesn't answer")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How much it has to do; see `ReplicaLoad`."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return {"load": self._load.since_last(await self._own("GET", "/v2/models/stats"))}
        return {"load": 0.0}

    async def __del__(self) -> None:
        """Answer what is under way, and end."""
        import ray

        if self._heart is None:
            return
        self._heart.cancel()
        self._entry = dataclasses.replace(self._entry, leaving=True)
        await self._enter()
        await asyncio.sleep(_LEAVE_S)
        self._process.terminate()
        await asyncio.to_thread(self._process.wait)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            await self._ask("leave", self._name)


def _own_address() -> str:
    """The address by which the cluster's other nodes know this one."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(str(n["NodeManagerAddress"]) for n in ray.nodes() if n["NodeID"] == here)


def main() -> NoReturn:
    """Serve what standard input says, as long as the process of the given number lives."""
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
