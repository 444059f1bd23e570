"""Structured logs: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
LOGGER = logging.getLogger("hasten")


class JsonLines(logging.Formatter):
    """Time, level, logger, message and whatever was given beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


class Lines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line, and a traceback below it."""
        model = getattr(record, "model", None)
        version = getattr(record, "version", None)
        about = f"{model}/{version}: " if model is not None else ""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"hasten: {level}{about}{record.getMessage()}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def log_to_stderr(*, as_json: bool) -> None:
    """Send hasten's logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def settings() -> dict[str, Any]:
    """What is logged, in the words of Triton's logging extension."""
    level = LOGGER.getEffectiveLevel()
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": 1 if level <= logging.DEBUG else 0,
        "log_format": "default",
    }


def change(wanted: dict[str, Any]) -> str:
    """Change what is logged; return what is wrong with it, or ""."""
    known = settings()
    for name, value in wanted.items():
        if name in ("log_file", "log_format"):
            if value != known[name]:
                return f"{name} is set where the server is started"
        elif name == "log_verbose_level":
            if type(value) is not int or value < 0:
                return f"{name} is a whole number from 0; got {value!r:.40}"
        elif name not in known:
            return f"there is no setting {name!r:.40}; there are {', '.join(known)}"
        elif type(value) is not bool:
            return f"{name} is true or false; got {value!r:.40}"
    now = {**known, **wanted}
    LOGGER.setLevel(
        logging.DEBUG
        if now["log_verbose_level"]
        else logging.INFO
        if now["log_info"]
        else logging.WARNING
        if now["log_warning"]
        else logging.ERROR
        if now["log_error"]
        else logging.CRITICAL
    )
    return ""
