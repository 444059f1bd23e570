"""The HTTP interface as its OpenAPI description states it, under requests that a machine thinks up."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from tests.support import models
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S

from hasten.inputs.pipeline.config import image_pipeline
from hasten.testing.models import write

SPEC = json.loads(files("hasten.serving.protocol").joinpath("openapi.json").read_text())
schema = schemathesis.openapi.from_dict(SPEC)


@schemathesis.serializer("audio/*")
def as_it_is(context: Any, value: Any) -> bytes:
    """Send a sound as the bytes that were thought up."""
    return value if isinstance(value, bytes) else bytes(getattr(value, "data", b""))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    folder = tmp_path_factory.mktemp("openapi")
    bundle = bundle_of(folder, models.solid(folder))
    file = write(folder / "nosy.onnx", models.COLOUR, {})
    nosy = bundle_of(folder, file, pipeline=image_pipeline(8))
    with ServerThread(
        place_of(bundle), place_of(nosy), control=True, shared_memory="hasten-test-.*"
    ) as one:
        yield one


@schema.parametrize()
@settings(
    max_examples=12,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_asked_the_answer_is_as_described(case: Any, server: ServerThread) -> None:
    if "name" in case.path_parameters and case.path_parameters["name"][:1] < "n":
        # Else no model is ever met. The second takes raw samples.
        case.path_parameters["name"] = "solid" if case.path_parameters["name"] < "F" else "nosy"
        if "version" in case.path_parameters:
            case.path_parameters["version"] = "1"
    response = case.call(base_url=server.http_url, timeout=PATIENCE_S)
    checks = [response_schema_conformance, status_code_conformance]
    if response.status_code not in (503, 504):
        checks.append(not_a_server_error)
    try:
        case.validate_response(response, checks=checks)
    except FailureGroup as group:
        raise AssertionError(f"{response.status_code}: {response.content!r}") from group


def test_the_server_hands_out_its_description(server: ServerThread) -> None:
    with urllib.request.urlopen(f"{server.http_url}/openapi.json") as response:
        assert json.load(response) == SPEC
