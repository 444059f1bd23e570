"""The zoo's models in forms that hasten reads by itself, and files that need more than an export."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from zoo_cases import Arrays, Case, decided, normal, pictures, texts

_RATE, _AUDIO, _STATE = 16_000, 512, 32
_VOICE = f"""<ir_version: 8, opset_import: ["": 17]>
voice (float[1, {_AUDIO}] audio, float[1, {_STATE}] state, int64 rate)
    => (float[1, 2] speech, float[1, {_STATE}] next_state)
    <int64 wide = {{{_RATE}}}, int64[3] at_wide = {{1, 16, 32}}, int64[3] at_other = {{1, 32, 16}}> {{
    is_wide = Equal(rate, wide)
    means = If (is_wide) <
        then_branch = wide_rate () => (float[1, 16] wide_means) {{
            wide_frames = Reshape(audio, at_wide)
            wide_means = ReduceMean <axes = [2], keepdims = 0> (wide_frames)
        }},
        else_branch = other_rate () => (float[1, 16] other_means) {{
            other_frames = Reshape(audio, at_other)
            other_means = ReduceMean <axes = [1], keepdims = 0> (other_frames)
        }}>
    heard = MatMul(means, w1)
    kept = MatMul(state, w2)
    moved = Add(heard, kept)
    next_state = Tanh(moved)
    scores = MatMul(next_state, w3)
    speech = Softmax(scores)
}}"""


def _voice() -> Any:
    """Return a voice detector with a state, and a branch on a single number, its sampling rate."""
    from onnx import numpy_helper, parser

    proto, rng = parser.parse_model(_VOICE), np.random.default_rng(0)
    # Frames of noise have small means: these are the weights that make answers spread.
    for name, shape, scale in (
        ("w1", (16, _STATE), 2.0),
        ("w2", (_STATE, _STATE), 0.2),
        ("w3", (_STATE, 2), 1.0),
    ):
        weights = rng.normal(0, scale, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weights, name))
    return proto


def _heard(rng: np.random.Generator, count: int) -> Arrays:
    return {
        "audio": rng.standard_normal((count, _AUDIO), np.float32),
        "state": np.tanh(rng.standard_normal((count, _STATE), np.float32)),
        "rate": np.full(count, _RATE),
    }


def _cnn() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8))
    spread = decided(network, pictures(64))

    class Named(nn.Module):
        """The input's name is that of forward's parameter."""

        def __init__(self) -> None:
            super().__init__()
            self.network = spread

        def forward(self, x: Any) -> Any:
            return self.network(x)

    return Named().eval()


def _quantized() -> Any:
    """Return a CNN that ONNX Runtime's own quantizer made int8."""
    import tempfile

    import onnx
    import torch
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from hasten.passes.silence import silenced

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            drawn = pictures(64)(np.random.default_rng(5), 32)["x"]
            self._rows = iter(drawn)

        def get_next(self) -> Any:
            row = next(self._rows, None)
            return None if row is None else {"x": row[None]}

    with tempfile.TemporaryDirectory() as folder, silenced():
        file, made = f"{folder}/float.onnx", f"{folder}/int8.onnx"
        example = torch.from_numpy(pictures(64)(np.random.default_rng(1), 2)["x"])
        torch.onnx.export(
            _cnn(), (example,), file, dynamo=False, opset_version=17, input_names=["x"],
            output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )  # fmt: skip
        quant_pre_process(file, file)
        quantize_static(file, made, Reader(), per_channel=True)
        return onnx.load(made)


def _timm() -> Any:
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


def _by_name(network: Any, folder: Path) -> str:
    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "weights.safetensors")
    return f"timm:test_resnet@{folder / 'weights.safetensors'}"


def _as_folder(network: Any, folder: Path) -> str:
    """Write the folder of a timm model, as the Hub has it."""
    from timm.models import _hub

    _hub.save_for_hf(network, folder / "timm", safe_serialization=True)
    return str(folder / "timm")


def _sentences() -> Any:
    """Return an encoder of sentences: the mean of its tokens' vectors, scaled to the length 1."""
    import torch
    import transformers
    from torch import nn

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        vocab_size=4000, max_position_embeddings=64,
    )  # fmt: skip

    class Sentences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = transformers.BertModel(config, add_pooling_layer=False)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            found = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
            real = attention_mask.unsqueeze(-1).to(torch.float32)
            pooled = (found.last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1e-9)
            return nn.functional.normalize(pooled)

    return Sentences().eval()


def _as_sentence_transformers(network: Any, folder: Path) -> str:
    place = folder / "sentences"
    network.encoder.save_pretrained(place)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    listed = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in kinds.items()
    ]
    (place / "modules.json").write_text(json.dumps(listed))
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return str(place)


def _scripted(network: Any, folder: Path) -> str:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.ones(2, 3, 64, 64)), folder / "net.pt")
    return str(folder / "net.pt")


def _as_program(network: Any, folder: Path) -> str:
    import torch

    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.ones(2, 3, 64, 64),), dynamic_shapes=batch)
    torch.export.save(program, folder / "net.pt2")
    return str(folder / "net.pt2")


_OWN: Any = {"outputs": ("output",), "ways": ("script",)}
_NET = partial(Case, data=pictures(64), network=_cnn, **_OWN)
_RESNET = partial(Case, data=normal((3, 160, 160)), network=_timm, samples=400, **_OWN)
CASES = (
    Case(
        "voice",
        "voice detector: a state, a branch on its rate",
        _voice,
        _heard,
        metric="agreement:speech",
        outputs=("speech", "next_state"),
        scalars=("rate",),
        ways=("script",),
    ),
    Case("int8-cnn", "already in int8", _quantized, pictures(64), ways=("script",)),
    _NET("torchscript", "TorchScript", brought=_scripted),
    _NET("program", "program of torch.export", brought=_as_program),
    _RESNET("timm-name", "timm by name", brought=_by_name),
    _RESNET("timm-folder", "folder of timm", brought=_as_folder),
    Case(
        "sentence-folder",
        "folder of sentence-transformers",
        _sentences,
        texts(48, 4000),
        metric="embedding",
        max_drop=0.02,
        outputs=("sentence_embedding",),
        ways=("script",),
        brought=_as_sentence_transformers,
    ),
)
