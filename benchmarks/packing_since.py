"""How large the difference to an older bundle is, after fine-tuning and after a change of a threshold.

    nice -n 10 python benchmarks/packing_since.py [--cache FOLDER]

EfficientNet-Lite0 with its real weights gets ten outputs and is trained on half of the images that
benchmarks/garments.py finds: the bundle that a fleet has. It is then fine-tuned on the other half by
several recipes, and quantized to int8 (NNCF) after some numbers of steps, by the same pipeline as before.
For each the difference is stated beside the newer bundle packed whole: with int8 weights alone, and with the
exact float32 model. "Older scales" are int8 weights rounded by the scales that the fleet's bundle has.
The bundles hold no evidence of a search. The states of training are kept in the cache folder.

    python benchmarks/packing_since.py --hour RECIPE [--falling]

fine-tunes by one of the recipes for an hour of processor time, on one thread, and states only what has
changed then: at a constant learning rate, or at one that falls to zero along half a cosine. Interrupted, it
goes on where the last of its twelve parts ended.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from garments import CACHE, Enlarged, Images, enlarged, labelled

import hasten
from hasten.bundle import MANIFEST, Manifest, Part, part, read, write
from hasten.bundle.packing.difference import difference, entropy
from hasten.bundle.packing.writer import CODING_HELPS
from hasten.cli.demos.photos import pretrained
from hasten.core.model import Model
from hasten.core.records import digest, file_digest, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.weights import stretches_in
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.source import load_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.measure.environment import environment
from hasten.passes.nncf_quantization import NncfQuantization

CALIBRATING = 100
LABELS = (
    *("top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
SIZE, BATCH, FIRST_STEPS = 64, 32, 120
STEPS = (10, 50, 100, 200)
HOUR_PARTS = 12
LONG_SIZE, LONG_BATCH, LONG_STEPS = 32, 8, (500, 1000)
Make = Callable[[Any], torch.optim.Optimizer]
RECIPES: dict[str, Make] = {
    "AdamW, 1e-4": lambda weights: torch.optim.AdamW(weights, 1e-4, weight_decay=0.05),
    "SGD, 1e-3, momentum 0.9": lambda weights: torch.optim.SGD(weights, 1e-3, momentum=0.9),
    "AdamW, 1e-5": lambda weights: torch.optim.AdamW(weights, 1e-5, weight_decay=0.05),
}


def _batches(
    seed: int, images: Images, size: int, count: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = np.random.default_rng(seed)
    while True:
        batch = images[order.integers(len(images.labels), size=count)]
        pixels = enlarged(batch.pixels, size).to(memory_format=torch.channels_last)
        yield pixels, torch.from_numpy(batch.labels)


def _train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    seed: int,
    places: dict[int, Path],
    schedule: Any = None,
    size: int = SIZE,
    count: int = BATCH,
) -> None:
    """Train for some steps; keep the state at each of those that have a place."""
    model.train().to(memory_format=torch.channels_last)
    losses: list[float] = []
    batches = _batches(seed, images, size, count)
    for step, (x, labels) in zip(range(1, max(places) + 1), batches, strict=False):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
        if step in places:
            torch.save(model.state_dict(), places[step])
            print(f"{places[step].stem}: loss {np.mean(losses[-25:]):.3f}", flush=True)


def states(cache: Path) -> tuple[Path, dict[str, dict[int, Path]]]:
    """Return the state that the fleet has, and those after fine-tuning, by recipe and steps."""
    torch.set_num_threads(1)
    what, images, _ = labelled()
    cache.mkdir(parents=True, exist_ok=True)
    old = cache / f"since-{what}-old.pt"
    tuned = {
        name: {steps: cache / f"since-{what}-{number}-{steps}.pt" for steps in STEPS}
        for number, name in enumerate(RECIPES)
    }
    half = len(images.labels) // 2
    torch.manual_seed(0)
    model = pretrained()
    model.reset_classifier(10)
    if not old.exists():
        first = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
        cycle = torch.optim.lr_scheduler.OneCycleLR(first, 1e-3, total_steps=FIRST_STEPS)
        _train(model, first, images[:half], 0, {FIRST_STEPS: old}, cycle)
    model.load_state_dict(torch.load(old, weights_only=True))
    for name, make in RECIPES.items():
        if not all(path.exists() for path in tuned[name].values()):
            other = copy.deepcopy(model)
            _train(other, make(other.parameters()), images[half:], 1, tuned[name])
    return old, tuned


def longer(cache: Path) -> dict[str, dict[int, Path]]:
    """Return states after many more steps on small batches of small images, by recipe and steps.

    It is the recipe that changes the weights most: how far AdamW moves doesn't depend on the batch's size.
    """
    old, _ = states(cache)
    what, images, _ = labelled()
    name = next(iter(RECIPES))
    places = {steps: cache / f"since-{what}-0-long-{steps}.pt" for steps in LONG_STEPS}
    if not all(path.exists() for path in places.values()):
        model = pretrained()
        model.reset_classifier(10)
        model.load_state_dict(torch.load(old, weights_only=True))
        optimizer, half = RECIPES[name](model.parameters()), images[len(images.labels) // 2 :]
        _train(model, optimizer, half, 2, places, size=LONG_SIZE, count=LONG_BATCH)
    return {f"{name}, batches of {LONG_BATCH}, {LONG_SIZE} px": places}


def after_an_hour(cache: Path, recipe: str, falling: bool) -> tuple[Path, dict[int, Path]]:
    """Return the state that the fleet has, and the one after an hour of fine-tuning, by its steps.

    The parts of the hour differ in their images' order, and each begins with the optimizer's state of the last.
    A falling learning rate follows the processor time that the hour has taken.
    """
    old, _ = states(cache)
    what, images, _ = labelled()
    number = f"{list(RECIPES).index(recipe)}{'-falling' if falling else ''}"
    kept = cache / f"since-{what}-{number}-hour.pt"
    model = pretrained()
    model.reset_classifier(10)
    model.load_state_dict(torch.load(old, weights_only=True))
    optimizer = RECIPES[recipe](model.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    done, steps = 0, 0
    if kept.exists():
        found = torch.load(kept, weights_only=True)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        done, steps = found["done"], found["steps"]
    model.train().to(memory_format=torch.channels_last)
    for twelfth in range(done, HOUR_PARTS):
        batches = _batches(100 + twelfth, images[len(images.labels) // 2 :], SIZE, BATCH)
        losses: list[float] = []
        start_s, part_s = time.process_time(), 3600 / HOUR_PARTS
        while (passed := (time.process_time() - start_s) / part_s) < 1:
            if falling:
                share = float(1 + np.cos(np.pi * (twelfth + passed) / HOUR_PARTS)) / 2
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
            x, labels = next(batches)
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        steps += len(losses)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "done": twelfth + 1, "steps": steps}, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
        print(
            f"{recipe}, twelfth {twelfth + 1}: {steps:,} steps, loss {np.mean(losses[-100:]):.3f}",
            flush=True,
        )
    place = kept.with_name(f"since-{what}-{number}-after.pt")
    torch.save(model.state_dict(), place)
    return old, {steps: place}


def curve(old: Path, tuned: dict[str, dict[int, Path]]) -> None:
    """Print the entropy of the weights and of their differences, in bits per weight, over the steps.

    The weights are those before batch norms are folded, in int8 with a scale for each row, and as they
    are. The entropy is that of each tensor by itself, of each byte of an element by itself.
    """
    before = torch.load(old, weights_only=True)
    print("| tuned by | steps | int8 | its difference | float32 | its difference |")
    print("|---|---|---|---|---|---|")
    for recipe, places in tuned.items():
        for steps, place in places.items():
            bits, count = np.zeros(4), 0
            for name, weights in torch.load(place, weights_only=True).items():
                if weights.ndim > 1:
                    pair = [one.contiguous().numpy() for one in (weights, before[name])]
                    bits += _bits(*pair)
                    count += weights.numel()
            cells = " | ".join(f"{each:.2f}" for each in bits / count)
            print(f"| {recipe} | {steps} | {cells} |", flush=True)


def _bits(new: Array, old: Array) -> tuple[float, float, float, float]:
    """Return the entropy of a tensor in int8 and of its difference, and the same in float32."""
    found: list[float] = []
    for pair in ([rounded(new), rounded(old)], [new, old]):
        width = pair[0].itemsize
        newer, older = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in pair)
        found.append(entropy(newer, width))
        apart = difference(newer, older, "zigzag", width)
        found.append(entropy(apart, width))
    return found[0], found[1], found[2], found[3]


def rounded(weights: Array) -> Array:
    """Return weights as int8, each row of which has the scale that its largest one needs."""
    rows = weights.reshape(len(weights), -1)
    return np.rint(rows / (np.abs(rows).max(1, keepdims=True) / 127 + 1e-30)).astype(np.int8)


# -- bundles


class Smaller(Enlarged):
    """Images of the size that is trained on here."""

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {"x": enlarged(self._pixels[np.asarray(indices)], SIZE).numpy()}


def bundle_of(state: Path, work: Path) -> Path:
    """Quantize a state to int8, and write a bundle of it and the exact model into a new folder."""
    work.mkdir(parents=True)
    network = pretrained()
    network.reset_classifier(10)
    network.load_state_dict(torch.load(state, weights_only=True))
    images = Smaller(labelled()[1][:CALIBRATING])
    sample = {"x": images.inputs([0])["x"][0]}
    model = load_model(network.eval(), sample, work).settled_by(sample)
    (work / "int8").mkdir()
    quantized = NncfQuantization("performance")(model, images, work / "int8")
    target, parts = Target.host(), []
    engines: tuple[tuple[Model, Engine], ...] = ((quantized, OpenVino()), (model, OnnxRuntime()))
    for each, engine in engines:
        place = work / f"engine-{each.format}"
        place.mkdir()
        parts.append(part(each.format, (), engine, engine.build(each, target, place)))
    manifest = Manifest(
        status="certified",
        why="written by a benchmark",
        winner=parts[0],
        exact=parts[1],
        metric=to_record(Top1()),
        certificate=None,
        source_sha256=model.sha256,
        sealed={"samples": 0},
        target=target,
        environment=environment(target),
        pipeline=Pipeline((), (TopK(labels=LABELS, least=0.5),)),
        created=datetime.datetime.now(datetime.UTC).isoformat(),
    )
    write(work / "new.hasten", manifest, {})
    return work / "new.hasten"


def again(bundle: Path, out: Path, **fields: Any) -> Path:
    """Write a bundle once more, with other fields in its manifest."""
    manifest = read(bundle)

    def inside(item: Part) -> Part:
        files = tuple(bundle / file for file in item.artifact.files)
        artifact = replace(item.artifact, path=bundle / item.artifact.path, files=files)
        return replace(item, artifact=artifact)

    exact = None if manifest.exact is None else inside(manifest.exact)
    winner = inside(manifest.winner)
    write(out, replace(manifest, **{"winner": winner, "exact": exact, **fields}), {})
    return out


def with_scales_of(old: Path, new: Path, out: Path) -> Path:
    """Write a newer bundle whose int8 weights have the scales of the older one's."""
    shutil.copytree(new, out)
    exact = [one for one in tensors(new, read(new).exact) if len(one[1]) > 1]
    file = out / read(new).winner.artifact.files[0]
    data, changed, count = bytearray(file.read_bytes()), 0, 0
    for (_, _, _, older), (offset, rows, at, scales) in zip(scaled(old), scaled(new), strict=True):
        count += rows.size
        for _, _, found in exact:
            whole = found.reshape(len(found), -1)
            whole = whole if whole.shape == rows.shape else whole.T
            if whole.shape == rows.shape and np.mean(np.rint(whole / scales) == rows) > 0.9:
                fresh = np.clip(np.rint(whole / older), -127, 127)
                data[offset : offset + rows.size] = fresh.astype(np.int8).tobytes()
                data[at : at + scales.nbytes] = older.tobytes()
                changed += rows.size
    assert changed > 0.9 * count, f"{changed:,} of {count:,} weights were found in float32"
    file.write_bytes(data)
    return again(resealed(out), out.with_name("frozen.hasten"))


