"""The options of a server: what each value refuses, and whether the command line has the same ones."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.models import identity
from tests.support.servers import bundle_of

import hasten
from hasten.cli.serve import keywords_of, serve
from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings
from hasten.serving.options import (
    Access,
    ModelOptions,
    Monitoring,
    SequenceLimits,
    ServerLimits,
)
from hasten.serving.run import settings_of
from hasten.serving.state import Limits

VALUES = (ModelOptions, SequenceLimits, Monitoring, Access, ServerLimits)
ELSEWHERE = {
    *("bundles", "http", "grpc", "host", "trace", "json_logs"),
    *("on", "ray_address", "min_replicas", "max_replicas", "write_kserve", "image"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    return bundle_of(folder, identity(folder), "m")


def test_each_option_of_the_command_is_a_field_of_one_value() -> None:
    names = [field.name for value in VALUES for field in dataclasses.fields(value)]
    options = {parameter.name for parameter in serve.params if parameter.name != "help"}
    assert sorted(names) == sorted(options - ELSEWHERE)


def test_the_command_the_library_and_the_server_have_the_same_defaults(bundle: Path) -> None:
    settings = settings_of([bundle])
    assert settings.models[0].settings == ModelSettings()
    assert settings.limits == Limits()
    given = serve.make_context("serve", [str(bundle)]).params
    assert settings_of(given["bundles"], **keywords_of(given)) == settings


def test_one_bundle_and_one_name_need_no_list(bundle: Path) -> None:
    settings = settings_of(bundle, access=Access(allow_host="models.example"))
    assert settings == settings_of([bundle], access=Access(allow_host=["models.example"]))
    assert settings.hosts == ("models.example",)


def test_files_may_be_given_as_text_and_values_are_what_a_server_reads(bundle: Path) -> None:
    access = Access(
        tokens="clients.toml",
        tls_cert="cert.pem",
        tls_key="key.pem",
        tls_client_ca="ca.pem",
        tls_crl="crl.pem",
    )
    settings = settings_of([bundle], access=access)
    assert settings.token_files() == [Path("clients.toml")]
    assert settings.tls_files() == [Path(f"{name}.pem") for name in ("cert", "key", "ca", "crl")]


@pytest.mark.parametrize(
    ("make", "fields", "words", "said"),
    [
        (ModelOptions, {"max_batch": 65}, ["--max-batch", "65"], "max_batch= must be from 1 to 64; got 65"),
        (ModelOptions, {"max_length": 0}, ["--max-length", "0"], f"max_length= must be from 1 to {(1 << 31) - 1}; got 0"),
        (ModelOptions, {"sessions": 0}, ["--sessions", "0"], "sessions= must be from 1 to 1024; got 0"),
        (ModelOptions, {"deadline_s": 7200.0}, ["--deadline", "7200s"], "deadline_s= must be from 0 to 3600; got 7200.0"),
        (ModelOptions, {"max_wait_s": 7200.0}, ["--max-wait", "7200s"], "max_wait_s= must be from 0 to 3600; got 7200.0"),
        (ModelOptions, {"cache_bytes": 1 << 51}, ["--cache", str(1 << 51)], f"cache_bytes= must be from 0 to {1 << 50}; got {1 << 51}"),
        (SequenceLimits, {"max_sequences": -1}, ["--max-sequences", "-1"], f"max_sequences= must be from 0 to {1 << 30}; got -1"),
        (SequenceLimits, {"sequence_bytes": 1 << 51}, ["--sequence-bytes", str(1 << 51)], f"sequence_bytes= must be from 0 to {1 << 50}; got {1 << 51}"),
        (SequenceLimits, {"sequence_idle_s": 90000.0}, ["--sequence-idle", "90000s"], "sequence_idle_s= must be from 0.001 to 86400; got 90000.0"),
        (Monitoring, {"shadow": 0.1, "shadow_limit": 1.0}, ["--shadow", "10%", "--shadow-limit", "100%"], "shadow_limit= must be from 0 to 0.999; got 1.0"),
        (Monitoring, {"webhook": "ftp://a"}, ["--webhook", "ftp://a"], "webhook= needs answers to watch: give shadow=, such as 0.01"),
        (Monitoring, {"shadow": 0.1, "webhook": "ftp://a"}, ["--shadow", "10%", "--webhook", "ftp://a"], "webhook= is an http:// or https:// address with a valid host and port; got another, which "
            "isn't shown as it may have a secret"),
        (Access, {"token_file": "a", "tokens": "b"}, ["--token-file", "a", "--tokens", "b"], "token_file= and tokens= can't be combined: leave one of them out"),
        (Access, {"shared_memory": "("}, ["--shared-memory", "("], "shared_memory= is not a regular expression: missing ), unterminated subpattern at position 0"),
        (Access, {"tls_client_ca": "a"}, ["--tls-client-ca", "a"], "tls_client_ca= needs tls_cert= and tls_key=, and tokens=, which says what the names in clients' certificates may do"),
        (Access, {"tls_crl": "a"}, ["--tls-crl", "a"], "tls_crl= is about clients' certificates: give tls_client_ca=, too"),
        (ServerLimits, {"max_body_bytes": 0}, ["--max-body", "0"], f"max_body_bytes= must be from 1 to {1 << 40}; got 0"),
        (ServerLimits, {"sample_bytes": -1}, ["--sample-bytes", "-1"], f"sample_bytes= must be from 0 to {1 << 50}; got -1"),
        (ServerLimits, {"max_connections": 0}, ["--max-connections", "0"], f"max_connections= must be from 1 to {1 << 20}; got 0"),
        (ServerLimits, {"drain_s": 7200.0}, ["--drain", "7200s"], "drain_s= must be from 0 to 3600; got 7200.0"),
        (ServerLimits, {"max_stall_s": 90000.0}, ["--max-stall", "90000s"], "max_stall_s= must be from 0 to 86400; got 90000.0"),
    ],
)  # fmt: skip
def test_a_value_names_the_field_that_it_refuses_and_the_command_its_option(
    make: Callable[..., Any], fields: dict[str, Any], words: list[str], said: str
) -> None:
    with pytest.raises(InputError) as told:
        make(**fields)
    assert str(told.value) == said
    refused = CliRunner().invoke(serve, ["none.hasten", *words])
    flags = dict(zip(fields, words[::2], strict=True))
    for field, flag in {**flags, **FURTHER}.items():
        said = said.replace(f"{field}=", flag)
    assert (refused.exit_code, refused.stderr) == (2, f"hasten: {said}\n")


FURTHER = {
    "shadow": "--shadow",
    "tls_cert": "--tls-cert",
    "tls_key": "--tls-key",
    "tls_client_ca": "--tls-client-ca",
    "tokens": "--tokens",
}


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"http": 65536}, "http= must be from 0 to 65535; got 65536"),
        ({"grpc": -1}, "grpc= must be from 0 to 65535; got -1"),
        ({"grpc": 8000}, "http= and grpc= are both 8000: give each its own port"),
        (
            {"grpc": 0, "limits": ServerLimits(max_body_bytes=1 << 31)},
            "a gRPC message must be smaller than 2 GiB: give a smaller max_body_bytes=, or no grpc=",
        ),
    ],
)
def test_options_that_concern_two_values_are_checked_together(
    bundle: Path, keywords: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as told:
        settings_of([bundle], **keywords)
    assert str(told.value) == said


def test_values_are_public_names() -> None:
    assert [getattr(hasten, value.__name__) for value in VALUES] == [*VALUES]


UNUSED = ["email", "http.client", "importlib.metadata", "urllib.request"]
"""Libraries that neither a supervisor nor its server needs to start; they take long to import."""
SERVING = ["hasten.serving.models.repository", "hasten.bundle.chains.opened"]
"""Modules that the server needs, but not the supervisor that starts it."""


@pytest.mark.parametrize(
    ("module", "unused"),
    [("hasten.serving.run", [*UNUSED, *SERVING]), ("hasten.serving.server", UNUSED)],
)
def test_a_start_of_a_server_imports_no_more_than_it_needs(module: str, unused: list[str]) -> None:
    code = f"import sys, {module}; print(*({set(unused)} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
