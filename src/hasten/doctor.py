"""What this machine has, and what each missing extra would add."""

from __future__ import annotations

import importlib.util

from hasten.engines.base import Engine
from hasten.errors import InputError
from hasten.records import load_object
from hasten.target import Target

_EXTRAS = {
    "optimize": (
        ("nncf", "onnx", "onnxslim", "scipy", "rich", "PIL", "yaml"),
        "search and certify",
    ),
    "torch": (("torch", "onnxscript"), "models from PyTorch"),
    "keras": (("keras",), "models from Keras 3"),
}


def examine() -> list[tuple[str, str]]:
    """Return name and finding, in the order to print them."""
    target = Target.host()
    cpus = ",".join(map(str, target.cpus))
    findings = [
        ("processor", target.processor),
        (
            "cores",
            f"{len(target.cpus)} that this process may use ({cpus}), {target.threads} thread(s)",
        ),
        ("memory", f"{target.memory_bytes / 2**30:.1f} GiB that this process may use"),
        ("instructions", " ".join(target.isa) or "none that matter"),
    ]
    for name in ("onnxruntime", "openvino"):
        kind: type[Engine] = load_object(Engine.registry[name])
        try:
            findings.append((name, kind.version()))
        except InputError as error:
            findings.append((name, f"missing: {error}"))
    for extra, (modules, adds) in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        findings.append(
            (
                f"[{extra}]",
                "installed"
                if not missing
                else f"missing: pip install 'hasten[{extra}]' adds {adds}",
            )
        )
    return findings
