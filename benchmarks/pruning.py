"""Pruning to a share of the latency, on five architectures and two engines.

    python benchmarks/pruning.py [MODEL ...] [--shares 0.6 0.7 0.8] [--engine openvino] [--cache FOLDER]

Each network is pruned for each engine by its measured int8 layers, takes one step of fine-tuning
(mechanics: nothing here says how accurate it could become), is exported, quantized, and timed against
its unpruned self of the same precision, in turns. Prints a Markdown table: how many of the
multiplications stay, how much of the latency, and speed-up over reduction of multiplications. The
answers column is how far the engine's answers lie from the torch module's, relative to their size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import yolov3_tiny
from models import CACHE, MODELS, ImageNetCrops
from torch import nn

from hasten.cli.demos import photos
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.workers import Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.torch import export
from hasten.lightening.pruning.channels import Prunable, Pruned
from hasten.lightening.pruning.costs import Costs, measure
from hasten.lightening.pruning.importance import sensitivity
from hasten.lightening.pruning.in_network import in_network
from hasten.lightening.pruning.layers import layers, tensors
from hasten.lightening.pruning.normalization import recalibrate
from hasten.lightening.pruning.tokens import fastest
from hasten.measure.intervals import Ratio, paired_ratio
from hasten.measure.latency import Pace, Round, rounds
from hasten.measure.workbench import Bench, OpenWorker
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import is_transformer, read_onnx
from hasten.passes.static_quantization import StaticQuantization

ENGINES: dict[str, Engine] = {"openvino": OpenVino(), "onnxruntime": OnnxRuntime()}
BATCHES, BATCH = 4, 4
ROUNDS = 12
PATIENCE_S = 30
"""So long a round waits for others to leave a processor idle; after twice as many rounds none waits."""
MERGED = (2, 4, 8, 13)
"""Tokens to merge in each block, of 196."""
TRIES = 3
"""How often the costs are corrected by what the pruned network took, until it is near the target."""
NEAR = 0.04
ASKED = 0.8
COLUMNS = (
    *("model", "engine", "asked", "MACs kept", "precision", "latency kept"),
    *("speed-up / MAC reduction", "answers off by"),
)


class Heads(nn.Module):
    """A detector up to its heads, which are differentiable."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head for _, head in self.network.heads(x)]


@dataclass(frozen=True)
class Subject:
    """One architecture.

    Attributes:
        module: Function that returns the network.
        data: Function that returns the network's pictures.
        random: Whether the weights are random. If so, the pictures set the network's normalization,
            as they set the pruned one's, since integers that are mostly 0 are multiplied faster.
    """

    module: Callable[[], nn.Module]
    data: Callable[[], Any]
    random: bool = False


def pictures() -> Any:
    """Return ImageNet-like crops."""
    return ImageNetCrops(photos.photo_files(), BATCHES * BATCH)


SUBJECTS = {
    "mobilenet_v2": Subject(lambda: MODELS["mobilenet_v2"].module(CACHE), pictures),
    "efficientnet_lite0": Subject(
        photos.pretrained, lambda: photos.RandomCrops(photos.photo_files(), BATCHES * BATCH)
    ),
    "resnet18": Subject(lambda: torchvision.models.resnet18(weights=None), pictures, random=True),
    "vit_tiny": Subject(
        lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False), pictures
    ),
    "yolov3_tiny": Subject(
        lambda: Heads(yolov3_tiny.pretrained().network),
        lambda: yolov3_tiny.LetterboxedCrops(BATCHES * BATCH),
    ),
}


@dataclass(frozen=True)
class Row:
    """One precision of one pruned network on one engine."""

    precision: str
    ratio: Ratio
    off: float


