"""Answers over HTTP/1.1, read from the bytes of a connection."""

from __future__ import annotations

from hasten.core.extras import missing_extra

try:
    import httptools
except ImportError as error:
    raise missing_extra("a load test over HTTP", "serve") from error

_MOST_ANSWER_BYTES = 256 << 20


class AnswerReader:
    """Reads answers from the bytes of a connection, one after another.

    Attributes:
        status: Status of the answer.
        body: Body of the answer, complete once `whole`.
        header_length: Value of Inference-Header-Content-Length; None if there is none.
        keeps_alive: Whether the connection may be used again.
        whole: Whether the answer is complete.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._clear()

    def _clear(self) -> None:
        self.status = 0
        self.body = b""
        self.header_length: bytes | None = None
        self.keeps_alive = self.whole = False
        self._begun = self._sized = self._unasked = False
        self._chunks: list[bytes] = []
        self._size_bytes = 0

    def feed(self, data: bytes) -> bool:
        """Read further bytes.

        Returns:
            Whether the answer is complete.

        Raises:
            ValueError: the answer isn't HTTP, or is too large.
        """
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ValueError(f"the answer isn't HTTP: {error}") from error
        if self._size_bytes > _MOST_ANSWER_BYTES:
            raise ValueError(f"the answer has more than {_MOST_ANSWER_BYTES >> 20} MiB")
        return self.whole

    def end(self) -> bool:
        """Handle the end of the connection, which completes an answer that states no length."""
        if self._begun and not self._sized and not self.whole:
            self._complete()
        return self.whole

    def next(self) -> None:
        """Drop the answer, to read the next one."""
        self._clear()

    def _complete(self) -> None:
        self.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self.whole = True

    # Callbacks of the parser.
    def on_message_begin(self) -> None:
        if self.whole:
            self._unasked = True
            self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._unasked:
            return
        lower = name.lower()
        if lower == b"inference-header-content-length":
            self.header_length = value
        elif lower in (b"content-length", b"transfer-encoding"):
            self._sized = True

    def on_headers_complete(self) -> None:
        if not self._unasked:
            self.status = self._parser.get_status_code()
            self._begun = True

    def on_body(self, body: bytes) -> None:
        if self._size_bytes <= _MOST_ANSWER_BYTES and not self._unasked:
            self._chunks.append(body)
        self._size_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._unasked:
            return
        if 100 <= self.status < 200:
            self._clear()  # such as 100 Continue: the answer itself follows
            return
        self.keeps_alive = self._parser.should_keep_alive()
        self._complete()
