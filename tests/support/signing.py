"""Pairs of keys for tests, and what a stranger does to a signed bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import hasten
from hasten.bundle import SIGNATURE
from hasten.bundle.signatures import PublicKey, keys_of, new_keys


@dataclass(frozen=True)
class Signer:
    """Somebody who signs bundles.

    Attributes:
        secret: File of the secret key.
        public: File of the public key.
    """

    secret: Path
    public: Path

    @classmethod
    def new(cls, folder: Path, name: str = "signer") -> Signer:
        secret = folder / f"{name}.key"
        public, _ = new_keys(secret)
        return cls(secret, public)

    @property
    def key(self) -> PublicKey:
        (key,) = keys_of(self.public)
        return key

    @property
    def only(self) -> str:
        """What is said where only this key is trusted."""
        return f"only bundles signed by the key {self.key.name} are trusted"

    def sign(self, bundle: Path) -> Path:
        """Sign a bundle, and return it."""
        hasten.sign(bundle, self.secret)
        return bundle


def signature_of(other: Path, bundle: Path) -> None:
    """Give a bundle another one's signature."""
    shutil.copyfile(other / SIGNATURE, bundle / SIGNATURE)
