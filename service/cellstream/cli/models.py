"""`cellstream models`: what a server holds."""

from __future__ import annotations

import asyncio
import dataclasses

from cellstream.cli.console import print_json, print_table
from cellstream.cli.options import TARGET, AsJson, Target, Tls, with_tls


@with_tls
def command(target: Target = TARGET, as_json: AsJson = False, *, tls: Tls) -> None:
    """List the models and versions that a server holds; the one with a star is the default."""
    from cellstream.client import Client, ModelInfo

    async def ask() -> list[ModelInfo]:
        async with Client(target, **tls) as client:
            return await client.models()

    models = asyncio.run(ask())
    if as_json:
        for model in models:
            print_json(dataclasses.asdict(model))
        return
    print_table(
        ("model", "takes", "state", "bits/character", "numerics"),
        (
            (
                f"{model.name}/{model.version}{' *' if model.is_default else ''}",
                f"{model.vocabulary_size} tokens"
                if model.input_kind == "tokens"
                else f"{model.features} numbers",
                ", ".join(f"{state.name} {list(state.shape)}" for state in model.states),
                _figure(model.metrics.get("heldout_bits_per_character")),
                f"{model.numerics} {model.numerics_digest[:12]}",
            )
            for model in models
        ),
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
