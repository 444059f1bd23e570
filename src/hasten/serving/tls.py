"""Read what encrypts a server's connections, and who a client is by its certificate."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.errors import InputError
from hasten.serving.tls_records import ContextByRecords

_NO_COMPRESSED_CERTIFICATES = 1 << 33
"""OpenSSL's SSL_OP_NO_RX_CERTIFICATE_COMPRESSION, from 3.2 on: 3 kB could be 100 kB of certificates, which take 26 ms."""


@dataclass(frozen=True, eq=False)
class Tls:
    """Certificate of a server, and of those who may certify its clients.

    Attributes:
        context: Context for the handshakes of HTTP's connections.
        key: Private key in PEM, for gRPC's library.
        certificate: Certificate in PEM, with those between it and a root.
        client_ca: Certificates in PEM, of which one must have signed a client's; None to ask clients
            for no certificate.
    """

    context: ssl.SSLContext
    key: bytes
    certificate: bytes
    client_ca: bytes | None


def read_tls(
    certificate: Path, key: Path, client_ca: Path | None, revoked: Path | None = None
) -> Tls:
    """Read the files of a server's certificate.

    Args:
        certificate: PEM file of the certificate.
        key: PEM file of its private key.
        client_ca: PEM file of certificates of which one must have signed a client's; None to ask clients
            for none.
        revoked: PEM file of lists of revoked certificates, one of each authority; None if there is none.

    Raises:
        InputError: a file can't be read, or they don't fit together.
    """

    def no_passphrase() -> str:
        raise InputError(
            f"the key {key} needs a passphrase: give a key that is stored without a passphrase"
        )

    context = ContextByRecords(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= _NO_COMPRESSED_CERTIFICATES
    asked = f"the certificate {certificate} with the key {key}"
    try:
        context.load_cert_chain(certificate, key, no_passphrase)
        pair = key.read_bytes(), certificate.read_bytes()
        if client_ca is None:
            return Tls(context, *pair, None)
        asked = f"the certificates in {client_ca} for clients"
        context.load_verify_locations(client_ca)
        authorities = client_ca.read_bytes()
        if revoked is not None:
            asked = f"the lists of revoked certificates in {revoked}"
            _refuse_revoked(context, revoked)
    except (OSError, ssl.SSLError) as error:
        told = getattr(error, "reason", None)
        reason = told.lower().replace("_", " ") if told else error.strerror or error
        raise InputError(f"can't use {asked}: {reason}") from error
    context.verify_mode = ssl.CERT_REQUIRED
    # As gRPC's library does: who is named in the file is trusted, whoever has signed them.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return Tls(context, *pair, authorities)


def _refuse_revoked(context: ssl.SSLContext, revoked: Path) -> None:
    """Let a context refuse the certificates that lists name, and those whose authority has no valid list.

    Raises:
        InputError: the file holds no lists, or certificates, which would be trusted.
        OSError: it can't be read.
    """
    before = context.cert_store_stats()
    context.load_verify_locations(revoked)
    after = context.cert_store_stats()
    if after["crl"] == before["crl"] or after["x509"] > before["x509"]:
        raise InputError(
            f"{revoked} must hold lists of revoked certificates, as PEM, and nothing else: got "
            f"{after['crl'] - before['crl']} lists and {after['x509'] - before['x509']} certificates"
        )
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def names_in(certificate: Mapping[str, Any]) -> list[str]:
    """Return the names in a certificate as `getpeercert` states it: the subject's, and those of hosts."""
    subject: Iterable[Iterable[tuple[str, str]]] = certificate.get("subject", ())
    names = [value for part in subject for kind, value in part if kind == "commonName"]
    return names + [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
