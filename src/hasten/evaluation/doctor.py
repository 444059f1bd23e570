"""Inventory of this machine, and of what each missing extra would add."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hasten.core.devices import FAMILIES, find_target
from hasten.core.target import Target
from hasten.core.words import amount
from hasten.engines.base import Engine
from hasten.engines.installed import sorted_out, tried_on, unsuited
from hasten.engines.onnxruntime import installation
from hasten.errors import InputError

_EXTRAS = {
    "quick": (("onnx", "onnxruntime", "rich", "scipy"), "search and certify, with ONNX Runtime"),
    "optimize": (
        ("nncf", "onnx", "onnxslim", "scipy", "matplotlib", "rich", "PIL", "yaml"),
        "search and certify",
    ),
    "tabular": (
        ("catboost", "lightgbm", "sklearn", "skl2onnx", "skops"),
        "models of rows, from scikit-learn, LightGBM and CatBoost",
    ),
    "xgboost": (("xgboost",), "models of XGBoost"),
    "torch": (
        ("onnx2pytorch", "onnxscript", "timm", "torch", "torch_pruning", "torchvision"),
        "models from PyTorch",
    ),
    "keras": (("keras",), "models from Keras 3"),
    "litert": (("ai_edge_litert", "ai_edge_quantizer"), "LiteRT, and int8 for it"),
    "edge": (
        ("ai_edge_litert", "ai_edge_quantizer", "coremltools", "onnx2coreml", "onnxruntime_qnn"),
        "models for Core ML, Qualcomm chips and LiteRT elsewhere",
    ),
    "fpga": (("da4ml", "hgq", "keras", "jax"), "designs for FPGAs"),
    "gpu": (("cuda", "tensorrt_rtx_bindings", "torch"), "NVIDIA GPUs"),
    "tpu": (("jax", "libtpu", "torchax"), "models for Google's TPUs, compiled here"),
    "serve": (
        ("grpc", "httptools", "orjson", "prometheus_client", "uvloop"),
        "the server",
    ),
    "sign": (("nacl",), "signed bundles"),
    "video": (("av",), "streams for hasten watch"),
}


def examine(*, ceilings: bool = False) -> list[tuple[str, str]]:
    """Return names and findings, in the order to print them.

    Args:
        ceilings: Whether to measure what the machine can do at all, which takes about ten seconds.

    Raises:
        InputError: the ceilings can't be measured.
    """
    target = Target.host()
    cpus = ",".join(map(str, target.cpus))
    findings = [
        ("processor", target.processor),
        (
            "cores",
            f"{len(target.cpus)} that this process may use ({cpus}), {amount(target.threads, 'thread')}",
        ),
        ("memory", f"{target.memory_bytes / 2**30:.1f} GiB that this process may use"),
        ("instructions", " ".join(target.isa) or "none that matter"),
    ]
    for name in tried_on("host"):
        try:
            findings.append((name, Engine.member(name).version()))
        except InputError as error:
            findings.append((name, f"missing: {error}"))
    if wrong := installation.fault():
        findings.append(("conflict", wrong))
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
    findings += [(name, target_in_words(name)) for name in FAMILIES]
    return [*findings, *(_ceilings(target) if ceilings else ())]


def target_in_words(name: str) -> str:
    """Say whether a device is here, whether models can be made for it here, or what that takes.

    Args:
        name: Name of the device's family: "cuda", "fpga", ...
    """
    family, target = FAMILIES[name], find_target(name)
    names = {Engine.member(engine): engine for engine in tried_on(name)}
    found, missing = sorted_out(tuple(names.values()), target)
    ready = []
    for kind in found:
        try:
            kind.check_tools(target)
            ready.append(f"{names[kind]} {kind.version()}")
        except InputError as error:
            missing.append(str(error))
    here = target.kind == "attached"
    if ready:
        made_by = "; ".join((", ".join(ready), *unsuited(target)))
        return f"{family.noun}, {'present' if here else 'compile-only'}: {made_by}"
    if here:
        return f"{family.noun}, present, but nothing installed makes models for it: {'; '.join(missing)}"
    return f"{family.noun}, absent: {missing[0]}"


def _ceilings(target: Target) -> Iterator[tuple[str, str]]:
    """Measure and yield the ceilings of the machine."""
    from hasten.measure.ceilings import measure

    with tempfile.TemporaryDirectory() as folder:
        found = measure(target, Path(folder))
    yield "ceilings", f"the highest rates measured with {amount(found.threads, 'thread')} at once"
    for precision, rate in found.operations_per_s.items():
        yield (
            f"  {precision}",
            f"{rate / 1e9:.0f} billion operations/s ({found.reached_by[precision]})",
        )
    for level in found.levels:
        size = "" if level.size_bytes is None else f", {level.size_bytes / 2**20:.3g} MiB"
        copied, read = level.copied_bytes_per_s / 1e9, level.read_bytes_per_s / 1e9
        yield f"  {level.name}", f"{copied:.1f} GB/s copied, {read:.1f} GB/s read{size}"
    yield "  empty call", f"{found.empty_call_ns / 1e3:.1f} µs"
