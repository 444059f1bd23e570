"""An open-loop load test of a server that speaks the Open Inference Protocol, over HTTP or gRPC.

Requests are sent when they are due, whatever is still unanswered, and latency counts from when a
request was due: a server that stalls can't hide it by getting fewer requests.
"""

from hasten.evaluation.loadtest.address import Credentials
from hasten.evaluation.loadtest.generator import Bounds, Payload, run
from hasten.evaluation.loadtest.result import LoadTestResult, Offered, RequestOutcome
from hasten.evaluation.loadtest.words import in_words

__all__ = [
    "Bounds",
    "Credentials",
    "LoadTestResult",
    "Offered",
    "Payload",
    "RequestOutcome",
    "in_words",
    "run",
]