def scaled(bundle: Path) -> list[tuple[int, Array, int, Array]]:
    """Return the place of each int8 tensor, its rows, the place of its scales, and those, by row."""
    found = []
    known = tensors(bundle, read(bundle).winner)
    for number, (offset, shape, weights) in enumerate(known):
        if weights.dtype == np.int8 and len(shape) > 1:
            at, _, scales = next(
                one
                for one in known[number + 1 :]
                if one[2].dtype == np.float32 and one[1] == (len(weights), *[1] * (len(shape) - 1))
            )
            found.append((offset, weights.reshape(len(weights), -1), at, scales.reshape(-1, 1)))
    return found


def resealed(bundle: Path) -> Path:
    """Make the sums in a manifest fit files that were changed."""
    record = json.loads((bundle / MANIFEST).read_bytes())
    del record["digest"]
    for name in record["files"]:
        record["files"][name][0] = file_digest(bundle / name)
    (bundle / MANIFEST).write_text(json.dumps({**record, "digest": digest(record)}))
    return bundle


def tensors(bundle: Path, item: Part | None) -> list[tuple[int, tuple[int, ...], Array]]:
    """Return the place, shape and numbers of each of a part's tensors, in their order in the file."""
    assert item is not None
    files = [bundle / file for file in (item.artifact.path, *item.artifact.files)]
    found = sorted(stretches_in(files), key=lambda one: one.offset)
    return [
        (
            one.offset,
            one.shape,
            np.fromfile(one.file, one.dtype, one.length // one.width, offset=one.offset).reshape(
                one.shape
            ),
        )
        for one in found
    ]


