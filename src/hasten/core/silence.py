"""Silence prints, logs and warnings of third-party converters, exporters and quantizers."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_restored = contextlib.ExitStack()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress prints, progress bars, logging and warnings of libraries, then restore them.

    All of these belong to the whole process. So the first block that begins suppresses them, and the
    last one that ends restores them; blocks may overlap in several threads.

    The root logger gets a temporary handler: `logging.warning`, which ONNX Runtime's quantizer
    calls, would otherwise install a permanent one if there is none.
    """
    global _inside
    with _lock:
        if not _inside:
            _suppress(_restored)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restored.close()


def _suppress(stack: contextlib.ExitStack) -> None:
    """Suppress everything until a stack is closed."""
    root, lent, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(lent)
    stack.callback(root.removeHandler, lent)
    logging.disable(logging.CRITICAL)
    stack.callback(logging.disable, disabled)
    stack.enter_context(warnings.catch_warnings())
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    warnings.simplefilter("ignore")
