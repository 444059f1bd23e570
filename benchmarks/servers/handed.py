"""What a server's process is handed by its environment. The floor needs no model: nothing is imported
that only a model needs."""

import os
import socket
from pathlib import Path

BUNDLE, MODEL, PORT, FOLDER, MARK = (
    f"HASTEN_BENCHMARK_{what}" for what in ("BUNDLE", "MODEL", "PORT", "FOLDER", "MARK")
)


def bundle() -> Path:
    """Return the model to serve."""
    return Path(os.environ[BUNDLE])


def model() -> str:
    """Return what the model is called, where a server gives it a name."""
    return os.environ[MODEL]


def port() -> int:
    """Return the port to serve HTTP at, on 127.0.0.1."""
    return int(os.environ[PORT])


def folder() -> Path:
    """Return an empty folder to write into."""
    return Path(os.environ[FOLDER])


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
