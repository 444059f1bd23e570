"""An encoder of sentences of every length: a bundle asked at their own lengths, beside padding to the longest.

    python benchmarks/ragged.py [--samples 1500] [--longest 128] [--layers 6] [--effort normal] [--rounds 41]

The network is all-MiniLM-L6-v2's, with its weights where the package is installed, else random ones. Lengths
are drawn log-normally (median 20 tokens, deviation 0.6 of the logarithm), cut at the longest; ids are random.
After one run of `hasten.optimize` on these samples, three ways answer the same 16 samples in each round, in
an order that rotates: ONNX Runtime as it is set up by default with every sample padded to the longest,
ONNX Runtime on the samples as they are, and the bundle. The table gives the first way's time over each
other's: median of the rounds, and their middle half; the target is 2.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from minilm import Encoder, pretrained

import hasten
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.source import load_with_data

CONFIG = {
    "hidden_size": 384,
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
}
EACH_ROUND = 16

Samples = dict[str, list[Array]]


def encoder(layers: int) -> Encoder:
    """Return MiniLM with its own weights, or one of so many layers with random ones."""
    if layers == 6:
        try:
            return pretrained()
        except InputError as error:
            print(f"random weights: {error}")
    return Encoder({**CONFIG, "num_hidden_layers": layers})


def sentences(count: int, longest: int) -> Samples:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.rint(rng.lognormal(np.log(20), 0.6, count)), 3, longest).astype(int)
    lengths[0] = longest
    return {
        "input_ids": [rng.integers(1000, 30000, n) for n in lengths],
        "attention_mask": [np.ones(n, np.int64) for n in lengths],
    }


def padded(samples: Samples, longest: int) -> list[dict[str, Array]]:
    """Return requests that are filled up with zeros, which the mask hides."""
    return [
        {name: np.pad(rows[n], (0, longest - len(rows[n])))[None] for name, rows in samples.items()}
        for n in range(len(samples["input_ids"]))
    ]


def timed(
    ways: dict[str, tuple[Callable[[dict[str, Array]], object], list[dict[str, Array]]]],
    rounds: int,
) -> dict[str, list[int]]:
    """Return what each way took for the same samples, in ns by round, after a round that isn't counted."""
    took: dict[str, list[int]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(-1, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run, requests = ways[name]
            places = [(number * EACH_ROUND + i) % len(requests) for i in range(EACH_ROUND)]
            for place in places:  # its own processes and caches are awake
                run(requests[place])
            begin = time.perf_counter_ns()
            for place in places:
                run(requests[place])
            if number >= 0:
                took[name].append(time.perf_counter_ns() - begin)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--longest", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--max-drop", type=float, default=0.01)
    given = parser.parse_args()
    network, samples = encoder(given.layers), sentences(given.samples, given.longest)
    with tempfile.TemporaryDirectory(prefix="hasten-ragged-") as work:
        folder = Path(work)
        model, _ = load_with_data(network, samples, None, (), folder)
        result = hasten.optimize(
            model.path,
            samples,
            metric="embedding",
            max_drop=given.max_drop,
            effort=given.effort,
            out=folder / "encoder.hasten",
        )
        print(f"ships: {result.winner.label} ({result.status})")
        plain = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
        whole = padded(samples, given.longest)
        own = as_they_are(samples)
        with hasten.load(folder / "encoder.hasten") as bundle:
            for place in range(8):
                (wanted,) = plain.run(None, own[place])
                (got,) = bundle(own[place]).values()
                print(
                    json.dumps(
                        {"tokens": own[place]["input_ids"].shape[1], "cosine": cosine(got, wanted)}
                    )
                )
            took = timed(
                {
                    "ONNX Runtime, padded to the longest": (lambda r: plain.run(None, r), whole),
                    "ONNX Runtime, own lengths": (lambda r: plain.run(None, r), own),
                    "bundle, own lengths": (bundle, own),
                },
                given.rounds,
            )
    show(took)


def as_they_are(samples: Samples) -> list[dict[str, Array]]:
    return [
        {name: rows[n][None] for name, rows in samples.items()}
        for n in range(len(samples["input_ids"]))
    ]


def cosine(one: Array, other: Array) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def show(took: dict[str, list[int]]) -> None:
    (_, first), *_ = took.items()
    for name, own in took.items():
        ratios = [a / b for a, b in zip(first, own, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        each_ms = statistics.median(own) / EACH_ROUND / 1e6
        print(f"{name:40} {each_ms:8.2f} ms  {middle:5.2f}x ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
