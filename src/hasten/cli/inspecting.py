"""Define `hasten inspect`, which lists what is in a bundle, or what an ONNX model takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli import completing
from hasten.cli.options import one_line_errors, trusted_option
from hasten.core.presence import is_folder
from hasten.core.words import amount
from hasten.errors import InputError, visible

if TYPE_CHECKING:
    from hasten.bundle.manifest import Manifest
    from hasten.bundle.signatures import PublicKey
    from hasten.core.sequences import Sequences


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), shell_complete=completing.inspected)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option(
    "--requirements",
    "as_requirements",
    is_flag=True,
    help="Print the packages that the bundle needs, for pip install --requirement.",
)
@click.option("--serve", is_flag=True, help="Add the packages of the server to --requirements.")
@trusted_option
def inspect(
    bundle: Path,
    as_json: bool,
    as_requirements: bool,
    serve: bool,
    trusted: tuple[str, ...] | None,
) -> None:
    """Check BUNDLE and list its contents.

    BUNDLE may also be an ONNX file, MODEL.onnx: its inputs and outputs are listed.
    """
    from hasten.bundle import read, requirements, unpacked
    from hasten.bundle.packing.names import is_packed
    from hasten.bundle.signatures import keys_of
    from hasten.cli.commands import as_text
    from hasten.inputs.chains import is_chain, models_in_words

    with one_line_errors():
        if as_json and as_requirements:
            raise InputError("--json and --requirements print different things: give one of them")
        if serve and not as_requirements:
            raise InputError("--serve needs --requirements, which it adds to: give both")
        if bundle.suffix.lower() == ".onnx" and not is_folder(bundle):
            if as_json or as_requirements or trusted:
                raise InputError(
                    f"{bundle} is a model: --json, --requirements and --trusted are for bundles"
                )
            _print(_facts_of_model(bundle))
            return
        if is_chain(bundle):
            raise InputError(
                f"{bundle} is a chain: inspect its bundles one by one ({models_in_words(bundle)}); "
                f"hasten bench {bundle} --end-to-end --data FOLDER shows where a chain's time goes"
            )
        keys = keys_of(trusted)
        file = bundle
        bundle = unpacked(file, keys)
        manifest = read(bundle, keys)
        if as_json:
            click.echo(as_text(manifest))
        elif as_requirements:
            click.echo("\n".join(requirements(manifest, ["serve"] if serve else [])))
        else:
            packed = [("packed", _packed(file))] if is_packed(file) else []
            _print_whole(bundle, manifest, keys, packed)


def _packed(file: Path) -> str:
    """Say how large a packed file is, and what that is good for."""
    from hasten.reporting.sizes import STEADY, size_in_words

    return f"{size_in_words(file.stat().st_size)}; {STEADY}"


def _print_whole(
    folder: Path,
    manifest: Manifest,
    keys: Sequence[PublicKey],
    packed: Sequence[tuple[str, object]],
) -> None:
    """Print the facts of a bundle, its figures before and after, and its times in batches."""
    from hasten.bundle.evidence import batch_curve
    from hasten.cli.tables import curve_table

    curve = batch_curve(folder, manifest)
    here = ("this machine", _this_machine(folder, manifest))
    _print([*_facts(folder, manifest, keys), *packed, here])
    if manifest.comparison is not None:
        lines = filter(None, (*manifest.comparison.in_words(), manifest.comparison.how))
        click.echo("\non the sealed samples, before and after:")
        click.echo("\n".join(map(visible, lines)))
    if curve:
        click.echo(f"\n{curve_table(curve)}")


def _facts(
    folder: Path, manifest: Manifest, keys: Sequence[PublicKey]
) -> Iterator[tuple[str, object]]:
    """Yield the facts of a bundle: name and value."""
    from hasten.bundle import constant_inputs
    from hasten.bundle.copies import copies_in_words
    from hasten.bundle.covered import batches_in_words
    from hasten.bundle.requests import in_words
    from hasten.bundle.signing import signer_in_words
    from hasten.core.varying import in_words as varying_in_words

    winner, made_for = manifest.winner, manifest.target
    yield "status", f"{manifest.status}: {manifest.why}"
    yield "model", winner.label
    yield "inputs", "; ".join(map(str, winner.artifact.inputs))
    yield "outputs", "; ".join(map(str, winner.artifact.outputs))
    yield from _always(constant_inputs(folder, manifest))
    if copies := copies_in_words(winner):
        yield "copies", copies
    if manifest.least:
        yield "pictures", _decoded(manifest.least)
    if manifest.sequences:
        yield "states", _carried(manifest.sequences)
    yield "exact model", manifest.exact.label if manifest.exact else "left out"
    yield "samples", in_words(manifest.requests)
    yield "population", (manifest.certificate or {}).get("population", "none")
    if manifest.status == "certified":
        yield "batches", batches_in_words(manifest)
    if manifest.varying:
        yield "not covered", varying_in_words(manifest.varying)
    if "look" in manifest.sealed:
        yield "look", manifest.sealed["look"]
    yield "made on", f"{made_for.processor}, {amount(made_for.threads, 'thread')}"
    if made_for.kind != "host":
        yield "made for", made_for.device
    yield "made at", manifest.created
    yield "signature", signer_in_words(folder, keys)
    size = sum(size_bytes for _, size_bytes in manifest.files.values())
    yield "size", f"{size / 1e6:.1f} MB in {amount(len(manifest.files), 'file')}, all intact"


def _this_machine(folder: Path, manifest: Manifest) -> str:
    """Say how this machine differs from the one that a bundle was made on, and whether that matters."""
    from hasten.bundle import artifact_of, differences
    from hasten.core.devices import at_hand
    from hasten.measure.environment import environment

    here = at_hand(manifest.target)
    unlike = differences(manifest, here, environment(here))
    told = "; ".join(unlike) or "matches the one it was made on"
    if unlike and not manifest.winner.custom_ops and manifest.status == "certified":
        winner = artifact_of(folder, manifest.winner, manifest, ())
        if not differences(manifest, here, environment(here), artifact=winner):
            told += "; the certificate holds here, since the answers are the same bits everywhere"
    return told


def _print(facts: Iterable[tuple[str, object]]) -> None:
    """Print facts; those from a stranger's records may be of any type, and have control characters."""
    for name, value in facts:
        click.echo(f"{name + ':':14}{visible(str(value))}")


