"""Serve on Kubernetes: what KServe and `docker build` need, written into a folder."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hasten.bundle import MANIFEST, Manifest, read
from hasten.bundle.requirements import packages, version_of
from hasten.errors import InputError
from hasten.serving.cluster.templates import filled
from hasten.serving.models.opening import ModelSettings
from hasten.serving.settings import ModelPlace, ServerSettings
from hasten.serving.state import Limits

_SERVICE, _DOCKERFILE, _IGNORED, _MODELS = (
    "inferenceservice.yaml",
    "Dockerfile",
    ".dockerignore",
    "models",
)
_MARK = "# Written by `hasten serve --write-kserve`"
_USER = 10001
_NAME = re.compile(r"[^\W_][\w .+-]*")
"""Of a model, as a folder, a word of a command line and a part of an address."""
_DESERTED_S = 5
"""Until Kubernetes has told everybody that a pod is going, requests still come to it."""
_MARGIN_S = 10
_BASE_BYTES = 768 << 20
_TIMES_OPENED = 3
"""An open model takes this many times its files, with what the engine lays out anew."""
_MEMORY_STEP = 256 << 20


def write_kserve(
    folder: Path,
    settings: ServerSettings,
    *,
    image: str = "hasten-models:latest",
    name: str = "",
    memory_bytes: int | None = None,
) -> None:
    """Write an InferenceService, a Dockerfile and the bundles that it copies.

    `docker build --tag IMAGE FOLDER` makes the image, `kubectl apply --filename
    FOLDER/inferenceservice.yaml` serves it. Whole processors and as much memory at least as at most
    make the pod's class Guaranteed, for which a node with the static CPU policy sets processors
    apart: latencies as certified need them.

    Args:
        folder: Where to; what this wrote there before is replaced.
        settings: What to serve, and how.
        image: What the built image is called.
        name: Of the InferenceService; by default after the first model.
        memory_bytes: What the pod gets; by default by the size of the bundles and the limits.

    Raises:
        InputError: settings that a container can't have, bundles that want different engines, or
            something else in the folder.
    """
    _check(settings, image)
    manifests = [read(model.path) for model in settings.models]
    service = _service(settings, manifests, image, name or _dns_name(settings), memory_bytes)
    _check_replaceable(folder)
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        for model, manifest in zip(settings.models, manifests, strict=True):
            _copy(model, manifest, beside / _place(model))
        (beside / _IGNORED).write_text(f"*\n!{_MODELS}\n")
        (beside / _DOCKERFILE).write_text(_dockerfile(settings, manifests))
        (beside / _SERVICE).write_text(service)
        _swap(beside, folder)
    except OSError as error:
        raise InputError(f"can't write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check(settings: ServerSettings, image: str) -> None:
    """Check that a container can be served like this.

    Raises:
        InputError: it can't.
    """
    if not settings.http:
        raise InputError("KServe looks after a pod by HTTP: give --http a port from 1")
    if settings.grpc == 0:
        raise InputError("a pod's ports are written down: give --grpc a port from 1")
    if settings.certificate is not None or settings.key is not None:
        raise InputError("KServe's gateway encrypts: leave --tls-cert and --tls-key out")
    if settings.token_file is not None:
        raise InputError(
            "a token doesn't belong into an image: leave --token-file out, and let KServe's gateway "
            "check who comes"
        )
    if settings.shared_memory:
        raise InputError("a pod shares no memory with its clients: leave --shared-memory out")
    if any(model.settings.custom_ops for model in settings.models):
        raise InputError(
            "libraries of operators aren't copied: build an image of your own upon this one, and "
            "leave --custom-ops out"
        )
    if not image or re.search(r"\s", image):
        raise InputError(f"{image!r} is no name of an image; write it as registry/name:tag")
    for model in settings.models:
        if not _NAME.fullmatch(model.name):
            raise InputError(
                f"{model.name!r} can't be a folder's name in an image: serve it as NAME={model.path}, "
                "of letters, digits, spaces, points, hyphens and underscores"
            )


def _dns_name(settings: ServerSettings) -> str:
    """A name that Kubernetes takes: RFC 1035, and short enough for what KServe adds."""
    name = re.sub(r"[^a-z0-9]+", "-", settings.models[0].name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}"
    return name[:40].rstrip("-")


# -- what is in the image


def _place(model: ModelPlace) -> str:
    return f"{_MODELS}/{model.name}/{model.version}"


def _copy(model: ModelPlace, manifest: Manifest, goal: Path) -> None:
    for name in (MANIFEST, *sorted(manifest.files)):
        path = goal / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.path / name, path)
        path.chmod(0o644)  # for the container's own user


def requirements(manifests: Sequence[tuple[str, Manifest]]) -> list[str]:
    """The packages at the versions that the certificates cover, in order.

    Args:
        manifests: Each model's name and manifest.

    Raises:
        InputError: two models want different ones.
        IntegrityError: a manifest says something else than a version.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, manifest in manifests:
        for package, wanted in packages(manifest).items():
            other, before = found.setdefault(package, (name, wanted))
            if before != wanted:
                raise InputError(
                    f"{other!r} was measured with {package} {before}, {name!r} with {wanted}: one "
                    "image has one; write two, or optimize them anew"
                )
    return sorted(f"{package}=={wanted}" for package, (_, wanted) in found.items())


def _python(manifests: Sequence[tuple[str, Manifest]]) -> str:
    """The Python that was measured with, by its minor version."""
    found = [version_of(manifest, "python", "3.11").split(".")[:2] for _, manifest in manifests]
    return ".".join(max(found, key=lambda parts: [int(part) for part in parts if part.isdecimal()]))


