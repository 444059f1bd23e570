"""What supervisor and serving process say to each other, one packet each."""

from __future__ import annotations

import struct

SLOT = struct.Struct("<BI")
"""What, and about which connection; a connection's comes with its file descriptor."""
CONNECTION, DRAIN, RELOAD = 1, 2, 3
"""Orders: serve this connection; end; load what was replaced on disk."""
UP, READY, FAILED, CLOSED, LOST, FORGIVEN = 1, 2, 3, 4, 5, 6
"""News: it takes connections, with the ports as JSON; its models are loaded; it can't serve, with
the reason; a connection is closed; a connection that was handed over didn't arrive;
a model, by its number, was replaced: it may be served as it was asked for again."""
MOST_MESSAGE = 64 << 10