# -- sizes


def row(label: str, old: Path, new: Path, work: Path, *, exact: bool = True) -> None:
    """Print what the difference takes beside the newer bundle packed whole.

    Args:
        label: Words for what changed between the two bundles.
        old: The older bundle.
        new: The newer bundle.
        work: Folder for files in between.
        exact: Whether to state it for the bundles with their exact models, too.
    """
    cells = [label, as_before(old, new)]
    for fields in ({"exact": None}, {})[: 1 + exact]:
        before, after = (
            again(each, work / f"{name}.hasten", **fields)
            for name, each in (("before", old), ("after", new))
        )
        whole = hasten.pack(after, work / "whole.hastenz").packed_bytes
        begin = time.monotonic()
        apart = hasten.pack(after, work / "apart.hastenz", since=before).packed_bytes
        packing_s, begin = time.monotonic() - begin, time.monotonic()
        hasten.unpack(work / "apart.hastenz", work / "made.hasten", base=before)
        unpacking_s = time.monotonic() - begin
        assert (work / "made.hasten" / MANIFEST).read_bytes() == (after / MANIFEST).read_bytes()
        cells.append(
            f"{apart / 1e3:,.1f} of {whole / 1e3:,.1f} kB = {apart / whole:.1%} "
            f"({packing_s:.0f} s, {unpacking_s:.1f} s)"
        )
    print(f"| {' | '.join(cells)} |", flush=True)


