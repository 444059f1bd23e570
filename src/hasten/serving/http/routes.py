"""Answer all HTTP paths except inference: health, metadata, statistics, repository, metrics, page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

import orjson

from hasten.core.words import short
from hasten.errors import HastenError
from hasten.serving import facts, logs
from hasten.serving.http import page
from hasten.serving.http.messages import PlainRequest, Response
from hasten.serving.models.repository import Registered
from hasten.serving.observation.scrapes import Scrapes
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.rights import Scope
from hasten.serving.state import ServerState

_OBJECT_BYTES = 64 << 10
"""Largest JSON of an order, which is parsed while nobody is answered."""
INFER, READ, CONTROL = Scope.INFER, Scope.READ, Scope.CONTROL
Handler: TypeAlias = "Callable[..., Response | Coroutine[Any, Any, Response]]"


class Route(NamedTuple):
    """Path that a server answers.

    Attributes:
        path: Parts of the path; "{name}" stands for any part, which the handler gets as `name`.
        scope: Scope that a client needs.
        handler: Function that answers.
    """

    path: tuple[str, ...]
    scope: Scope
    handler: Handler


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, orjson.dumps(value))


class Routes:
    """Handlers of all paths of one server except inference.

    Args:
        state: State of the server.
    """

    def __init__(self, state: ServerState) -> None:
        self._state, self._scrapes, self._figures = state, Scrapes(state), page.KeptFigures(state)
        model = "v2/models/{name}"
        version = "v2/models/{name}/versions/{version}"
        region = "/region/{region}"
        self._tables: dict[str, list[Route]] = {"GET": [], "POST": []}
        for method, path, scope, handler in (
            ("GET", "", READ, self._page),
            ("GET", "live.json", READ, self._live_page),
            ("GET", "metrics", READ, self._metrics),
            ("GET", "openapi.json", READ, self._openapi),
            ("GET", "v2", READ, self._server),
            ("GET", "v2/health/live", READ, self._alive),
            ("GET", "v2/health/ready", READ, self._ready),
            ("GET", "v2/models/stats", READ, self._statistics),  # precedes a model named "stats"
            ("GET", model, READ, self._metadata),
            ("GET", version, READ, self._metadata),
            ("GET", f"{model}/ready", READ, self._model_ready),
            ("GET", f"{version}/ready", READ, self._model_ready),
            ("GET", f"{model}/config", READ, self._config),
            ("GET", f"{version}/config", READ, self._config),
            ("GET", f"{model}/stats", READ, self._statistics),
            ("GET", f"{version}/stats", READ, self._statistics),
            ("GET", f"{model}/monitor", READ, self._monitor),
            ("GET", f"{version}/monitor", READ, self._monitor),
            ("POST", f"{version}/monitor", CONTROL, self._order),
            ("POST", f"{model}/labels", INFER, self._labels),
            ("POST", f"{version}/labels", INFER, self._labels),
            ("GET", "v2/trace/setting", READ, self._trace),
            ("POST", "v2/trace/setting", CONTROL, self._set_trace),
            ("GET", f"{model}/trace/setting", READ, self._trace),
            ("POST", f"{model}/trace/setting", CONTROL, self._set_trace),
            ("GET", "v2/logging", READ, self._logging),
            ("POST", "v2/logging", CONTROL, self._set_logging),
            ("POST", "v2/repository/index", READ, self._index),
            ("POST", "v2/repository/models/{name}/load", CONTROL, self._load),
            ("POST", "v2/repository/models/{name}/unload", CONTROL, self._unload),
            ("GET", "v2/systemsharedmemory/status", READ, self._regions),
            ("GET", f"v2/systemsharedmemory{region}/status", READ, self._regions),
            ("POST", f"v2/systemsharedmemory{region}/register", CONTROL, self._register),
            ("POST", "v2/systemsharedmemory/unregister", CONTROL, self._unregister),
            ("POST", f"v2/systemsharedmemory{region}/unregister", CONTROL, self._unregister),
            ("GET", "v2/cudasharedmemory/status", READ, self._no_cuda_regions),
            ("GET", f"v2/cudasharedmemory{region}/status", READ, self._no_cuda_region),
            ("POST", f"v2/cudasharedmemory{region}/register", CONTROL, self._no_cuda),
            ("POST", "v2/cudasharedmemory/unregister", CONTROL, self._no_cuda_regions),
            ("POST", f"v2/cudasharedmemory{region}/unregister", CONTROL, self._no_cuda_region),
        ):
            parts = tuple(part for part in path.split("/") if part)
            self._tables[method].append(Route(parts, scope, handler))

    def close(self) -> None:
        """End what answers are made with."""
        self._scrapes.close()

    def scope(self, method: str, path: tuple[str, ...]) -> Scope | None:
        """Return the scope of a request; None if there is no such path, or it takes other methods."""
        found = _match(self._tables.get(method, ()), path)
        return None if found is None else found[0].scope

    def handle(self, request: PlainRequest) -> Response | Coroutine[Any, Any, Response]:
        """Answer a request, at once or by a coroutine; a wrong method is answered with 405.

        Raises:
            ProtocolError: there is no such path, or its handler refuses the request.
        """
        allowed = []
        for method, table in self._tables.items():
            found = _match(table, request.path)
            if found is None:
                continue
            if method == request.method:
                route, given = found
                return route.handler(request, **given)
            allowed.append(method)
        path = "/".join(request.path)
        if _is_inference(request.path):
            allowed.append("POST")
        if allowed:
            failure = ProtocolError(
                Kind.NO_METHOD,
                f"/{path:.200} takes {' or '.join(allowed)}; got {request.method:.20}",
            )
            return Response(
                failure.kind.http,
                orjson.dumps({"error": str(failure)}),
                headers=[(b"Allow", ", ".join(allowed).encode())],
            )
        raise ProtocolError(Kind.NOT_FOUND, f"there is nothing at /{path:.200}")

    # -- health and metadata

    def _server(self, request: PlainRequest) -> Response:
        return _json(facts.server_metadata())

    def _alive(self, request: PlainRequest) -> Response:
        return Response(200)

    def _ready(self, request: PlainRequest) -> Response:
        if self._state.ready:
            return Response(200)
        why = "the server is draining" if self._state.draining else "models are still loading"
        return _json({"error": why}, 503)

    def _metadata(self, request: PlainRequest, name: str, version: str = "") -> Response:
        repository = self._state.repository
        model = repository.find(name, version)
        versions = [version] if version else repository.versions(name)
        return _json(facts.model_metadata(model, versions))

    def _model_ready(self, request: PlainRequest, name: str, version: str = "") -> Response:
        self._state.repository.find(name, version)
        return Response(200)

    def _config(self, request: PlainRequest, name: str, version: str = "") -> Response:
        return _json(facts.model_config(self._state.repository.find(name, version)))

    def _statistics(self, request: PlainRequest, name: str = "", version: str = "") -> Response:
        return _json(facts.model_statistics(facts.found(self._state.repository, name, version)))

    # -- the monitor

    def _monitor(self, request: PlainRequest, name: str, version: str = "") -> Response:
        return _json(facts.monitor(self._state.repository.find(name, version)))

    async def _order(self, request: PlainRequest, name: str, version: str) -> Response:
        repository, body = self._state.repository, _object(request.body)
        watch, secret = facts.watch_of(repository.find(name, version)), body.get("secret")
        if not isinstance(secret, str) or not watch.is_door(secret):
            raise ProtocolError(
                Kind.FORBIDDEN, "only the process in front of several servers may do that"
            )
        if body.get("exact") is False:
            repository.load_in_background(name, version)
        else:
            await asyncio.to_thread(watch.take_over)
        return _json(watch.facts())

    async def _labels(self, request: PlainRequest, name: str, version: str = "") -> Response:
        watch = facts.watch_of(self._state.repository.find(name, version))
        if watch.labels is None:
            raise ProtocolError(
                Kind.INVALID,
                f"labels have no use for {name!r}: its certificate is about changed answers",
            )
        # On a thread: they are scored, and the evidence is written to a file.
        line, size = self._state.labelling, len(request.body)
        return _json(await line.work(request.client, size, watch.label, request.name, request.body))

    # -- tracing and logging

    def _trace(self, request: PlainRequest, name: str = "") -> Response:
        if name:
            self._state.repository.find(name)
        return _json(facts.trace_settings(self._state.tracing))

    def _set_trace(self, request: PlainRequest, name: str = "") -> Response:
        if name:
            self._state.repository.find(name)
        now = facts.trace_settings(self._state.tracing)
        check_trace(now, _object(request.body))
        return _json(now)

    def _logging(self, request: PlainRequest) -> Response:
        return _json(logs.settings())

    def _set_logging(self, request: PlainRequest) -> Response:
        change_logs(self._state, _object(request.body))
        return _json(logs.settings())

    # -- the repository

    def _index(self, request: PlainRequest) -> Response:
        wanted = _object(request.body) if request.body.strip() else {}
        ready = wanted.get("ready", False)
        if type(ready) is not bool:
            raise ProtocolError(Kind.INVALID, f"ready must be true or false; got {short(ready)}")
        return _json(facts.repository_index(self._state.repository, ready=ready))

    def _load(self, request: PlainRequest, name: str) -> Coroutine[Any, Any, Response]:
        return self._change(request, name, load=True)

    def _unload(self, request: PlainRequest, name: str) -> Coroutine[Any, Any, Response]:
        return self._change(request, name, load=False)

    async def _change(self, request: PlainRequest, name: str, *, load: bool) -> Response:
        self._state.check_control("load and unload models")
        wanted = _object(request.body) if request.body.strip() else {}
        parameters = wanted.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ProtocolError(Kind.INVALID, "parameters must be a JSON object")
        await change_models(self._state, name, parameters, load=load)
        return Response(200)

    # -- shared memory

    def _regions(self, request: PlainRequest, region: str = "") -> Response:
        return _json(
            [
                {
                    "name": one.name,
                    "key": one.key,
                    "offset": one.offset,
                    "byte_size": one.size_bytes,
                }
                for one in self._state.memory.status(region)
            ]
        )

    def _register(self, request: PlainRequest, region: str) -> Response:
        wanted = _object(request.body)
        key, offset, size = (
            wanted.get(n, d) for n, d in (("key", ""), ("offset", 0), ("byte_size", 0))
        )
        if type(key) is not str or type(offset) is not int or type(size) is not int:
            raise ProtocolError(
                Kind.INVALID,
                "a region needs a key (text), an offset and a byte_size (whole numbers)",
            )
        self._state.memory.register(region, key, offset, size)
        return Response(200)

    def _unregister(self, request: PlainRequest, region: str = "") -> Response:
        self._state.memory.unregister(region)
        return Response(200)

    def _no_cuda_regions(self, request: PlainRequest) -> Response:
        return _json([]) if request.method == "GET" else Response(200)

    def _no_cuda_region(self, request: PlainRequest, region: str) -> Response:
        if request.method == "POST":
            return Response(200)
        raise no_cuda_region(region)

    def _no_cuda(self, request: PlainRequest, region: str) -> Response:
        raise ProtocolError(Kind.INVALID, NO_CUDA)

    # -- for people and their monitoring

    async def _metrics(self, request: PlainRequest) -> Response:
        accepted = request.headers.get(b"accept", b"").decode("latin-1")
        body, content_type = await self._scrapes.text(accepted)
        return Response(200, body, content_type.encode())

    def _openapi(self, request: PlainRequest) -> Response:
        return Response(200, files("hasten.serving.protocol").joinpath("openapi.json").read_bytes())

    def _page(self, request: PlainRequest) -> Response:
        return Response(200, page.PAGE, b"text/html; charset=utf-8", page.HEADERS)

    def _live_page(self, request: PlainRequest) -> Response:
        return Response(200, self._figures.text())


NO_CUDA = "this server has no CUDA shared memory: send tensors, or use system shared memory"


def _match(table: Sequence[Route], path: tuple[str, ...]) -> tuple[Route, dict[str, str]] | None:
    for route in table:
        if len(route.path) != len(path):
            continue
        given = {}
        for part, want in zip(path, route.path, strict=True):
            if want[0] == "{":
                given[want[1:-1]] = part
            elif part != want:
                break
        else:
            return route, given
    return None


def _is_inference(path: tuple[str, ...]) -> bool:
    return path[:2] == ("v2", "models") and path[-1:] == ("infer",) and len(path) in (4, 6)


def _object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ProtocolError: the body is something else, or too long.
    """
    if len(body) > _OBJECT_BYTES:  # before memory is taken for each of its elements
        raise ProtocolError(
            Kind.TOO_LARGE,
            f"a request that isn't an inference has at most {_OBJECT_BYTES:,} bytes of JSON; got "
            f"{len(body):,}: send several requests",
        )
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(Kind.INVALID, f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(Kind.INVALID, "the request is not a JSON object")
    return value


def no_cuda_region(name: str) -> ProtocolError:
    """Return the error for a request about a CUDA region, of which there are none."""
    return ProtocolError(Kind.INVALID, f"no CUDA shared memory region {name!r:.100} is registered")


def check_trace(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that wanted trace settings equal the current ones; for both HTTP and gRPC.

    Raises:
        ProtocolError: there is no such setting, or clients may not change it.
    """
    for setting, value in wanted.items():
        if setting not in now:
            raise ProtocolError(
                Kind.INVALID, f"there is no setting {setting!r:.40}; there are {', '.join(now)}"
            )
        if value is not None and value != now[setting]:
            raise ProtocolError(
                Kind.FORBIDDEN, "tracing can only be set when the server is started: --trace"
            )


def change_logs(state: ServerState, wanted: dict[str, Any]) -> None:
    """Change the log settings; for both HTTP and gRPC.

    Raises:
        ProtocolError: clients may not change them, or a setting is invalid.
    """
    state.check_control("change the log settings")
    if wrong := logs.change(wanted):
        raise ProtocolError(Kind.INVALID, wrong)


async def change_models(
    state: ServerState, name: str, parameters: dict[str, Any], *, load: bool
) -> None:
    """Load or unload every version of a registered model; for both HTTP and gRPC.

    Raises:
        ProtocolError: the model isn't registered, parameters are given, or loading failed.
    """
    versions: list[Registered] = state.repository.registered(name)
    if load and parameters:
        raise ProtocolError(
            Kind.INVALID,
            "a registered bundle is loaded without parameters; got "
            f"{', '.join(parameters):.200}: leave them out",
        )
    for one in versions:
        work = state.repository.load(one) if load else state.repository.unload(one)
        try:
            await asyncio.shield(work)  # the work goes on even if the client goes away
        except ProtocolError:
            raise
        except HastenError as error:
            raise ProtocolError(Kind.INVALID, f"can't load {name!r}: {error}") from error
