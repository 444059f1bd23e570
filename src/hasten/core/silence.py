"""Silence prints, logs and warnings of third-party converters, exporters and quantizers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress prints, progress bars, logging and warnings of libraries, then restore them.

    The root logger gets a temporary handler: `logging.warning`, which ONNX Runtime's quantizer
    calls, would otherwise install a permanent one if there is none.
    """
    root, lent, disabled = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(lent)
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(lent)