class Table:
    """Where one network is pruned, exported and timed."""

    def __init__(
        self,
        module: nn.Module,
        pixels: Array,
        engine: Engine,
        folder: Path,
        cache: Path,
        threads: int,
    ):
        self.module, self.pixels, self.engine = module.eval(), pixels, engine
        self.folder, self.cache = folder, cache
        self.bench = Bench(folder, Target.host().with_threads(threads), 300.0)
        self.sample = (torch.from_numpy(pixels[:1]),)
        self.batches = [
            (torch.from_numpy(pixels[i : i + BATCH]),) for i in range(0, len(pixels), BATCH)
        ]
        self.spool = write_spool(ArrayDataset({"x": pixels}), folder / "requests")
        self.plain = {p: self.opened(self.module, p) for p in ("i8", "f32")}
        self.layers = layers(self.module, self.sample)
        self.prunable = Prunable(self.module, self.sample, sensitivity(self.batches))

    def opened(self, module: nn.Module, precision: str) -> OpenWorker:
        """Export, quantize, build and open a module."""
        artifact, _ = self._built(module, precision)
        return self.bench.open_built(self.engine, artifact)

    def _built(self, module: nn.Module, precision: str) -> tuple[Artifact, Path]:
        """Return what the engine opens, and the ONNX file that it was made of."""
        folder = self.folder / f"{precision}-{time.monotonic_ns()}"
        for part in ("exported", "quantized", "built"):
            (folder / part).mkdir(parents=True)
        exported = export(module, {"x": self.pixels[0]}, folder / "exported")
        model = exported.settled_by({"x": self.pixels[0]})
        if precision == "i8":
            model = self._quantized(model, folder / "quantized")
        return self.bench.build(self.engine, model, folder / "built"), exported.path

    def costs(self) -> tuple[Costs, list[tuple[Any, float]]]:
        """Measure the layers, alone and in the network; and the network."""
        artifact, exported = self._built(self.module, "i8")
        quiet(1)
        alone = measure(self.layers, self.bench, self.engine, self.cache)
        profiling = Bench(self.folder, self.bench.target, 300.0, original=exported)
        steps = profiling.profile(self.engine, artifact, self.spool, requests=24)
        times_ns, rest_ns = in_network(self.layers, exported, steps)
        with self.bench.open_built(self.engine, artifact).worker as same:
            twice, plain_ns = self.ratio(same, "i8", 6)
        print(
            f"  plain {plain_ns / 1e6:.2f} ms (A/A {twice.estimate:.3f}), snap {alone.snap}, layers "
            f"alone {alone.predicted_ns(self.layers) / 1e6:.2f} ms, in the network "
            f"{sum(times_ns.values()) / 1e6:.2f} ms",
            flush=True,
        )
        return alone.scaled(self.layers, times_ns, rest_ns), [(self.layers, plain_ns)]

    def _quantized(self, model: Model, folder: Path) -> Model:
        transformer = is_transformer(read_onnx(model, weights=False))
        if isinstance(self.engine, OpenVino) and not transformer:
            return NncfQuantization(samples=16)(model, self.spool, folder)
        # NNCF corrects no bias of a transformer with random weights, and is refused for it.
        return StaticQuantization(samples=16, compute_only=transformer)(model, self.spool, folder)

    def ratio(self, ours: Worker, precision: str, count: int = ROUNDS) -> tuple[Ratio, float]:
        """Time a pruned network against its unpruned self in turns; and the latter's p50 in ns."""
        entrants = {"pruned": ours, "plain": self.plain[precision].worker}
        turns = rounds(
            entrants,
            self.spool.folder,
            threads=self.bench.target.threads,
            pace=Pace(),
            seed=0,
            probe=quiet,
        )
        seen: list[Round] = []
        for turn in turns:
            if turn.failed:
                raise SystemExit(str(turn.failed))
            if turn.counts or turn.number >= 2 * count:
                seen.append(turn)
            if len(seen) == count:
                break
        taken = {n: {turn.number: turn.latency_ns[n] for turn in seen} for n in entrants}
        plain_ns = float(np.median([np.median(block) for block in taken["plain"].values()]))
        return paired_ratio(taken["pruned"], taken["plain"]), plain_ns

    def pruned(self, share: float, costs: Costs, measured: list[tuple[Any, float]]) -> Pruned:
        """Prune to a share of the latency; what came of it is added to what was measured."""
        best, gap, plain_ns = None, 1.0, measured[0][1]
        for _ in range(TRIES):
            try:
                found = self.prunable.to(costs.corrected(measured), share * plain_ns)
            except CandidateError as error:
                print(f"  {error}", flush=True)
                break
            with self.opened(found.module, "i8").worker as worker:
                ratio, _ = self.ratio(worker, "i8", 6)
            print(
                f"  asked {share:.2f}, predicted {found.predicted_ns / plain_ns:.2f}, "
                f"took {ratio.estimate:.2f}, {found.macs_after / found.macs_before:.2f} of the MACs, "
                f"blocks skipped: {', '.join(found.plan.skipped) or 'none'}",
                flush=True,
            )
            if abs(ratio.estimate - share) < gap:
                best, gap = found, abs(ratio.estimate - share)
            if gap < NEAR:
                break
            measured.append((layers(found.module, self.sample), ratio.estimate * plain_ns))
        if best is None:
            raise SystemExit("the target can't be reached")
        return best

    def rows(self, module: nn.Module) -> list[Row]:
        """Time a pruned module in each precision, and compare its answers with torch's."""
        found = []
        for precision in ("i8", "f32"):
            opened = self.opened(module, precision)
            with opened.worker as worker:
                off = self.off(opened, module)
                ratio, _ = self.ratio(worker, precision)
            found.append(Row(precision, ratio, off))
        return found

    def merged(self) -> str:
        """Say whether merging tokens is faster, and at how many."""

        def latency_ns(module: nn.Module) -> float:
            with self.opened(module, "i8").worker as worker:
                ratio, plain_ns = self.ratio(worker, "i8", 6)
            print(
                f"  {getattr(module.blocks, 'merged', 0)} merged: {ratio.estimate:.3f} "
                f"({ratio.low:.3f} to {ratio.high:.3f})",
                flush=True,
            )
            return ratio.estimate * plain_ns

        best = fastest(self.module, latency_ns, MERGED)
        return "merging tokens is no faster" if best is None else f"fastest with {best[0]} merged"

    def off(self, opened: OpenWorker, module: nn.Module) -> float:
        """Return how far the answers are from the module's, relative to their size."""
        answers = list(self.bench.predict_one(opened, self.spool).values())
        with torch.no_grad():
            wanted = [tensor.numpy() for tensor in tensors(module.eval()(*self.sample))]
        return max(
            float(np.linalg.norm(one - other) / np.linalg.norm(other))
            for one, other in zip(answers, wanted, strict=True)
        )

    def close(self) -> None:
        """End the processes."""
        for opened in self.plain.values():
            opened.worker.kill()


