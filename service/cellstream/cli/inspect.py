"""`cellstream inspect`: what a model on disk says of itself, verified."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from cellstream.cli.console import console, print_json
from cellstream.cli.options import AsJson, split_model
from cellstream.errors import VersionUnknown

if TYPE_CHECKING:
    from cellstream.repository import Manifest, ModelVersion

Lines = Iterable[tuple[str, object]]


def command(
    model: Annotated[
        str,
        typer.Argument(help="Model, or model/version; without a version the highest.", show_default=False),
    ],
    models: Annotated[Path, typer.Option(help="Directory of <name>/<version>/ folders.")] = Path("models"),
    as_json: AsJson = False,
) -> None:
    """Show a model on disk: its card, its signature, the state of a session, what its export proved.

    Every file's digest and both graphs' signatures are verified first, as a server does: what can be
    inspected can be served.
    """
    from cellstream.repository import Repository

    name, version = split_model(model)
    if version and not version.isdecimal():
        raise VersionUnknown(f"{version!r} is no version: a positive integer is.", version=version)
    found = Repository(models).load(name, int(version) if version else None)
    if as_json:
        digest, card = found.manifest_digest, found.load_card()
        print_json(
            {"manifest": found.manifest.model_dump(mode="json"), "manifest_digest": digest, "card": card}
        )
        return
    _show(found)


def _show(found: ModelVersion) -> None:
    out = console()
    manifest = found.manifest
    out.print(Text(f"{manifest.name}/{manifest.version}", "bold"), Text(f"in {found.directory}", "dim"))
    card = found.load_card()
    if card:
        out.print()
        out.print(Markdown(card) if out.is_terminal else Text(card.rstrip()))
    for title, lines in _sections(found):
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for key, value in lines:
            table.add_row(Text(f"  {key}"), Text(str(value), overflow="fold"))
        if table.row_count:
            out.print()
            out.print(Text(title, "bold"))
            out.print(table)


def _sections(found: ModelVersion) -> Iterator[tuple[str, Lines]]:
    manifest = found.manifest
    yield "What it is", _architecture(manifest)
    yield "Signature", _signature(manifest)
    state_bytes = sum(math.prod(state.shape) * np.dtype(state.dtype).itemsize for state in manifest.states)
    yield (
        f"State of a session, {state_bytes:,} bytes",
        (
            (
                state.name,
                f"{state.dtype} {list(state.shape)}, from {state.input} to {state.output}, "
                f"{state.initial:g} before the first token",
            )
            for state in manifest.states
        ),
    )
    yield "What it was measured at", manifest.metrics.items()
    yield "What its export proved", manifest.proof.items()
    yield (
        "Files, verified",
        (
            ("manifest.json", f"SHA-256 {found.manifest_digest}"),
            *(
                (name, f"SHA-256 {file.sha256}, {file.bytes:,} bytes")
                for name, file in manifest.files.items()
            ),
        ),
    )
    yield "Made with", manifest.versions.items()


def _architecture(manifest: Manifest) -> Iterator[tuple[str, object]]:
    sizes = manifest.architecture
    yield "cell", sizes.cell
    yield "layers", f"{sizes.layers} of {sizes.hidden_size} units"
    if sizes.embedding_size:
        yield "embedding", f"{sizes.embedding_size} numbers a token, folded into the first layer"
    yield "parameters", f"{sizes.parameters:,}, products' weights in {manifest.weights_dtype}"
    yield "exported", manifest.created
    if manifest.training_data_sha256:
        yield "trained on", f"text of SHA-256 {manifest.training_data_sha256}"


def _signature(manifest: Manifest) -> Iterator[tuple[str, object]]:
    given = manifest.input
    if given.kind == "tokens":
        by = f"; {manifest.tokenizer} makes them" if manifest.tokenizer else ""
        yield "takes", f"{given.name}: int64 [time, batch], one of {given.vocabulary_size} tokens{by}"
    else:
        yield "takes", f"{given.name}: float32 [time, batch, {given.features}]"
    for output in manifest.outputs:
        shape = ", ".join(map(str, output.shape))
        yield "answers", f"{output.name}: float32 [time, batch, {shape}]"
    if manifest.sequence_graph:
        yield "portable", f"{manifest.sequence_graph}: the same without gates, and lengths: int32 [batch]"
    for gate in manifest.gates:
        yield "shows", f"{gate.name}: float32 [time, batch, {gate.shape[0]}, {gate.shape[1]}]"
