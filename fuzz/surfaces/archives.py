"""Archives of arrays, of torch's programs and weights, and of scikit-learn's models: their members are changed."""

from __future__ import annotations

import io
import json
import random
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes, changed_leaves, changed_record, grown
from fuzz.outcomes import refused
from fuzz.surface import Fault, Surface

from hasten.errors import HastenError
from hasten.inputs.data.npz import open_npz
from hasten.inputs.data.ragged import save_ragged

_SHAPES = (
    "(4, 3)",
    "(-1,)",
    "(0, 3)",
    "(10**9, 10**9)",
    "(4,)",
    "()",
    "(4, 3, " + "1, " * 40 + ")",
)
_TYPES = (
    "<f4",
    ">f8",
    "|O",
    "|S9",
    "<U900000",
    "<c16",
    "|b1",
    "[('a','<f4')]",
    "<M8[s]",
    "<f2",
    "V8",
)


def members_of(data: bytes) -> dict[str, bytes]:
    """Return the members of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def archive_of(members: list[tuple[str, bytes]], kind: int) -> bytes:
    """Return an archive of members, of which several may have one name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of equal names
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return file.getvalue()


class Npz(Surface):
    """Archives of arrays."""

    name = "npz"

    def seeds(self) -> list[bytes]:
        from sklearn.datasets import load_iris

        iris = load_iris()
        x, labels = iris.data[::10].astype(np.float32), iris.target[::10]
        plain, packed, ragged = io.BytesIO(), io.BytesIO(), self.folder / "ragged.npz"
        np.savez(plain, x=x, labels=labels)
        np.savez_compressed(packed, x=np.asfortranarray(x), labels=labels, groups=labels % 2)
        save_ragged(ragged, {"x": [row[: 1 + at % 4] for at, row in enumerate(x)]}, labels)
        return [plain.getvalue(), packed.getvalue(), ragged.read_bytes()]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.3:
            return changed_bytes(seed, rng)
        members = list(members_of(seed).items())
        at = rng.randrange(len(members))
        name, data = members[at]
        match rng.randrange(7):
            case 0:
                members[at] = (name, changed_bytes(data, rng))
            case 1:
                members[at] = (name, grown(data, rng, rng.choice((1 << 16, 1 << 24))))
            case 2:
                members.append((rng.choice(("y.npy", name, "../x.npy", "x", "x.shapes.npy")), data))
            case 3:
                del members[at]
            case _:
                members[at] = (name, _header(rng) + data[128:])
        kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        return archive_of(members, kind)

    def check(self, data: bytes) -> str:
        path = self.folder / "input.npz"
        path.write_bytes(data)
        try:
            dataset = open_npz(path, ["x"])
            for number in {0, len(dataset) - 1}:
                dataset.inputs([number])
                dataset.content_hash(number)
        except HastenError as error:
            return refused(error)
        return "read"


def _header(rng: random.Random) -> bytes:
    """Return the head of an array that states any shape and type."""
    shape, kind = rng.choice(_SHAPES), rng.choice(_TYPES)
    kind = kind if kind.startswith("[") else repr(kind)
    text = f"{{'descr': {kind}, 'fortran_order': {rng.random() < 0.2}, 'shape': {shape}}}"
    if rng.random() < 0.1:
        text = rng.choice(("[" * 5000, "{'a': " * 3000, "__import__('os')", "1" * 9000))
    whole = text.encode()[:60_000].ljust(117) + b"\n"
    return (
        b"\x93NUMPY"
        + bytes([rng.choice((1, 1, 1, 2, 9)), 0])
        + len(whole).to_bytes(2, "little")
        + whole
    )


_HARMS = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "pty.spawn",
)
"""Events that Python tells of where a program begins another one, or reaches out."""
_OWN = (("lscpu",),)
"""Programs that a library runs whatever the file: joblib counts processors."""
_TARGETS = (
    *(
        "torch.os.system",
        "builtins.eval",
        "torch.ops.aten.save.default",
        "torch.ops.aten.add.Tensor",
    ),
    *(
        "_operator.add",
        "math.ceil",
        "torch.ops.aten.from_file.default",
        "__import__('os').system('a')",
    ),
    *(
        "Symbol('s0')",
        "as_tensor",
        "as_int",
        "as_custom_obj",
        "x",
        "weight_0",
        "collections.OrderedDict",
    ),
)


