"""Certificates that tests make with openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def certified(folder: Path, name: str, *more: str, cn: str = "", by: Path | None = None) -> Path:
    """Make a certificate for 127.0.0.1 and its key, NAME.pem and NAME.key.

    Args:
        folder: Folder of both files.
        name: Name of the files.
        *more: Further names in it, such as "DNS:door.example".
        cn: Name of its subject; by default that of the files.
        by: Certificate that signs it; its own by default, and then it may sign others.

    Returns:
        Path of the certificate.
    """
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with: apt-get install openssl")
    path, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", f"/CN={cn or name}"),
        *("-addext", f"subjectAltName={','.join(('IP:127.0.0.1', *more))}"),
        *("-keyout", str(key), "-out", str(path)),
    ]
    if by is not None:
        signing = ("-CA", str(by), "-CAkey", str(by.with_suffix(".key")))
        command += [*signing, "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True)
    return path


def revoking(authority: Path, *revoked: Path) -> bytes:
    """Return an authority's list of revoked certificates, as PEM.

    Args:
        authority: Certificate of the authority; its key is beside it.
        *revoked: Certificates that it revokes, besides those that it revoked before.
    """
    folder, name = authority.parent, authority.stem
    config = folder / f"{name}.cnf"
    if not config.exists():
        (folder / f"{name}.index").touch()
        lines = ("[ca]", "default_ca = one", "[one]", f"database = {folder / f'{name}.index'}")
        config.write_text("\n".join((*lines, "default_md = sha256", "default_crl_days = 1", "")))
    command = ["openssl", "ca", "-config", str(config), "-cert", str(authority)]
    command += ["-keyfile", str(authority.with_suffix(".key"))]
    for one in revoked:
        subprocess.run([*command, "-revoke", str(one)], check=True, capture_output=True)
    return subprocess.run([*command, "-gencrl"], check=True, capture_output=True).stdout
