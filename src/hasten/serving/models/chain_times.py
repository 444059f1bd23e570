"""Times of a chain's parts: where the time of its requests goes."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.bundle.chains.plan import Stage, parts_of
from hasten.inputs.chains import Chain
from hasten.inputs.chains.nodes import SOURCE, Crop, Model


def chain_parts(chain: Chain) -> list[tuple[str, str]]:
    """Return where the time of a chain's requests can go: nodes, and parts of them."""
    parts = [(SOURCE, "wait"), (SOURCE, "decode")]
    for node in chain.in_order:
        if isinstance(node, Model):
            parts += [(node.name, part) for part in ("prepare", "run", "decide")]
        else:
            parts.append((node.name, "cut" if isinstance(node, Crop) else "choose"))
    return parts


def passed(chain: Chain, stages: Sequence[Stage], whole_ns: int) -> dict[tuple[str, str], int]:
    """Return what each part of a chain took of a request; without those that had nothing to do.

    Args:
        chain: The chain.
        stages: The stages' times.
        whole_ns: Time from the parsed request to the decision. What no stage took is the source's wait:
            for a thread, and for memory.
    """
    found = {(SOURCE, "wait"): max(0, whole_ns - sum(stage.total_ns for stage in stages))}
    found[SOURCE, "decode"] = stages[0].total_ns
    for node, stage in zip(chain.in_order, stages[1:], strict=True):
        if stage.asks or not isinstance(node, Model):
            found |= {(node.name, part): ns for part, ns in parts_of(node, stage).items()}
    return found