def arguments(settings: ServerSettings) -> list[str]:
    """What `hasten serve` is told in the container, beside the bundles; what is by default isn't."""
    model, limits = settings.models[0].settings, settings.limits
    plain, most = ModelSettings(), Limits()
    told = ["--http", str(settings.http)]
    if settings.grpc is not None:
        told += ["--grpc", str(settings.grpc)]
    for option, value, usual, text in (
        ("--deadline", model.deadline_ns, plain.deadline_ns, _seconds(model.deadline_ns)),
        ("--max-wait", model.most_wait_ns, plain.most_wait_ns, _seconds(model.most_wait_ns)),
        ("--max-batch", model.most_rows, plain.most_rows, str(model.most_rows)),
        ("--sessions", model.sessions, plain.sessions, str(model.sessions)),
        ("--cache", model.cache_bytes, plain.cache_bytes, str(model.cache_bytes)),
        ("--shadow", model.shadow, plain.shadow, repr(model.shadow)),
        ("--max-body", limits.body_bytes, most.body_bytes, str(limits.body_bytes)),
        ("--max-connections", limits.connections, most.connections, str(limits.connections)),
        ("--drain", limits.drain_ns, most.drain_ns, _seconds(limits.drain_ns)),
    ):
        if value != usual:
            told += [option, text]
    for option, given in (
        ("--no-standby", not model.standby),
        ("--allow-control", settings.control),
        ("--trace", settings.trace),
        ("--json-logs", settings.json_logs),
    ):
        if given:
            told.append(option)
    return told


def _seconds(span_ns: int) -> str:
    return f"{span_ns / 1e9:.9f}".rstrip("0").rstrip(".") + "s"


def _dockerfile(settings: ServerSettings, manifests: Sequence[Manifest]) -> str:
    named = [
        (model.name, manifest) for model, manifest in zip(settings.models, manifests, strict=True)
    ]
    bundles = [f"{each.name}:{each.version}=/{_place(each)}" for each in settings.models]
    ready = (
        "import urllib.request; "
        f"urllib.request.urlopen('http://127.0.0.1:{settings.http}/v2/health/ready', timeout=2)"
    )
    pins = " \\\n    ".join(f'"{each}"' for each in requirements(named))
    return filled(
        _DOCKERFILE,
        python=_python(named),
        hasten=version("hasten"),
        pins=pins,
        user=_USER,
        ports=" ".join(str(port) for port in (settings.http, settings.grpc) if port is not None),
        health=json.dumps(["python", "-c", ready]),
        entrypoint=json.dumps(["hasten", "serve", "--host", "0.0.0.0", *bundles]),
        arguments=json.dumps(arguments(settings)),
    )


# -- what Kubernetes is told


def _service(
    settings: ServerSettings,
    manifests: Sequence[Manifest],
    image: str,
    name: str,
    memory_bytes: int | None,
) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise InputError(
            f"{name!r} can't be an InferenceService's name: it has at most 40 lower-case letters, "
            "digits and hyphens, a letter first and no hyphen last"
        )
    drain_s = math.ceil(settings.limits.drain_ns / 1e9)
    return filled(
        _SERVICE,
        name=json.dumps(name),
        http=settings.http,
        grace_s=_DESERTED_S + drain_s + _MARGIN_S,
        deserted_s=_DESERTED_S,
        user=_USER,
        image=json.dumps(image),
        arguments=json.dumps(arguments(settings)),
        ports=json.dumps(_ports(settings)),
        resources=json.dumps(_resources(settings, manifests, memory_bytes)),
    )


def _ports(settings: ServerSettings) -> list[dict[str, Any]]:
    """Ports under the names by which KServe knows what is spoken there."""
    return [
        {"containerPort": port, "name": name, "protocol": "TCP"}
        for name, port in (("http1", settings.http), ("h2c", settings.grpc))
        if port is not None
    ]


def _resources(
    settings: ServerSettings, manifests: Sequence[Manifest], memory_bytes: int | None
) -> dict[str, str]:
    """What the pod gets."""
    if memory_bytes is None:
        files = sum(size for each in manifests for _, size in each.files.values())
        kept = sum(model.settings.cache_bytes for model in settings.models)
        memory_bytes = _BASE_BYTES + _TIMES_OPENED * files + kept + settings.limits.bodies_bytes
    memory = math.ceil(memory_bytes / _MEMORY_STEP) * (_MEMORY_STEP >> 20)
    threads = max(manifest.target.threads for manifest in manifests)
    return {"cpu": str(threads), "memory": f"{memory}Mi"}


# -- the folder


def _check_replaceable(folder: Path) -> None:
    """Check that nothing would be lost.

    Raises:
        InputError: what is there wasn't written by this.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} exists and is no folder; give another --write-kserve")
    names = {each.name for each in folder.iterdir()}
    if not names:
        return
    known = {_SERVICE, _DOCKERFILE, _IGNORED, _MODELS}
    ours = names <= known and all(
        (folder / each).is_file() and (folder / each).read_bytes().startswith(_MARK.encode())
        for each in (_SERVICE, _DOCKERFILE)
    )
    if not ours:
        raise InputError(
            f"{folder} holds something that `--write-kserve` didn't write; give another folder, or "
            "empty it"
        )


def _swap(new: Path, folder: Path) -> None:
    """Put a folder in its place."""
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old is not None:
            old.rename(folder)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
