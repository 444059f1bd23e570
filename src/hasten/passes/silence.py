"""Third-party converters and quantizers print, log and warn; a pass says what matters itself."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hold back prints, progress bars, logging and warnings of libraries, then restore them.

    A handler is lent to the root logger meanwhile: `logging.warning`, which ONNX Runtime's
    quantizer calls, installs one for good where there is none.
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
