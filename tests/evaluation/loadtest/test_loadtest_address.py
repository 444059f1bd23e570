"""Addresses of servers, and what lets us in."""

from pathlib import Path

import pytest

from hasten.errors import InputError
from hasten.evaluation.loadtest.address import Access, Address, Credentials, access, parse_address

FORMS = (
    "the server's address is http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or "
    "grpcs://HOST:PORT"
)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8000", Address("http", "localhost", 8000)),
        ("https://example.org/models/", Address("https", "example.org", 443, "/models")),
        ("http://[::1]:80", Address("http", "::1", 80)),
        ("grpc://10.0.0.1:8001", Address("grpc", "10.0.0.1", 8001)),
        ("grpcs://example.org", Address("grpcs", "example.org", 443)),
    ],
)
def test_an_address_reads_back_as_it_is_written(url: str, address: Address) -> None:
    assert parse_address(url) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("url", "end"),
    [
        ("localhost:8000", ": got 'localhost:8000'"),
        ("ftp://host", ": got 'ftp://host'"),
        ("http://", ": got 'http://'"),
        ("http://host/a b", ": got 'http://host/a b'"),
        ("http://host:99999", ": got 'http://host:99999' (Port out of range 0-65535)"),
        ("http://host/\r\nX: y", ": got 'http://host/\\r\\nX: y'"),
        (
            "http://me:secret@host",
            ", without user, query or fragment; a token is read from a file",
        ),
    ],
)
def test_what_is_no_address_is_named(url: str, end: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_address(url)
    assert str(raised.value) == FORMS + end


def test_a_grpc_address_has_no_path() -> None:
    with pytest.raises(InputError) as raised:
        parse_address("grpc://host/a")
    assert str(raised.value) == "a gRPC address has no path: got '/a'"


def test_a_token_is_one_word_of_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    found = access(parse_address("http://host"), Credentials(file))
    assert found == Access("s3cret")
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize("content", [b"", b"two words", b"a\r\nX: y", b"\xff", b"a" * 20_000])
def test_a_file_without_a_token_is_named_but_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        access(parse_address("http://host"), Credentials(file))
    assert str(raised.value) == (
        f"{file} has no token, which is one word of 1 to 16,384 ASCII characters"
    )


def test_settings_that_are_of_no_use_are_refused(tmp_path: Path) -> None:
    def said(url: str, ca: Path | None, insecure: bool) -> str:
        with pytest.raises(InputError) as raised:
            access(parse_address(url), Credentials(None, ca, insecure)).tls()
        return str(raised.value)

    assert said("http://host", None, True) == (
        "only encrypted connections use certificates, and http://host:80 isn't encrypted: write "
        "https://"
    )
    assert said("grpcs://host", None, True) == (
        "gRPC always checks the server's certificate: give it with --ca"
    )
    assert said("https://host", tmp_path, True) == (
        "--ca says which certificates are trusted, and --insecure trusts all of them: give only "
        "one of the two"
    )
    assert said("https://host", tmp_path / "no.pem", False) == (
        f"can't read certificates from {tmp_path / 'no.pem'}: No such file or directory"
    )


def test_a_token_that_cant_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        access(parse_address("http://host"), Credentials(tmp_path / "none"))
    assert (
        str(raised.value)
        == f"can't read the token in {tmp_path / 'none'}: No such file or directory"
    )
