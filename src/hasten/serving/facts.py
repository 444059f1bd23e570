"""Describe the server and its models in the protocol's JSON, from which gRPC's messages are made."""

from __future__ import annotations

from typing import Any

from hasten.bundle.covered import listed
from hasten.core.tensors import TensorSpec
from hasten.core.versions import installed_version
from hasten.serving.models.repository import Registered, Repository
from hasten.serving.models.served import ServedModel, Step
from hasten.serving.models.statistics import Duration, Statistics
from hasten.serving.monitoring.watch import Watch
from hasten.serving.protocol.datatypes import datatype_of
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import DECISION, RAW

SERVER = "hasten"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "sequence",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


def server_metadata() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    version = installed_version("hasten") or "unknown"
    return {"name": SERVER, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """Return a model's versions, inputs and outputs; open dimensions are -1."""
    return {
        "name": model.name,
        "versions": versions,
        "platform": model.platform,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
    }


def monitor(model: ServedModel) -> dict[str, Any]:
    """Return what a model's monitor knows.

    Raises:
        ProtocolError: the model isn't watched.
    """
    return {"model": model.name, "version": model.version, **watch_of(model).facts()}


def watch_of(model: ServedModel) -> Watch:
    """Return a model's monitor.

    Raises:
        ProtocolError: the model isn't watched.
    """
    if model.watch is None:
        raise ProtocolError(
            Kind.NOT_FOUND,
            f"the model {model.name!r} isn't watched: start the server with --shadow, such as 1%",
        )
    return model.watch


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": _dims(spec.shape)}


def _dims(shape: tuple[int | str, ...]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def model_config(model: ServedModel) -> dict[str, Any]:
    """Return a model's configuration in Triton's form."""
    skip = 1 if model.most_rows else 0
    latencies = model.opened.latencies
    config: dict[str, Any] = {
        "name": model.name,
        "platform": model.platform,
        "backend": SERVER,
        "version_policy": {"all": {}},
        "max_batch_size": model.most_rows,
        "input": [
            {
                "name": spec.name,
                "data_type": _type(spec),
                "format": "FORMAT_NONE",
                "dims": _dims(spec.shape)[skip:],
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
            }
            for spec in model.inputs
        ],
        "output": [
            {
                "name": spec.name,
                "data_type": _type(spec),
                "dims": _dims(spec.shape)[skip:],
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for spec in model.outputs
        ],
        "instance_group": [
            {
                "name": model.name,
                "kind": "KIND_CPU",
                "count": len(model.opened.sessions),
                "gpus": [],
            }
        ],
        "default_model_filename": "",
        "parameters": {
            name: {"string_value": text}
            for name, text in {
                "answers": model.answers,
                "status": model.opened.manifest.status,
                "why": model.opened.manifest.why,
                **({"device": model.opened.instead} if model.opened.instead else {}),
                **_certified(model),
            }.items()
        },
        "response_cache": {"enable": model.cache is not None},
        "model_transaction_policy": {"decoupled": False},
    }
    if model.sequences is not None:
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": model.sequences.idle_ns // 1000,
            "state": [
                {"input_name": one, "output_name": other} for one, other in model.sequences.states
            ],
        }
    elif model.steps:
        config["platform"] = "ensemble"
        config["ensemble_scheduling"] = {"step": [_step(model, one) for one in model.steps]}
    elif model.most_rows > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": sorted({size for size in latencies.first[1:] if size > 1}),
            "max_queue_delay_microseconds": 0,
        }
    return config


def _step(model: ServedModel, step: Step) -> dict[str, Any]:
    """Return a model that a chain asks, as a step of an ensemble."""
    return {
        "model_name": step.model,
        "model_version": int(model.version),
        "input_map": {RAW: step.source},
        "output_map": {DECISION: step.node},
    }


def _certified(model: ServedModel) -> dict[str, str]:
    """Return the batch sizes that a certified model's certificate covers; nothing for others."""
    covered = model.opened.first.certified_batches
    if covered is None or model.steps:
        return {}
    others = [size for size in model.opened.sizes if size not in covered]
    beyond = f"; not certified at {listed(others)}, which are formed too" if others else ""
    return {"certified_batch_sizes": f"{listed(covered)}{beyond}"}


def _type(spec: TensorSpec) -> str:
    datatype = datatype_of(spec.dtype)
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def model_statistics(models: list[ServedModel]) -> dict[str, Any]:
    """Return models' statistics in the form of Triton's extension; times are in nanoseconds."""
    return {"model_stats": [_statistics(model) for model in models]}


def _statistics(model: ServedModel) -> dict[str, Any]:
    counted: Statistics = model.statistics
    totals = counted.totals
    # A chain has no queue. Triton's load generator takes a model without this count for one that nobody asked.
    queue = Duration(totals["success"].count) if model.steps else totals["queue"]
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counted.last_ns // 1_000_000,
        "inference_count": counted.rows,
        "execution_count": counted.executions,
        "inference_stats": {
            name: _duration(duration)
            for name, duration in {
                "success": totals["success"],
                "fail": counted.fail,
                "queue": queue,
                "compute_input": totals["compute_input"],
                "compute_infer": totals["compute_infer"],
                "compute_output": totals["compute_output"],
                "cache_hit": counted.cache_hit,
                "cache_miss": counted.cache_miss,
            }.items()
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for rows, batch in sorted(counted.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}


def repository_index(repository: Repository, *, ready: bool) -> list[dict[str, str]]:
    """Return the registered models and their states; with `ready`, only those that are ready."""
    return [
        {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}
        for one in repository
        if one.state == "READY" or not ready
    ]


def found(repository: Repository, name: str, number: str) -> list[ServedModel]:
    """Return the versions whose statistics are asked for: one, all of a model, or all versions.

    Raises:
        ProtocolError: there is no such model or version.
    """
    if not name:
        return list(repository.served())
    if number:
        return [repository.find(name, number)]
    versions: list[Registered] = repository.registered_or_unknown(name)
    return [one.served for one in versions if one.served is not None]


def is_ready(repository: Repository, name: str, number: str) -> bool:
    """Whether a model is loaded and answers requests."""
    try:
        repository.find(name, number)
    except ProtocolError:
        return False
    return True


def trace_settings(tracing: bool) -> dict[str, Any]:
    """Return the trace settings in the form of Triton's extension; they are fixed at the start."""
    return {
        "trace_level": ["TIMESTAMPS" if tracing else "OFF"],
        "trace_rate": "1",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "opentelemetry",
    }
