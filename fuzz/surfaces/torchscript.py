"""Files of `torch.jit.save`: their code, pickles and other members are changed."""

from __future__ import annotations

import io
import random
import warnings
import zipfile

import numpy as np
from fuzz.mutation import changed_bytes, grown
from fuzz.surface import Surface
from fuzz.surfaces.archives import archive_of, members_of, quietly

_LINES = (
    'x = torch.from_file("a", True, 4)',
    'ops.aten.save("a", x)',
    'torch.save("a")',
    "x = torch.zeros([1048576, 1048576])",
    "raise AssertionError",
    "x = torch.view(x, [-1])",
    "_1 = annotate(List[Tensor], [])",
    "x = ops.prim.NumToTensor(3)",
    "x = uninitialized(Tensor)",
    "print(x)",
)
"""Lines of code that a function may begin with."""
_WORDS = (
    *(b"__torch__", b"Tensor", b"int", b"List", b"Optional", b"weight", b"forward", b"self"),
    *(b"torch", b"ops.aten", b"CONSTANTS.c0", b"4", b"-1", b"9223372036854775807", b"None"),
)
_OPCODES = b"(.0]})abcdehjlpqrstuFGIJKLMNQRTVX\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8e\x94"
"""Instructions of pickles."""


class TorchScript(Surface):
    """Modules of TorchScript, which are loaded and exported; they may begin no other program."""

    name = "torchscript"
    most_s = 5.0
    most_mib = 160

    def seeds(self) -> list[bytes]:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(1)
        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
        files = [io.BytesIO(), io.BytesIO()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; its files aren't gone
            torch.jit.save(torch.jit.script(net), files[0])
            torch.jit.save(torch.jit.trace(net, torch.zeros(2, 4)), files[1])  # type: ignore[no-untyped-call]
            self._export(
                files[0].getvalue()
            )  # what torch imports at first, no process imports again
        return [file.getvalue() for file in files]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if rng.random() < 0.1:
            return changed_bytes(seed, rng)
        members = list(members_of(seed).items())
        told = [at for at, (name, _) in enumerate(members) if name.endswith((".py", ".pkl"))]
        at = rng.choice(told if rng.random() < 0.9 else range(len(members)))
        name, data = members[at]
        if rng.random() < 0.05:
            name = rng.choice(members)[0]
        elif name.endswith(".py"):
            data = _changed_code(data, rng)
        elif name.endswith(".pkl") and rng.random() < 0.5:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([rng.choice(_OPCODES)]) + data[place + 1 :]
        else:
            data = rng.choice((changed_bytes, changed_bytes, grown))(data, rng)
        members[at] = (name, data)
        return archive_of(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))

    def check(self, data: bytes) -> str:
        return quietly(lambda: self._export(data), "exported")

    def _export(self, data: bytes) -> None:
        from hasten.inputs.models import torchscript

        path = self.folder / "input.pt"
        path.write_bytes(data)
        torchscript.export(torchscript.load(path), {"input": np.ones(4, np.float32)}, self.folder)


def _changed_code(code: bytes, rng: random.Random) -> bytes:
    """Return TorchScript in which a line was put in, moved or repeated, or a word is another one."""
    lines = code.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            places = [number for number, line in enumerate(lines) if line.endswith(b":")]
            begin = rng.choice(places) if places else at
            lines.insert(begin + 1, b"    " + rng.choice(_LINES).encode())
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = rng.choice(_WORDS)
            lines[at] = b" ".join(words)
        case 3:
            return grown(code, rng)
        case _:
            return changed_bytes(code, rng)
    return b"\n".join(lines)
