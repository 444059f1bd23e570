"""Short training for the zoo's classifiers of pictures, whose weights no package ships.

Where weights are random, the two largest scores of a picture hardly differ, and noise decides its class:
bfloat16 alone changes about 5% of the answers, so no faster form could keep them. Here a network learns 20
kinds of pictures in a few minutes; each kind has a mark of its own, laid over a picture.

    python benchmarks/zoo_taught.py CASE [...]   # trains, and prints how many fresh pictures it gets right
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from zoo_cases import Arrays, pictures

KINDS = 20
_BATCH = 16
_POOL = 320
"""Number of different pictures to lay marks over while training."""
_GOOD, _LOOK = 0.97, 20
"""Share of right answers, over the newest so many batches, at which training ends."""
_MOST_STEPS = 800
_RATE, _LOWER = 1e-3, 2e-4
_SLOW = ("vit_", "swin_", "mixer_")
"""Begin of the names of networks that hardly learn at the usual rate: after 60 steps ViT had 33% right, and 59% at the lower one."""
_RECIPE = 1
"""Number of this way to train, for the name of the kept weights."""


def kinds(side: int) -> Callable[..., Arrays]:
    """Return a maker of pictures of 20 kinds, `(3, side, side)` each; it draws the kinds itself."""
    return partial(_drawn, side)


def _drawn(side: int, rng: np.random.Generator, count: int) -> Arrays:
    own = pictures(side)(rng, count)["x"]
    own += marks(side)[rng.integers(0, KINDS, count)]
    return {"x": own}


@cache
def marks(side: int) -> np.ndarray:
    """Return what is laid over the pictures of each kind, `(20, 3, side, side)`."""
    return pictures(side)(np.random.default_rng(11), KINDS)["x"]


def taught(name: str, network: Any, side: int) -> Any:
    """Train a network until it tells the kinds apart, or take the weights of an earlier training.

    Args:
        name: Name of the kept weights.
        network: Module that answers scores of the kinds, `(n, 20)`.
        side: Height and width of its pictures.

    Raises:
        RuntimeError: it didn't learn enough.
    """
    from garments import CACHE
    from safetensors.torch import load_file, save_file

    kept = Path(CACHE) / f"zoo-{name}-{side}-{_RECIPE}.safetensors"
    if kept.exists():
        network.load_state_dict(load_file(kept))
        return network.eval()
    _train(network, side, _LOWER if name.startswith(_SLOW) else _RATE)
    kept.parent.mkdir(parents=True, exist_ok=True)
    written = kept.with_suffix(f".{os.getpid()}")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, written)
    written.replace(kept)
    return network.eval()


def _train(network: Any, side: int, rate: float) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    rng = np.random.default_rng(7)
    pool = torch.from_numpy(pictures(side)(rng, _POOL)["x"])
    added = torch.from_numpy(marks(side))
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, _LOOK)
    network.train()
    right: list[float] = []
    while True:
        if len(right) == _MOST_STEPS:
            share = np.mean(right[-_LOOK:])
            raise RuntimeError(f"after {_MOST_STEPS} steps only {share:.0%} of the kinds are right")
        own = pool[torch.from_numpy(rng.integers(0, _POOL, _BATCH))]
        labels = torch.from_numpy(rng.integers(0, KINDS, _BATCH))
        flipped = own.flip(3) if rng.random() < 0.5 else own
        scores = network(flipped + added[labels])
        loss = nn.functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm.step()
        right.append(float((scores.argmax(1) == labels).float().mean()))
        if len(right) >= _LOOK and np.mean(right[-_LOOK:]) >= _GOOD:
            break
    network.eval()


def main(names: list[str]) -> None:
    """Train the named cases, and print how many fresh pictures of 200 each gets right."""
    import torch
    from zoo_vision import CASES

    taught_ones = [one for one in CASES if one.family.startswith(("timm", "torchvision"))]
    if strange := sorted({*names} - {one.name for one in taught_ones}):
        raise SystemExit(
            f"{strange[0]} isn't trained here: {', '.join(one.name for one in taught_ones)}"
        )
    for case in (one for one in taught_ones if one.name in names):
        begin = time.monotonic()
        network = case.network()
        rng = np.random.default_rng(9)
        side = case.drawn(1, 0)["x"].shape[-1]
        own, labels = pictures(side)(rng, 200)["x"], rng.integers(0, KINDS, 200)
        with torch.no_grad():
            scores = network(torch.from_numpy(own + marks(side)[labels]))
            with torch.autocast("cpu", torch.bfloat16):
                shorter = network(torch.from_numpy(own + marks(side)[labels])).float()
        right = (scores.argmax(1).numpy() == labels).mean()
        same = (scores.argmax(1) == shorter.argmax(1)).float().mean()
        print(
            f"{case.name}: {right:.1%} right, {same:.1%} the same in bfloat16, "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
