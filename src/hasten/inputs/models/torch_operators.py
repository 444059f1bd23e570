"""Table of ONNX operators that torch's exporter reads (extra `torch`)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from copy import copy
from typing import Any

_KNOWN: dict[Hashable, Any] = {}
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """Let the exports in the block share one table of operators per process.

    torch's exporter parses the source of about 500 functions for each export, which is half of a
    small network's export. Each export gets a copy of its own. The table is read again once a
    library has registered more operators, and by each export where another version of torch keeps
    its table elsewhere.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        known = isinstance(ONNXRegistry().functions, dict)
    except (ImportError, AttributeError):
        known = False
    if not known:
        yield
        return
    with _ONE_AT_A_TIME:
        own = vars(ONNXRegistry)["from_torchlib"]
        setattr(ONNXRegistry, "from_torchlib", _shared(ONNXRegistry.from_torchlib))  # noqa: B010
        try:
            yield
        finally:
            setattr(ONNXRegistry, "from_torchlib", own)  # noqa: B010


def _shared(read: Callable[..., Any]) -> Any:
    """Return a function that reads the table once for each set of operators and each version."""
    import torch

    def table(*args: Any, **kwargs: Any) -> Any:
        registered = len(torch._C._dispatch_get_all_op_names())
        key = (registered, args, tuple(sorted(kwargs.items())))
        if key not in _KNOWN:
            _KNOWN.clear()
            _KNOWN[key] = read(*args, **kwargs)
        known = copy(_KNOWN[key])
        known.functions = {name: list(found) for name, found in known.functions.items()}
        return known

    return staticmethod(table)
