"""Another client of the server: it asks a tiny model all the while, and keeps the longest time that it waited.

    python -m fuzz.other PORT FILE

FILE holds three numbers of 8 bytes: answers so far, the longest wait in nanoseconds, and answers that weren't
right. The fuzzer maps it too, and sets the longest wait back to 0.
"""

from __future__ import annotations

import http.client
import json
import mmap
import struct
import sys
import time
from pathlib import Path

MODEL = "tiny"
NUMBERS = struct.Struct("<qqq")
_REST_S = 0.001
_BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()


class Board:
    """The numbers of a client, in memory that two processes share.

    Args:
        path: File of `NUMBERS.size` bytes.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), NUMBERS.size)).cast("q")

    @property
    def answers(self) -> int:
        """Number of answers so far, and of failures."""
        return self._numbers[0]

    @property
    def wrong(self) -> int:
        """Number of answers that weren't right, or didn't come."""
        return self._numbers[2]

    def count(self, waited_ns: int, *, right: bool) -> None:
        """Count an answer."""
        self._numbers[1] = max(self._numbers[1], waited_ns)
        self._numbers[2] += not right
        self._numbers[0] += 1

    def longest_s(self, *, forget: bool = False) -> float:
        """Return the longest wait in seconds; forget it if asked to."""
        longest_s = self._numbers[1] / 1e9
        if forget:
            self._numbers[1] = 0
        return longest_s


def ask(port: int, board: Board) -> None:
    """Ask until the process is ended."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while True:
        began_ns, right = time.monotonic_ns(), False
        try:
            client.request("POST", f"/v2/models/{MODEL}/infer", _BODY)
            answer = client.getresponse()
            right = b'"data"' in answer.read() and answer.status == 200
        except (OSError, http.client.HTTPException):
            client.close()
        board.count(time.monotonic_ns() - began_ns, right=right)
        time.sleep(_REST_S)


if __name__ == "__main__":
    ask(int(sys.argv[1]), Board(Path(sys.argv[2])))