def _facts_of_model(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the facts of an ONNX file.

    Raises:
        InputError: it can't be read, or onnx isn't installed.
    """
    from hasten.inputs.models import onnx
    from hasten.reporting.sizes import size_in_words

    model = onnx.load(path)
    yield "model", f"an ONNX file that isn't optimized yet, {size_in_words(model.size_bytes)}"
    yield "inputs", "; ".join(map(str, model.inputs))
    yield "outputs", "; ".join(map(str, model.outputs))


def _always(found: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Yield the line on inputs that take only some numbers, if there are any."""
    if found:
        from hasten.core.words import numbers_in_words

        each = ", ".join(f"{name} is {numbers_in_words(only)}" for name, only in found.items())
        yield "constant", f"{each}: the model refuses other values"


def _decoded(least: int) -> str:
    """Say how pictures are decoded for the model that ships, where that isn't as the pipeline states."""
    return (
        f"JPEG files are decoded at a half, a quarter or an eighth of their size, as far as that leaves {least:,} "
        "pixels on the shorter side; for the exact model they are decoded as the pipeline states"
    )


def _carried(sequences: Sequences) -> str:
    pairs = ", ".join(f"{one} from {other}" for one, other in sequences.states)
    return f"{pairs}; certified on whole sequences, by {sequences.scored} of their steps"
