"""Define the messages between supervisor and serving process, one packet each."""

from __future__ import annotations

import struct

SLOT = struct.Struct("<BI")
"""Layout of a packet: message type, then index of a connection or model. A CONNECTION packet carries
the connection's file descriptor too."""
CONNECTION, DRAIN, RELOAD = 1, 2, 3
"""Types of messages to the serving process: serve this connection; finish requests and exit; reload
bundles that were replaced on disk."""
UP, READY, FAILED, CLOSED, LOST, FORGIVEN = 1, 2, 3, 4, 5, 6
"""Types of messages to the supervisor. UP: the process accepts connections, with its ports as JSON.
READY: its models are loaded. FAILED: it can't serve, with the reason. CLOSED: a connection was closed.
LOST: a connection that was handed over didn't arrive. FORGIVEN: a model, by its index, was replaced,
so the next process may serve it with its original settings again."""
MOST_MESSAGE = 64 << 10
