"""Answer all gRPC methods except inference: health, metadata, statistics, repository, memory, logs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from hasten.serving import facts, logs
from hasten.serving.http.routes import (
    NO_CUDA,
    change_logs,
    change_models,
    check_trace,
    no_cuda_region,
)
from hasten.serving.protocol import messages
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.rights import Scope
from hasten.serving.state import ServerState

Content: TypeAlias = dict[str, Any]
"""Content of a message, in the form of protobuf's JSON."""


SCOPES: Mapping[str, Scope] = {
    "ServerLive": Scope.READ,
    "ServerReady": Scope.READ,
    "ModelReady": Scope.READ,
    "ServerMetadata": Scope.READ,
    "ModelMetadata": Scope.READ,
    "ModelConfig": Scope.READ,
    "ModelStatistics": Scope.READ,
    "RepositoryIndex": Scope.READ,
    "SystemSharedMemoryStatus": Scope.READ,
    "CudaSharedMemoryStatus": Scope.READ,
    "ModelInfer": Scope.INFER,
    "ModelStreamInfer": Scope.INFER,
    "RepositoryModelLoad": Scope.CONTROL,
    "RepositoryModelUnload": Scope.CONTROL,
    "SystemSharedMemoryRegister": Scope.CONTROL,
    "SystemSharedMemoryUnregister": Scope.CONTROL,
    "CudaSharedMemoryRegister": Scope.CONTROL,
    "CudaSharedMemoryUnregister": Scope.CONTROL,
    "TraceSetting": Scope.CONTROL,
    "LogSettings": Scope.CONTROL,
}
"""Scope that a client needs for each method; those that read settings change them, too."""


class Methods:
    """Methods of one server; each takes a request's message and returns the answer's content.

    Args:
        state: State of the server.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._table: Mapping[str, Callable[[Any], Content | Coroutine[Any, Any, Content]]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "SystemSharedMemoryStatus": self._regions,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": self._no_cuda_regions,
            "CudaSharedMemoryRegister": self._no_cuda,
            "CudaSharedMemoryUnregister": self._nothing,
            "TraceSetting": self._trace,
            "LogSettings": self._logging,
        }

    async def answer(self, name: str, request: Any) -> Any:
        """Answer a request.

        Args:
            name: Name of the method.
            request: Message of the request.

        Returns:
            The answer's message.

        Raises:
            ProtocolError: the request gets this error.
        """
        from google.protobuf.json_format import ParseDict

        content = self._table[name](request)
        if isinstance(content, Coroutine):
            content = await content
        return ParseDict(content, messages.message(messages.METHODS[name].response)())

    # -- health and metadata

    def _live(self, request: Any) -> Content:
        return {"live": True}

    def _ready(self, request: Any) -> Content:
        return {"ready": self._state.ready}

    def _model_ready(self, request: Any) -> Content:
        return {"ready": facts.is_ready(self._state.repository, request.name, request.version)}

    def _server(self, request: Any) -> Content:
        return facts.server_metadata()

    def _metadata(self, request: Any) -> Content:
        repository, version = self._state.repository, request.version
        model = repository.find(request.name, version)
        versions = [version] if version else repository.versions(request.name)
        return facts.model_metadata(model, versions)

    def _config(self, request: Any) -> Content:
        model = self._state.repository.find(request.name, request.version)
        return {"config": facts.model_config(model)}

    def _statistics(self, request: Any) -> Content:
        repository = self._state.repository
        return facts.model_statistics(facts.found(repository, request.name, request.version))

    # -- the repository

    def _index(self, request: Any) -> Content:
        _check_repository(request)
        return {"models": facts.repository_index(self._state.repository, ready=request.ready)}

    def _load(self, request: Any) -> Coroutine[Any, Any, Content]:
        return self._change(request, load=True)

    def _unload(self, request: Any) -> Coroutine[Any, Any, Content]:
        return self._change(request, load=False)

    async def _change(self, request: Any, *, load: bool) -> Content:
        self._state.check_control("load and unload models")
        _check_repository(request)
        await change_models(
            self._state, request.model_name, _choices(request.parameters), load=load
        )
        return {}

    # -- shared memory

    def _regions(self, request: Any) -> Content:
        return {
            "regions": {
                one.name: {
                    "name": one.name,
                    "key": one.key,
                    "offset": one.offset,
                    "byte_size": one.size_bytes,
                }
                for one in self._state.memory.status(request.name)
            }
        }

    def _register(self, request: Any) -> Content:
        self._state.memory.register(request.name, request.key, request.offset, request.byte_size)
        return {}

    def _unregister(self, request: Any) -> Content:
        self._state.memory.unregister(request.name)
        return {}

    def _no_cuda_regions(self, request: Any) -> Content:
        if request.name:
            raise no_cuda_region(request.name)
        return {}

    def _no_cuda(self, request: Any) -> Content:
        raise ProtocolError(Kind.INVALID, NO_CUDA)

    def _nothing(self, request: Any) -> Content:
        return {}

    # -- tracing and logging

    def _trace(self, request: Any) -> Content:
        if request.model_name:
            self._state.repository.find(request.model_name)
        now = facts.trace_settings(self._state.tracing)
        check_trace(now, {name: _given(now.get(name), s) for name, s in request.settings.items()})
        return {
            "settings": {
                name: {"value": value if isinstance(value, list) else [value]}
                for name, value in now.items()
            }
        }

    def _logging(self, request: Any) -> Content:
        if request.settings:
            change_logs(self._state, _choices(request.settings))
        return {"settings": {name: _said(value) for name, value in logs.settings().items()}}


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise ProtocolError(
            Kind.INVALID,
            f"this server has one repository, without a name; got {request.repository_name!r:.100}",
        )


def _choices(given: Any) -> Content:
    """Return the value that is set in each parameter of a map; None if none is."""
    chosen = {name: each.WhichOneof("parameter_choice") for name, each in given.items()}
    return {name: getattr(given[name], one) if one else None for name, one in chosen.items()}


def _given(now: Any, setting: Any) -> Any:
    """Return a trace setting in the form of HTTP: a text, a list, or None for the server's default."""
    values = list(setting.value)
    if len(values) == 1 and not isinstance(now, list):
        return values[0]
    return values or None


def _said(value: bool | int | str) -> Content:
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    return {kinds[type(value)]: value}