def quiet(_: int) -> bool:
    """Wait until others leave a processor idle; whether they did within a while."""
    for _ in range(PATIENCE_S * 20):
        before = _ticks()
        time.sleep(0.05)
        idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
        if idle * (os.cpu_count() or 1) >= 0.9 * total:
            return True
    return False


def _ticks() -> tuple[int, int]:
    """Return the processors' idle time and all time. Source: proc(5), /proc/stat."""
    numbers = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return numbers[3] + numbers[4], sum(numbers)


def one_step(
    module: nn.Module, original: nn.Module, batches: Sequence[tuple[torch.Tensor]]
) -> None:
    """Take one step towards the original's answers."""
    recalibrate(module, batches)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    with torch.no_grad():
        wanted = tensors(original(*batches[0]))
    given = tensors(module(*batches[0]))
    loss = torch.stack(
        [nn.functional.mse_loss(g, w) for g, w in zip(given, wanted, strict=True)]
    ).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    module.eval()


def run(name: str, engine: str, options: argparse.Namespace) -> list[str]:
    """Prune one model for one engine, less and less until it is worth its MACs; return the lines."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    module, data = subject.module().eval(), subject.data()
    pixels = data.inputs(range(BATCHES * BATCH))[data.names[0]]
    if subject.random:
        recalibrate(module, [(torch.from_numpy(pixels),)])
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        engine_of = ENGINES[engine]
        table = Table(module, pixels, engine_of, Path(folder), options.cache, options.threads)
        try:
            if options.tokens:
                print(f"  {table.merged()}", flush=True)
                return []
            costs, measured = table.costs()
            for share in options.shares:
                pruned = table.pruned(share, costs, measured)
                one_step(pruned.module, module, table.batches)
                rows = table.rows(pruned.module)
                macs = pruned.macs_after / pruned.macs_before
                lines += [_line(name, engine, macs, share, row) for row in rows]
                print("\n".join(lines[-2:]), flush=True)
                if macs / rows[0].ratio.estimate >= ASKED:
                    break
        finally:
            table.close()
    return lines


def _line(name: str, engine: str, macs: float, share: float, row: Row) -> str:
    ratio = row.ratio
    return (
        f"| {name} | {engine} | {share if row.precision == 'i8' else '-'} | {macs:.3f} | "
        f"{row.precision} | {ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) | "
        f"{macs / ratio.estimate:.2f} | {row.off:.1e} |"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.6, 0.7, 0.8], help="of the int8 latency"
    )
    parser.add_argument("--engine", choices=ENGINES, help="one of the two alone")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "hasten-layers")
    parser.add_argument("--threads", type=int, default=1, help="1: few hosts give two their cores")
    parser.add_argument("--tokens", action="store_true", help="merge tokens instead, of a ViT")
    options = parser.parse_args()
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for name in options.models or SUBJECTS:
        for engine in [options.engine] if options.engine else ENGINES:
            print(f"{name} on {engine}", flush=True)
            lines += run(name, engine, options)
    print("\n".join(lines))
    print(f"asked of speed-up / MAC reduction in int8: {ASKED} or more")


if __name__ == "__main__":
    main()
