"""Write the files that KServe and `docker build` need to serve bundles on Kubernetes."""

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

from hasten.bundle import MANIFEST, SIGNATURE, Manifest, read, unpacked
from hasten.bundle.folder import not_replaced
from hasten.bundle.requirements import packages, program_extras, version_of
from hasten.errors import InputError
from hasten.serving.cluster.templates import filled
from hasten.serving.models.opening import ModelSettings
from hasten.serving.protocol.origins import ANY
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
"""Pattern of a model's name that works as a folder, on a command line and in a URL."""
_DESERTED_S = 5
"""Time in which requests still reach a pod that is ending, until Kubernetes has updated all routes."""
_MARGIN_S = 10
_BASE_BYTES = 768 << 20
_TIMES_OPENED = 3
"""Memory of an open model as a multiple of its files' size, including the engine's own copies."""
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
    FOLDER/inferenceservice.yaml` serves it. Whole processors, and equal requests and limits, give the
    pod the QoS class Guaranteed, for which a node with the static CPU policy reserves processors:
    the certified latencies need them.

    Args:
        folder: Folder to write to; files that this function wrote there before are replaced.
        settings: Settings of the server, with the models to serve.
        image: Name of the image to build.
        name: Name of the InferenceService; by default derived from the first model's.
        memory_bytes: Memory of the pod; by default derived from the bundles' sizes and the limits.

    Raises:
        InputError: a container can't have these settings, the bundles need different versions of a
            package, or the folder holds other files.
    """
    _check(settings, image)
    manifests = [
        read(unpacked(model.path, model.settings.trusted), model.settings.trusted)
        for model in settings.models
    ]
    if any(manifest.sequences is not None for manifest in manifests):
        settings = settings.keeping_no_sequences()
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
        raise InputError(f"can't write {folder}: {not_replaced(error)}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check(settings: ServerSettings, image: str) -> None:
    """Check that a container can be served with these settings.

    Raises:
        InputError: a container can't have one of the settings.
    """
    if any(model.chain is not None for model in settings.models):
        raise InputError(
            "a chain can't be written for KServe: write its bundles, or serve the chain without "
            "KServe"
        )
    if not settings.http:
        raise InputError("KServe probes a pod over HTTP: give http= a port of at least 1")
    if settings.grpc == 0:
        raise InputError("a pod's ports must be fixed: give grpc= a port of at least 1")
    if settings.certificate is not None or settings.key is not None:
        raise InputError("KServe's gateway handles TLS: leave out tls_cert= and tls_key=")
    for name, file in (("token_file", settings.token_file), ("tokens", settings.tokens)):
        if file is not None:
            raise InputError(
                f"a token doesn't belong in an image: leave out {name}=, and let KServe's gateway "
                "authenticate clients"
            )
    if any(model.settings.webhook for model in settings.models):
        raise InputError(
            "a webhook's address may be a secret, which doesn't belong in an image: leave out "
            "webhook=, and give it to the pod as an argument that reads a Secret of Kubernetes"
        )
    if settings.shared_memory:
        raise InputError("a pod shares no memory with its clients: leave out shared_memory=")
    if any(model.settings.custom_ops for model in settings.models):
        raise InputError(
            "libraries with custom operators aren't copied: leave out custom_ops=, and build your own "
            "image on top of this one"
        )
    if not image or re.search(r"\s", image):
        raise InputError(f"{image!r} is not the name of an image; write it as registry/name:tag")
    for model in settings.models:
        if not _NAME.fullmatch(model.name):
            raise InputError(
                f"{model.name!r} can't be a folder's name in an image: serve it as "
                f"NAME={model.path}, with a name of letters, digits, spaces, periods, hyphens "
                "and underscores"
            )


def _dns_name(settings: ServerSettings) -> str:
    """Return a name that follows RFC 1035, as Kubernetes requires, with room for KServe's suffixes."""
    name = re.sub(r"[^a-z0-9]+", "-", settings.models[0].name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}"
    return name[:40].rstrip("-")


# -- what is in the image


def _place(model: ModelPlace) -> str:
    return f"{_MODELS}/{model.name}/{model.version}"


def _copy(model: ModelPlace, manifest: Manifest, goal: Path) -> None:
    folder = unpacked(model.path, model.settings.trusted)
    own = [name for name in (MANIFEST, SIGNATURE) if (folder / name).is_file()]
    for name in (*own, *sorted(manifest.files)):
        path = goal / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, path)
        path.chmod(0o644)  # for the container's own user


def requirements(manifests: Sequence[tuple[str, Manifest]]) -> list[str]:
    """Return the needed packages, sorted, in the versions that the certificates cover.

    Args:
        manifests: Name and manifest of each model.

    Raises:
        InputError: two models need different versions of a package.
        IntegrityError: a manifest states something that is not a version.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, manifest in manifests:
        for package, wanted in packages(manifest).items():
            other, before = found.setdefault(package, (name, wanted))
            if before != wanted:
                raise InputError(
                    f"{other!r} was measured with {package} {before}, {name!r} with {wanted}, "
                    "but an image can have only one version: write two images, or optimize the "
                    "models again"
                )
    return sorted(f"{package}=={wanted}" for package, (_, wanted) in found.items())


def _python(manifests: Sequence[tuple[str, Manifest]]) -> str:
    """Return the newest minor version of Python that the bundles were measured with."""
    found = [version_of(manifest, "python", "3.11").split(".")[:2] for _, manifest in manifests]
    return ".".join(max(found, key=lambda parts: [int(part) for part in parts if part.isdecimal()]))


def arguments(settings: ServerSettings) -> list[str]:
    """Return the arguments of `hasten serve` in the container that differ from their defaults."""
    model, limits = settings.models[0].settings, settings.limits
    plain, most = ModelSettings(), Limits()
    flags = ["--http", str(settings.http)]
    if settings.grpc is not None:
        flags += ["--grpc", str(settings.grpc)]
    for option, value, usual, text in (
        ("--deadline", model.deadline_ns, plain.deadline_ns, _seconds(model.deadline_ns)),
        ("--max-wait", model.most_wait_ns, plain.most_wait_ns, _seconds(model.most_wait_ns)),
        ("--max-batch", model.most_rows, plain.most_rows, str(model.most_rows)),
        ("--max-length", model.most_length, plain.most_length, str(model.most_length)),
        ("--sessions", model.sessions, plain.sessions, str(model.sessions)),
        ("--cache", model.cache_bytes, plain.cache_bytes, str(model.cache_bytes)),
        (
            "--max-sequences",
            model.most_sequences,
            plain.most_sequences,
            str(model.most_sequences),
        ),
        (
            "--sequence-bytes",
            model.sequence_bytes,
            plain.sequence_bytes,
            str(model.sequence_bytes),
        ),
        (
            "--sequence-idle",
            model.sequence_idle_ns,
            plain.sequence_idle_ns,
            _seconds(model.sequence_idle_ns),
        ),
        ("--shadow", model.shadow, plain.shadow, repr(model.shadow)),
        ("--shadow-limit", model.shadow_limit, plain.shadow_limit, repr(model.shadow_limit)),
        ("--on-alarm", model.on_alarm, plain.on_alarm, model.on_alarm),
        ("--monitor-state", model.monitor_state, plain.monitor_state, model.monitor_state),
        ("--max-body", limits.body_bytes, most.body_bytes, str(limits.body_bytes)),
        ("--sample-bytes", limits.sample_bytes, most.sample_bytes, str(limits.sample_bytes)),
        ("--max-connections", limits.connections, most.connections, str(limits.connections)),
        ("--max-stall", limits.stall_ns, most.stall_ns, _seconds(limits.stall_ns)),
        ("--drain", limits.drain_ns, most.drain_ns, _seconds(limits.drain_ns)),
    ):
        if value != usual:
            flags += [option, text]
    for key in model.trusted:
        flags += ["--trusted", key.text]
    for option, given in (
        ("--any-batch", model.any_batch),
        ("--no-standby", not model.standby),
        ("--allow-control", settings.control),
        ("--trace", settings.trace),
        ("--json-logs", settings.json_logs),
        ("--no-fairness", not limits.fair),
    ):
        if given:
            flags.append(option)
    return flags


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
    signing = ["sign"] if settings.models[0].settings.trusted else []
    programs = [extra for manifest in manifests for extra in program_extras(manifest)]
    pins = " \\\n    ".join(f'"{each}"' for each in requirements(named))
    return filled(
        _DOCKERFILE,
        python=_python(named),
        extras=",".join(dict.fromkeys(["serve", *signing, *programs])),
        hasten=version("hasten"),
        pins=pins,
        user=_USER,
        ports=" ".join(str(port) for port in (settings.http, settings.grpc) if port is not None),
        health=json.dumps(["python", "-c", ready]),
        entrypoint=json.dumps(
            ["hasten", "serve", "--host", "0.0.0.0", "--no-token", *_names(settings), *bundles]
        ),
        arguments=json.dumps(arguments(settings)),
    )


def _names(settings: ServerSettings) -> list[str]:
    """Return the flags for the server's names: any by default, since each gateway has names of its own."""
    return [word for name in settings.hosts or (ANY,) for word in ("--allow-host", name)]


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
            f"{name!r} can't be an InferenceService's name: use at most 40 lower-case letters, "
            "digits and hyphens, begin with a letter, and don't end with a hyphen"
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
    """Return the container's ports, with the names by which KServe tells their protocols."""
    return [
        {"containerPort": port, "name": name, "protocol": "TCP"}
        for name, port in (("http1", settings.http), ("h2c", settings.grpc))
        if port is not None
    ]


def _resources(
    settings: ServerSettings, manifests: Sequence[Manifest], memory_bytes: int | None
) -> dict[str, str]:
    """Return the processors and the memory of the pod."""
    if memory_bytes is None:
        files = sum(size for each in manifests for _, size in each.files.values())
        kept = max((model.settings.cache_bytes for model in settings.models), default=0)
        clients = settings.limits.bodies_bytes + settings.limits.sample_bytes
        memory_bytes = _BASE_BYTES + _TIMES_OPENED * files + kept + clients
    memory = math.ceil(memory_bytes / _MEMORY_STEP) * (_MEMORY_STEP >> 20)
    threads = max(manifest.target.threads for manifest in manifests)
    return {"cpu": str(threads), "memory": f"{memory}Mi"}


# -- the folder


def _check_replaceable(folder: Path) -> None:
    """Check that replacing the folder loses no other files.

    Raises:
        InputError: the folder holds something that `write_kserve` didn't write.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder} exists and is not a folder; give another path")
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
            f"{folder} contains something that `hasten serve --write-kserve` didn't write; give "
            "another "
            "folder, or empty it"
        )


def _swap(new: Path, folder: Path) -> None:
    """Move a new folder to its final path, replacing an old one."""
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