class Programs(Surface):
    """Exported programs; what is loaded may begin no other program."""

    name = "pt2"
    most_s = 5.0
    most_mib = 128

    def seeds(self) -> list[bytes]:
        import torch

        torch.manual_seed(0)
        axes = ({0: torch.export.Dim("n")},)
        net, x = torch.nn.Linear(4, 3).eval(), torch.zeros(2, 4)
        program = torch.export.export(net, (x,), dynamic_shapes=axes)
        file = io.BytesIO()
        torch.export.save(program, file)
        self._read(file.getvalue())  # what torch imports at first, no process need import again
        return [file.getvalue()]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.15:
            return changed_bytes(seed, rng)
        members = list(members_of(seed).items())
        texts = [at for at, (name, _) in enumerate(members) if name.endswith(".json")]
        at = rng.choice(texts if rng.random() < 0.85 else range(len(members)))
        name, data = members[at]
        try:
            change = changed_leaves if rng.random() < 0.7 else changed_record
            data = json.dumps(change(json.loads(data), rng, _TARGETS)).encode()
        except ValueError:
            data = changed_bytes(data, rng)
        members[at] = (name, data)
        return archive_of(members, zipfile.ZIP_STORED)

    def check(self, data: bytes) -> str:
        return quietly(lambda: self._read(data), "loaded")

    def _read(self, data: bytes) -> None:
        from hasten.inputs.models.torch import load_program

        path = self.folder / "input.pt2"
        path.write_bytes(data)
        load_program(path)


class Weights(Surface):
    """Checkpoints of torch; what is loaded may begin no other program."""

    name = "weights"
    most_s = 5.0
    most_mib = 128

    def seeds(self) -> list[bytes]:
        import torch

        torch.manual_seed(0)
        plain, within = io.BytesIO(), io.BytesIO()
        stored = torch.nn.Linear(4, 3).state_dict()
        torch.save(stored, plain)
        torch.save({"epoch": 3, "state_dict": {**stored, "count": torch.arange(5)}}, within)
        return [plain.getvalue(), within.getvalue()]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.15:
            return changed_bytes(seed, rng)
        members = list(members_of(seed).items())
        pickles = [at for at, (name, _) in enumerate(members) if name.endswith(".pkl")]
        at = rng.choice(pickles if rng.random() < 0.8 else range(len(members)))
        name, data = members[at]
        if rng.random() < 0.2:
            data = data.replace(*rng.choice(_CALLS))
        else:
            data = rng.choice((changed_bytes, grown))(data, rng)
        members[at] = (name, data)
        return archive_of(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))

    def check(self, data: bytes) -> str:
        from hasten.inputs.models.named import read_weights

        path = self.folder / "input.pth"
        path.write_bytes(data)
        return quietly(lambda: read_weights(path), "read")


class Skops(Surface):
    """scikit-learn's models as .skops files; what is loaded may begin no other program."""

    name = "skops"
    most_s = 10.0
    most_mib = 160

    def seeds(self) -> list[bytes]:
        from sklearn.datasets import load_iris
        from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from skops.io import dumps

        x, y = load_iris(return_X_y=True)
        fitted = (
            RandomForestClassifier(2, max_depth=3, random_state=0),
            make_pipeline(StandardScaler(), LogisticRegression()),
            HistGradientBoostingClassifier(max_iter=2, max_depth=2, random_state=0),
        )
        return [dumps(each.fit(x, y)) for each in fitted]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.1:
            return changed_bytes(seed, rng)
        members = list(members_of(seed).items())
        schema = [at for at, (name, _) in enumerate(members) if name.endswith(".json")]
        at = rng.choice(schema if rng.random() < 0.6 else range(len(members)))
        name, data = members[at]
        if name.endswith(".json"):
            change = changed_leaves if rng.random() < 0.7 else changed_record
            data = json.dumps(change(json.loads(data), rng, _CLASSES)).encode()
        elif rng.random() < 0.3:
            data = _header(rng) + data[128:]
        else:
            data = changed_bytes(data, rng)
        members[at] = (name, data)
        return archive_of(members, zipfile.ZIP_STORED)

    def check(self, data: bytes) -> str:
        path = self.folder / "input.skops"
        path.write_bytes(data)
        return quietly(lambda: self._written(path), "written")

    def _written(self, path: Path) -> None:
        from hasten.inputs.models.source import find_model

        find_model(path).export(self.folder)


def quietly(read: Callable[[], object], word: str) -> str:
    """Read a file, and hear whether it makes anything happen."""
    _watch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except HastenError as error:
        return refused(error)
    finally:
        if _heard:
            raise Fault(f"the file made this happen: {_heard.pop()}")
    return word


_CALLS = (
    (b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem"),
    (b"collections\nOrderedDict", b"builtins\neval"),
    (b"FloatStorage", b"os.system"),
    (b"torch\n", b"subprocess\n"),
)
"""What a pickle names, and what it might name instead."""
_CLASSES = (
    "sklearn.tree._tree.Tree",
    "sklearn.tree._classes.DecisionTreeClassifier",
    "numpy.ndarray",
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "collections.OrderedDict",
    "ObjectNode",
    "FunctionNode",
    "NdArrayNode",
)
_heard: list[str] = []


def _watch() -> None:
    """Keep the events of this process that a file may not cause; once for each process."""
    if not hasattr(_watch, "begun"):
        _watch.begun = True  # type: ignore[attr-defined]
        sys.addaudithook(_hear)


def _hear(event: str, arguments: Any) -> None:
    if event in _HARMS and arguments[:1] not in _OWN:
        _heard.append(f"{event}{arguments!r:.200}")
