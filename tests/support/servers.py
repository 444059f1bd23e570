"""Servers for tests: in a thread of this process, or as a person starts one; and bundles to serve."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from tests.support.bundles import built, stated

from hasten.bundle import write
from hasten.core.sequences import Sequences
from hasten.core.target import Target
from hasten.core.tensors import Tensors
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.models.embedding import lookups_of
from hasten.inputs.models.onnx import load, read
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.closed_loop import Block
from hasten.measure.curve import CURVE, CurvePoint, curve_record
from hasten.serving.models.opening import ModelSettings
from hasten.serving.server import Server
from hasten.serving.settings import ModelPlace, ServerSettings

T = TypeVar("T")
_PATIENCE_S = 180.0
ONE_THREAD = OnnxRuntime(threads=1, spinning=False)


def bundle_of(
    folder: Path,
    model: Path,
    name: str = "",
    *,
    engine: Engine = ONE_THREAD,
    exact: Path | None = None,
    keep_exact: bool = True,
    extra: Mapping[str, Any] = {},
    requests: Sequence[Tensors] = (),
    pipeline: Pipeline | None = None,
    sequences: Sequences | None = None,
    lengths: Mapping[int | str, int] = {},
) -> Path:
    """Write a bundle of an .onnx file whose first open dimension is the batch, with its tables as a run states them.

    Args:
        folder: Folder to write the bundle into; a bundle of its name there is replaced.
        model: File of the winner.
        name: Name of the bundle's folder without ".hasten"; by default the model's.
        engine: Engine that runs the model.
        exact: File of the exact model; by default the winner's.
        keep_exact: Whether the bundle holds the exact model.
        extra: Evidence, by file name.
        requests: Requests that the bundle keeps for warm-up.
        pipeline: Steps before and after the model.
        sequences: States that the model carries.
        lengths: Sizes that further open dimensions have in the data, by their names.
    """
    path = folder / f"{name or model.stem}.hasten"
    place = folder / f"building-{os.urandom(4).hex()}"
    for part in ("winner", "exact"):
        (place / part).mkdir(parents=True)
    winner = built(place / "winner", model, engine, lengths)
    other = winner if exact is None else built(place / "exact", exact, ONE_THREAD, lengths)
    status = "exact" if exact is None else "certified"
    stating = stated(
        winner,
        other if keep_exact else None,
        status=status,
        pipeline=pipeline,
        sequences=sequences,
        lookups=lookups_of(read(model), load(model).inputs),
    )
    write(path, stating, extra, requests=requests)
    return path


def with_curve(p50_ms: Mapping[int, float]) -> dict[str, Any]:
    """Return evidence of what batches took where a bundle was made: rows -> milliseconds."""
    points = [
        CurvePoint(batch, Target.host().threads, 1, {turn: _block(ms) for turn in range(3)})
        for batch, ms in p50_ms.items()
    ]
    return {CURVE: curve_record(points)}


def _block(ms: float) -> Block:
    return Block((round(ms * 1e6),) * 5, round(5 * ms * 1e6))


def place_of(path: Path, name: str = "", version: str = "1", **settings: Any) -> ModelPlace:
    """Say how a bundle is served: under its folder's name by default."""
    return ModelPlace(
        name or path.name.removesuffix(".hasten"), version, path, ModelSettings(**settings)
    )


