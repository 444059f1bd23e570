"""openapi.json says of every route who may ask for it, and what everybody else is answered."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from tests.serving.test_rights import INFERENCES, OPEN, ROUTES

from hasten.serving.protocol.rights import Scope

SPEC = json.loads(files("hasten.serving.protocol").joinpath("openapi.json").read_text())
SCOPES = {route: scope for scope, routes in ROUTES.items() for route in routes}
SCOPES |= dict.fromkeys(INFERENCES, "infer")


def described() -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in SPEC["paths"].items()
        for method, operation in item.items()
    }


def test_every_route_is_described_and_nothing_else() -> None:
    assert described().keys() == SCOPES.keys()


@pytest.mark.parametrize("route", sorted(SCOPES))
def test_a_route_states_its_scope_and_the_answers_to_who_lacks_it(route: str) -> None:
    operation, scope = described()[route], SCOPES[route]
    if route in OPEN:
        assert operation["security"] == []
        assert not {"401"} & operation["responses"].keys()
        return
    # A server without tokens asks for nothing.
    assert operation["security"] == [{}, {"token": [scope]}, {"certificate": [scope]}]
    told = {"401": "NoToken", "403": "NoScope"}
    for status, name in told.items():
        assert operation["responses"][status] == {"$ref": f"#/components/responses/{name}"}


def test_the_schemes_are_those_that_the_server_knows() -> None:
    schemes = SPEC["components"]["securitySchemes"]
    assert {name: one["type"] for name, one in schemes.items()} == {
        "token": "http",
        "certificate": "mutualTLS",
    }
    assert schemes["token"]["scheme"] == "bearer"
    for scope in Scope:
        assert f"`{scope.value}`" in schemes["token"]["description"]
    assert "WWW-Authenticate" in SPEC["components"]["responses"]["NoToken"]["headers"]
