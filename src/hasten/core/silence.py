"""Silence prints, logs and warnings of third-party converters, exporters and quantizers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

from hasten.core.whole_process import while_any_runs


@while_any_runs
def silenced(stack: contextlib.ExitStack) -> None:
    """Suppress prints, progress bars, logging and warnings of libraries while a block runs, then restore them.

    All of these belong to the whole process, so they are suppressed until the last block ends that overlaps.

    The root logger gets a temporary handler: `logging.warning`, which ONNX Runtime's quantizer
    calls, would otherwise install a permanent one if there is none.
    """
    root, lent, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(lent)
    stack.callback(root.removeHandler, lent)
    logging.disable(logging.CRITICAL)
    stack.callback(logging.disable, disabled)
    stack.enter_context(warnings.catch_warnings())
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    warnings.simplefilter("ignore")