class ServerThread:
    """A real server with an event loop and a thread of its own, on ports that are free.

    Args:
        models: Bundles by the names under which they are served.
        grpc: Whether it speaks gRPC, too.
        loaded: Whether it is entered once its models are loaded, not when it can be asked.
        settings: Further fields of `ServerSettings`.

    Attributes:
        server: The server; only its loop's thread may touch it.
        http_port: Port of HTTP.
        grpc_port: Port of gRPC; 0 without one.
    """

    def __init__(
        self, *models: ModelPlace, grpc: bool = False, loaded: bool = True, **settings: Any
    ) -> None:
        self._loaded = loaded
        settings = {"hosts": ("here",), **settings}  # the name that tests ask for
        self._settings = ServerSettings(models, http=0, grpc=0 if grpc else None, **settings)
        self.server: Server
        self.http_port = self.grpc_port = 0
        self._loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._end: asyncio.Event
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test-server", daemon=True)

    @classmethod
    def of(cls, settings: ServerSettings) -> Self:
        """Return a server with settings as `settings_of` makes them, but for its ports."""
        made = cls()
        grpc = None if settings.grpc is None else 0
        made._settings = dataclasses.replace(settings, http=0, grpc=grpc)
        return made

    @property
    def host(self) -> str:
        """Host and port of HTTP."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def http_url(self) -> str:
        """Where it speaks HTTP."""
        scheme = "https" if self._settings.certificate else "http"
        return f"{scheme}://{self.host}"

    @property
    def grpc_url(self) -> str:
        """Host and port of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def _run(self) -> None:
        import uvloop

        interval_s = sys.getswitchinterval()
        try:
            uvloop.run(self._work())
        except BaseException as error:
            self._error = error
        finally:
            sys.setswitchinterval(interval_s)
            self._ready.set()

    async def _work(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.server = Server(self._settings)
        try:
            self.http_port = await self.server.listen("127.0.0.1", 0)
            if self._settings.grpc is not None:
                self.grpc_port = await self.server.listen_grpc("127.0.0.1", 0)
            if not self._loaded:
                self._ready.set()
            await self.server.load()
            self._ready.set()
            await self._end.wait()
        finally:
            await self.server.close()

    @overload
    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T: ...

    @overload
    def call(self, function: Callable[[], T]) -> T: ...

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function on the server's thread; what it returns, awaited where it must be."""

        async def called() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(_PATIENCE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_PATIENCE_S):
            raise TimeoutError("the server didn't start")
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(_PATIENCE_S)
        if self._error is not None:
            raise self._error


class ServerProcess:
    """`hasten serve`, as a person starts it.

    Args:
        arguments: Arguments after `hasten serve`.
        http: Port of HTTP; 0 for a free one.
        env: Variables of its environment, besides this process's.
        code: Python that runs `hasten` with the arguments that it is given.

    Attributes:
        process: Process of the supervisor.
        lines: Lines that the server printed.
        http_port: Port of HTTP.
        grpc_port: Port of gRPC; 0 without one.
    """

    def __init__(
        self,
        *arguments: str | Path,
        http: int = 0,
        env: Mapping[str, str] = {},
        code: str = "from hasten.cli import main; main()",
    ) -> None:
        command = [
            *(sys.executable, "-c", code),
            *("serve", *map(str, arguments), "--http", str(http)),
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self.lines: list[str] = []
        self.http_port = self.grpc_port = 0
        self._ready = threading.Event()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"listening on https?://.*:(\d+)", line):
                self.http_port = int(found[1])
            elif found := re.search(r"listening on grpc://.*:(\d+)", line):
                self.grpc_port = int(found[1])
            elif line.strip() == "ready":
                self._ready.set()
        self._ready.set()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return "".join(self._errors)

    @property
    def host(self) -> str:
        """Host and port of HTTP."""
        return f"127.0.0.1:{self.http_port}"

    def serving_pid(self) -> int:
        """The process that serves."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def memory_mib(self, what: str) -> int:
        """Memory of the process that serves, by its name in Linux: VmRSS for that of now, VmHWM for the most so far."""
        lines = Path(f"/proc/{self.serving_pid()}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)[what]
        return int(found.removesuffix("kB")) // 1024

    def end(self, how: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        code = self.process.wait(_PATIENCE_S)
        for reader in self._readers:
            reader.join(_PATIENCE_S)
        return code

    def __enter__(self) -> Self:
        if not self._ready.wait(_PATIENCE_S) or "ready" not in self.lines:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)  # if it is ending by itself, with its own exit code
            self.end(signal.SIGKILL)
            self.__exit__()
            raise RuntimeError(f"the server didn't start: {self.errors}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def changed(place: ModelPlace, **settings: Any) -> ModelPlace:
    """Return a place with other settings."""
    return dataclasses.replace(place, settings=dataclasses.replace(place.settings, **settings))


__all__: Sequence[str] = (
    "ONE_THREAD",
    "ServerProcess",
    "ServerThread",
    "bundle_of",
    "changed",
    "place_of",
    "with_curve",
)
