"""The pages on the bundle's format and the protocol have everything that the code has."""

import dataclasses
import re
from pathlib import Path

import pytest

from hasten.bundle.manifest import Manifest, Part
from hasten.certificate.verdict import Judgement
from hasten.core.target import Target
from hasten.engines.base import Artifact

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
BUNDLE = (REFERENCE / "bundle-format.md").read_text()
PROTOCOL = (REFERENCE / "protocol.md").read_text()
RECORDS = {
    "## The manifest": (Manifest, {"digest"}),
    "### A part": (Part, set()),
    "### An artifact": (Artifact, set()),
    "### The judgement": (Judgement, set()),
    "### The target": (Target, set()),
}


@pytest.mark.parametrize("title", RECORDS)
def test_every_field_of_a_record_has_its_line_and_no_other(title: str) -> None:
    kind, more = RECORDS[title]
    section = re.split("^##", BUNDLE.partition(f"{title}\n")[2], flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"\w+", row)}
    assert named == {field.name for field in dataclasses.fields(kind)} | more


def test_every_path_has_its_line() -> None:
    pytest.importorskip("orjson")
    from hasten.serving.http.routes import Routes

    said = PROTOCOL.partition("## HTTP paths")[2].partition("\n## ")[0]
    words = {part for path in re.findall(r"[\w/.]+", said) for part in path.split("/")}
    routes = Routes.__new__(Routes)
    Routes.__init__(routes, None)  # type: ignore[arg-type]
    parts = {
        part
        for table in routes._tables.values()
        for route in table
        for part in route.path
        if part[0] != "{"
    }
    assert parts - words == set()


def test_every_method_of_grpc_has_its_scope() -> None:
    pytest.importorskip("grpc")
    from hasten.serving.grpc.methods import SCOPES

    said = PROTOCOL.partition("## gRPC methods")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", said, re.MULTILINE))
    found = {name: scope for scope, row in rows.items() for name in re.findall(r"`(\w+)`", row)}
    open_to_all = {"ServerLive", "ServerReady"}
    assert found == {
        name: "none" if name in open_to_all else scope.name.lower()
        for name, scope in SCOPES.items()
    }


def test_every_error_has_both_statuses() -> None:
    from hasten.serving.protocol.errors import Kind

    said = PROTOCOL.partition("## Errors")[2]
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", said, re.MULTILINE)
    assert sorted(rows) == sorted((str(kind.http), kind.grpc) for kind in Kind)


def test_every_element_type_has_its_line() -> None:
    from hasten.serving.protocol.datatypes import DATATYPES

    said = PROTOCOL.partition("## Element types")[2].partition("\n## ")[0]
    assert DATATYPES.keys() - set(re.findall(r"\b[A-Z]+\d*\b", said)) == set()
