"""Requests of any length to a server, as bytes over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request


def ask(url: str, model: str, length: int, rows: int = 1) -> str:
    """Ask a model of x: [rows, length] for an answer of that shape; return the error, or "" for an answer.

    Args:
        url: Address of the server.
        model: Name of the model.
        length: Size of each row.
        rows: Number of rows.
    """
    size = 4 * rows * length
    head = {"name": "x", "datatype": "FP32", "shape": [rows, length]}
    said = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": size}}]})
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer",
        said.encode() + bytes(size),
        {"Inference-Header-Content-Length": str(len(said))},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["outputs"][0]["shape"] == [rows, length]
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"]) if error.code == 400 else str(error)
