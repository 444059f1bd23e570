"""Train a network for an FPGA with few bits, and with a bit width per weight and per value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.words import listed
from hasten.engines.fpga import program
from hasten.engines.fpga.program import VECTORS, FpgaProgram, Port, Ports
from hasten.engines.fpga.ranges import observed
from hasten.engines.fpga.trainable import Trainable, channels_last, trainable
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.spool import Spool
from hasten.passes.base import Pass
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.fixed_point import BENCHED, settled
from hasten.passes.onnx_files import read_onnx
from hasten.passes.silence import silenced

_BEGIN_BITS = 8
_RATE = 5e-3
_BATCH = 32
_LEAST_PRESSURE = 1e-3
"""Initial share of the final pressure: low, so that the network first learns and then shrinks."""


@dataclass(frozen=True)
class HgqTraining(Pass):
    """Train weights and bit widths together with HGQ2, whose loss includes every product's bits.

    The network starts from the model's weights and learns the model's answers, and labels if there
    are any.

    Attributes:
        training: Folder of the spool with the training data.
        training_sha256: SHA-256 of the training data's content.
        pressure: Final weight in the loss of all products' bits together, relative to their initial
            number; a higher pressure gives a smaller design.
        epochs: Number of passes over the data.
        seed: Seed of the training, including the order of samples.
    """

    gives: ClassVar[Format] = "dais"

    training: Path = field(metadata={"in label": False})
    training_sha256: str = field(metadata={"in label": False})
    pressure: float = 3.0
    epochs: int = 200
    seed: int = 0

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield nothing, since the training data must be handed in."""
        yield from ()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        program.version()
        os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
        requests = CalibrationRequests(model, calibration, 300)
        proto = settled(model, calibration, workdir)
        ranges = observed(proto, requests)
        data = Spool.open(self.training)
        inputs = data.inputs(range(len(data)))[model.inputs[0].name]
        wanted = _answers(model, inputs)
        with silenced():
            import keras

            keras.utils.set_random_seed(self.seed)
            made = trainable(proto, ranges, _BEGIN_BITS)
            self._train(made, inputs, wanted, data.labels)
            traced = _traced(made, model)
            same = np.array_equal(
                traced.answers(traced.ports.encode({model.inputs[0].name: inputs})).astype(
                    np.float32
                ),
                _within(made, traced, inputs),
            )
        if not same:
            raise CandidateError(
                "HGQ2's network and its fixed-point program give different answers"
            )
        path, ports = traced.save(workdir)
        rounded = [traced.ports.encode(requests[i]) for i in range(min(BENCHED, len(requests)))]
        np.savez(workdir / VECTORS, requests=np.concatenate(rounded))
        return replace(model, path=path, format="dais", files=(ports, workdir / VECTORS))

    def _train(self, made: Trainable, inputs: Array, wanted: Array, labels: Array | None) -> None:
        import keras
        from hgq.utils import trace_minmax

        given, network = made.given(inputs), made.network
        trace_minmax(network, given)
        classes = wanted.ndim == 2 and wanted.shape[1] > 1
        known = labels if classes and labels is not None and labels.dtype.kind in "iu" else None
        steps = self.epochs * -(-len(given) // _BATCH)
        rate = keras.optimizers.schedules.CosineDecay(_RATE, steps)
        network.compile(keras.optimizers.Adam(rate), loss=_loss(classes, made.epilogue, known))
        goal = wanted if known is None else np.concatenate([wanted, known.reshape(-1, 1)], axis=1)
        network.fit(
            given,
            goal.astype(np.float32),
            batch_size=_BATCH,
            epochs=self.epochs,
            verbose=0,
            callbacks=[_rising(self.pressure, self.epochs, len(given))],
        )
        trace_minmax(network, given)

    def words(self) -> str:
        settings = listed(
            f"pressure {self.pressure:g}",
            f"{self.epochs} epochs",
            "" if self.seed == 0 else f"seed {self.seed}",
        )
        return f"trained fixed point (HGQ2, {settings})"


def _answers(model: Model, inputs: Array) -> Array:
    """Return the model's own answers to the training inputs, before a final softmax."""
    import onnx
    import onnxruntime

    proto = read_onnx(model)
    result = model.outputs[0].name
    last = next((n for n in proto.graph.node if result in n.output), None)
    if last is not None and last.op_type in ("Softmax", "LogSoftmax"):
        result = last.input[0]
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(result))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = model.inputs[0].name
    found = [session.run([result], {name: row[None]})[0] for row in inputs]
    return np.concatenate(found).reshape(len(inputs), *np.shape(found[0])[1:])


