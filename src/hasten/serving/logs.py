"""Write logs to standard error, as plain lines or as one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from hasten.core.words import short
from hasten.errors import visible

_OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
LOGGER = logging.getLogger("hasten")


class JsonLines(logging.Formatter):
    """Format a record as JSON: time, level, logger, message and any extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Lines(logging.Formatter):
    """Format a record as a line for people, with control characters written out."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line, followed by its traceback if it has one."""
        model = getattr(record, "model", None)
        version = getattr(record, "version", None)
        about = f"{model}/{version}: " if model is not None else ""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        lines = [f"hasten: {level}{about}{record.getMessage()}"]
        if record.exc_info:  # indented, so that no text in it looks like a line of the log
            trace = self.formatException(record.exc_info)
            lines += [f"  {line}" for line in trace.split("\n")]
        return "\n".join(map(visible, lines))


def log_to_stderr(*, as_json: bool) -> None:
    """Send hasten's logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def settings() -> dict[str, Any]:
    """Return the log settings in the form of Triton's logging extension."""
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
    """Change the log settings; return what is wrong with the wanted ones, or ""."""
    known = settings()
    for name, value in wanted.items():
        if name in ("log_file", "log_format"):
            if value != known[name]:
                return f"{name} can only be set when the server is started"
        elif name == "log_verbose_level":
            if type(value) is not int or value < 0:
                return f"{name} must be a whole number of at least 0; got {short(value)}"
        elif name not in known:
            return f"there is no setting {name!r:.40}; there are {', '.join(known)}"
        elif type(value) is not bool:
            return f"{name} must be true or false; got {short(value)}"
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
