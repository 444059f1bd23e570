"""Signed bundles: a byte of the signature, the keys, the manifest, the model or the packed file is changed."""

from __future__ import annotations

import base64
import random
import shutil
import zipfile
from pathlib import Path

from fuzz.mutation import changed_bytes, grown
from fuzz.outcomes import refused
from fuzz.surface import Fault, Surface
from fuzz.surfaces.archives import archive_of, members_of
from fuzz.surfaces.manifests import zeros
from tests.support.bundles import built, stated

from hasten.bundle import MANIFEST, SIGNATURE, load, write
from hasten.bundle.packing.unpacking import unpack
from hasten.bundle.packing.writer import pack
from hasten.bundle.signatures import SecretKey, keys_of, secret_key
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import HastenError
from hasten.testing import models

_PUBLIC, _SECRET, _PACKED = "release.pub", "release.key", "model.hastenz"
_BESIDE = (_PUBLIC, _SECRET, _PACKED)
"""Members of an input that aren't the bundle's own files."""
_COMMENT = "timestamp:0\tfile:manifest.json\thashed"


class Signatures(Surface):
    """Archives of a signed bundle, as a folder or packed, and of its keys: nothing that was changed is trusted."""

    name = "signatures"
    most_mib = 128

    def seeds(self) -> list[bytes]:
        key = SecretKey(bytes(range(8)), bytes(range(32)))
        place, folder = self.folder / "parts", self.folder / "model.hasten"
        place.mkdir()
        winner = built(place, models.two_inputs(place), OnnxRuntime(threads=1, spinning=False))
        write(folder, stated(winner, winner, status="exact"), {"notes.json": [1, 2]})
        manifest = (folder / MANIFEST).read_bytes()
        (folder / SIGNATURE).write_bytes(key.sign(manifest, _COMMENT))
        pack(folder, self.folder / _PACKED)
        shutil.rmtree(place)
        self._public, self._files = key.public, _content(folder)
        files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
        own = [(str(one.relative_to(folder)), one.read_bytes()) for one in files]
        keys = [(_PUBLIC, f"untrusted comment: x\n{key.public.text}\n".encode())]
        halves = bytes(range(8)) + bytes(range(32)) + key.public.point
        secret = b"Ed\0\0B2".ljust(54, b"\0") + halves + bytes(32)
        keys.append((_SECRET, b"untrusted comment: x\n" + base64.b64encode(secret) + b"\n"))
        packed = [(_PACKED, (self.folder / _PACKED).read_bytes())]
        return [archive_of([*one, *keys], zipfile.ZIP_DEFLATED) for one in (own, packed)]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        members = dict(members_of(seed))
        names = [
            name for name in (SIGNATURE, SIGNATURE, _PACKED, _PUBLIC, _SECRET) if name in members
        ]
        name = rng.choice(names if rng.random() < 0.8 else [*members])
        lines = members[name].split(b"\n")
        match rng.randrange(6):
            case 0 if len(lines) > 1:  # another line, or the same one twice
                lines.insert(
                    rng.randrange(len(lines)), rng.choice((*lines, b"", b"\r", b" ", b"\0"))
                )
                members[name] = b"\n".join(lines)
            case 1 if name == SIGNATURE:  # bytes below base64
                at = rng.choice((1, 3))
                data = changed_bytes(base64.b64decode(lines[at]), rng)
                lines[at] = base64.b64encode(data)
                members[name] = b"\n".join(lines)
            case 2 if len(lines) > 1:  # one character of a line
                at = rng.randrange(len(lines))
                place = rng.randrange(len(lines[at]) + 1)
                other = rng.choice((b"A", b"/", b"=", b"==", b"\r", b" ", b"\x0b", b"\xff", b""))
                lines[at] = lines[at][:place] + other + lines[at][place + len(other) :]
                members[name] = b"\n".join(lines)
            case 3 if rng.random() < 0.3:
                members[name] = grown(members[name], rng)
            case 4 if rng.random() < 0.2:
                del members[name]
            case _:
                members[name] = changed_bytes(members[name], rng)
        return archive_of([*members.items()], zipfile.ZIP_DEFLATED)

    def check(self, data: bytes) -> str:
        place = self.folder / "input"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        members = members_of(data)
        bundle = place / (_PACKED if _PACKED in members else "model.hasten")
        for name, content in members.items():
            path = (place if name in _BESIDE else bundle) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        said = self._secret(place / _SECRET)
        try:
            if bundle.name == _PACKED:
                bundle = unpack(bundle, place / "model.hasten", trusted=place / _PUBLIC)
            with load(bundle, cache=False, trusted=place / _PUBLIC) as model:
                model.run(zeros(model.request))
        except HastenError as error:
            return f"{said}, {refused(error)}"
        if self._public not in keys_of(place / _PUBLIC):
            raise Fault("a key is trusted that signed nothing")
        if found := _differs(self._files, _content(bundle)):
            raise Fault(f"{found} was changed, and the bundle is trusted")
        return f"{said}, trusted"

    def _secret(self, path: Path) -> str:
        """Read the file of a secret key, which holds the one that it held before, or none."""
        try:
            key = secret_key(path)
        except HastenError as error:
            return refused(error)
        if key.public.point != self._public.point:
            raise Fault("another secret key was read than the one that was written")
        return "read"


def _content(folder: Path) -> dict[str, object]:
    """Return the content of a bundle's files; of its signature, all that is signed or signs."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    _, stated, comment, sealed, *_ = (line.rstrip(b"\r") for line in files[SIGNATURE].split(b"\n"))
    signature = (base64.b64decode(stated), comment, base64.b64decode(sealed))
    return {**files, SIGNATURE: signature}


def _differs(before: dict[str, object], now: dict[str, object]) -> str:
    """Return the name of a file that is another one now, or ""."""
    names = sorted({*before, *now})
    return next((name for name in names if before.get(name) != now.get(name)), "")
