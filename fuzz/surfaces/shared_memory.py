"""Shared memory over HTTP: objects are registered, read, written and forgotten, several requests at once."""

from __future__ import annotations

import json
from typing import Any

from fuzz.served import REGIONS
from fuzz.surfaces.http import Http, asking, request, tensor

_PATH = "v2/systemsharedmemory"
_FORGET = request(f"{_PATH}/unregister", method="POST")


class SharedRegions(Http):
    """Requests one after another that register a region and use it; none is registered before."""

    name = "shared_memory"

    def seeds(self) -> list[bytes]:
        plain = request("v2/models/tiny/infer", _json(asking(_region("x", 0))))
        written = {"outputs": [{"name": "y", "parameters": _place(256)}]}
        both = request("v2/models/tiny/infer", _json(asking(_region("x", 16), **written)))
        two = asking(
            {"name": "features", "datatype": "FP32", "shape": [1, 8], "parameters": _place(0, 32)},
            {"name": "ids", "datatype": "INT64", "shape": [1, 3], "parameters": _place(32, 24)},
        )
        status, gone = (
            request(f"{_PATH}/status"),
            request(f"{_PATH}/region/r/unregister", method="POST"),
        )
        return [
            _registering("r", 0, 4096) + plain,
            _registering("r", 64, 1024) + both + gone + plain,
            _registering("r", 0, 4096) + request("v2/models/two_inputs/infer", _json(two)) + status,
            _registering("r", 0, 16) + _registering("s", 4000, 96) + status + gone + _FORGET,
        ]

    def check(self, data: bytes) -> str:
        super().check(_FORGET)
        return super().check(data)


def _registering(name: str, offset: int, size: int) -> bytes:
    stated = {"key": f"{REGIONS}a", "offset": offset, "byte_size": size}
    return request(f"{_PATH}/region/{name}/register", _json(stated))


def _place(offset: int, size: int = 16) -> dict[str, Any]:
    return {
        "shared_memory_region": "r",
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


def _region(name: str, offset: int) -> dict[str, Any]:
    return tensor(name, "FP32", [1, 4], parameters=_place(offset))


def _json(record: Any) -> bytes:
    return json.dumps(record).encode()
