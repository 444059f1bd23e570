"""Bytes that protobuf can't parse, where protobuf runs as Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf")
pytest.importorskip("onnx")

PROGRAM = """
import sys
from pathlib import Path
from google.protobuf.internal import api_implementation
from hasten.errors import HastenError
from hasten.inputs.models import onnx
from hasten.inputs.pipeline.stored import stated_in
from hasten.serving.wire.grpc_messages import read_request

assert api_implementation.Type() == "python"
folder = Path(sys.argv[1])
for each in (
    lambda: read_request(b"\\n\\x02\\x80\\x80"),
    lambda: onnx.read(folder / "model.onnx"),
):
    try:
        each()
    except HastenError as error:
        print(type(error).__name__)
print(stated_in(folder / "pipeline.onnx"))
"""


def test_text_that_is_not_utf8_is_bad_input_there_too(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x12\x02\x80\x80")
    (tmp_path / "pipeline.onnx").write_bytes(b"\x12\x02\x80\x80" + b"hasten.pipeline")
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout.split(), ran.stderr) == (["ProtocolError", "InputError", "None"], "")
