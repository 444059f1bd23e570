"""A collector of OpenTelemetry's spans, and a caller's trace."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"


class Collector:
    """Receives OTLP over HTTP.

    Attributes:
        resources: Attributes of each service that sent something.
        spans: Spans that were sent.
        paths: Paths that they were sent to.
    """

    def __init__(self) -> None:
        collector = self
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Any] = []
        self.paths: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append(values(one.resource))
                    for scope in one.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name: str) -> Any:
        """The only span of a name."""
        (span,) = [each for each in self.spans if each.name == name]
        return span


def values(owner: Any) -> dict[str, Any]:
    """Attributes of a span or a service."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in owner.attributes
    }