def _loss(classes: bool, epilogue: str, labels: Array | None) -> Any:
    """Return cross-entropy to the model's answers, half of it to labels, or squared errors."""
    from keras import ops

    def squares(goal: Any, found: Any) -> Any:
        return ops.mean(ops.square(goal - found), axis=-1)

    def cross_entropy(goal: Any, found: Any) -> Any:
        said = ops.log_softmax(found, axis=-1)
        count = found.shape[-1]
        taught = -ops.sum(ops.softmax(goal[:, :count], axis=-1) * said, axis=-1)
        if labels is None:
            return taught
        right = ops.one_hot(ops.cast(goal[:, count], "int32"), count)
        return 0.5 * taught - 0.5 * ops.sum(right * said, axis=-1)

    return cross_entropy if classes else squares


def _rising(pressure: float, epochs: int, samples: int) -> Any:
    """Return a callback that raises the weight of bits in the loss with each epoch."""
    import keras

    class Rising(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            self._bits = max(1.0, sum(float(layer.ebops) for layer in _counted(self.model)))

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            share = _LEAST_PRESSURE ** (1 - epoch / max(1, epochs - 1))
            for layer in self.model._flatten_layers():
                if getattr(layer, "_beta", None) is not None:
                    layer._beta.assign(pressure * share / self._bits)

    return Rising()


def _counted(network: Any) -> Sequence[Any]:
    return [layer for layer in network.layers if hasattr(layer, "ebops")]


def _traced(made: Trainable, model: Model) -> FpgaProgram:
    """Convert a trained network to a fixed-point program with the model's own ports."""
    from da4ml.converter import trace_model
    from da4ml.trace import FixedVariableArray, HWConfig, comb_trace

    sizes = made.shift.shape
    signed, integer, fraction = _formats(made)
    begin = FixedVariableArray.from_kif(signed, integer, fraction, HWConfig(1, -1, -1), 0)
    given = begin if len(sizes) == 1 else begin.transpose((*range(1, len(sizes)), 0))
    _, end = trace_model(made.network, inputs=(given,))
    logic = comb_trace(np.ravel(begin._vars), np.ravel(end._vars), keep_dead_inputs=True)
    port = Port(
        model.inputs[0].name,
        tuple(int(n) for n in sizes),
        *_columns(logic.inp_qint),
        shift=tuple(int(places) for places in made.shift.reshape(-1)),
    )
    shape = tuple(int(n) for n in model.outputs[0].shape[1:])
    out = Port(model.outputs[0].name, shape, *_columns(logic.out_qint), epilogue=made.epilogue)
    return FpgaProgram(logic, Ports((port,), (out,)))


def _columns(intervals: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the sign, integer and fraction bits of a program's ports."""
    from da4ml.types import minimal_kif

    signed, integer, fraction = zip(*map(minimal_kif, intervals), strict=True)
    return tuple(map(int, signed)), tuple(map(int, integer)), tuple(map(int, fraction))


def _formats(made: Trainable) -> tuple[Array, Array, Array]:
    """Return sign, integer and fraction bits of the network's rounded input, channels first."""
    entering = [
        layer
        for layer in made.network.layers
        if getattr(layer, "enable_iq", False) and layer.input is made.network.inputs[0]
    ]
    if not entering:
        raise CandidateError("the network's first layer doesn't round its input")
    shape = tuple(made.network.inputs[0].shape[1:])
    found = []
    for part in zip(*(layer.iq.quantizer.kif for layer in entering), strict=True):
        largest = np.max([np.broadcast_to(np.asarray(p)[0], shape) for p in part], axis=0)
        found.append(np.moveaxis(largest, -1, 0) if len(shape) > 1 else largest)
    signed, integer, fraction = (np.asarray(part).astype(np.int64) for part in found)
    return signed, integer, fraction


def _within(made: Trainable, traced: FpgaProgram, inputs: Array) -> Array:
    """Return the network's own answers to inputs rounded like the ports', flattened per sample."""
    rounded = traced.ports.encode({traced.ports.inputs[0].name: inputs})
    given = rounded.reshape(inputs.shape).astype(np.float32)
    found = np.asarray(made.network.predict(channels_last(given), verbose=0))
    return found.reshape(len(found), -1)