def as_before(old: Path, new: Path) -> str:
    """Return the share of the int8 weights that are as before, and how far the others are off."""
    pairs = zip(scaled(old), scaled(new), strict=True)
    apart = np.concatenate(
        [np.abs(one[1].astype(int) - other[1].astype(int)).ravel() for one, other in pairs]
    )
    return f"{np.mean(apart == 0):.0%}, {apart[apart > 0].mean() if apart.any() else 0:.1f}"


def hour(cache: Path, recipe: str, falling: bool) -> None:
    """Print what an hour of fine-tuning changes."""
    old_state, places = after_an_hour(cache, recipe, falling)
    recipe = f"{recipe}, falling to zero" if falling else recipe
    curve(old_state, {f"{recipe}, an hour": places})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        old = bundle_of(old_state, work / "old")
        for steps, place in places.items():
            row(f"{recipe}, {steps:,} steps", old, bundle_of(place, work / "new"), work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--steps", type=int, nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--hour", choices=RECIPES)
    parser.add_argument(
        "--falling", action="store_true", help="Let the learning rate fall to zero."
    )
    arguments = parser.parse_args()
    print(CODING_HELPS)
    if arguments.falling and not arguments.hour:
        parser.error("--falling needs --hour RECIPE")
    if arguments.hour:
        hour(arguments.cache, arguments.hour, arguments.falling)
        return
    state, tuned = states(arguments.cache)
    curve(state, tuned | longer(arguments.cache))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        old = bundle_of(state, work / "old")
        print("| change | int8 weights as before, mean change of the others |", end="")
        print(" int8 alone (packing, unpacking) | with the exact float32 model |")
        print("|---|---|---|---|")
        pipeline = Pipeline((), (TopK(labels=("boot", *LABELS[1:]), least=0.7),))
        why = "with another least probability, and a class of another name"
        row(
            "a threshold and a label",
            old,
            again(old, work / "new", pipeline=pipeline, why=why),
            work,
        )
        for steps in sorted(arguments.steps, reverse=True):
            for recipe, places in tuned.items():
                made = work / places[steps].stem
                new = bundle_of(places[steps], made)
                last = steps == max(arguments.steps)
                row(f"{recipe}, {steps} steps", old, new, work, exact=last)
                if last:
                    kept = with_scales_of(old, new, made / "copy")
                    row("the same, older scales", old, kept, work, exact=False)
                shutil.rmtree(made)


if __name__ == "__main__":
    main()
