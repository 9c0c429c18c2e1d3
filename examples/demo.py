"""What Cellstream does, shown on the shipped model: `make demo`, or with training first, `make train-demo`.

Every step goes through the front door: `cellstream serve` in a process of its own, our client, `/metrics`.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from cellstream import Client, ConnectionLost, Health

ROOT = Path(__file__).resolve().parents[1]
SHIPPED, TRAINED = "shakespeare-lstm", "demo"
TRAINED_TOKENS, TRAINED_MINUTES = 3_000_000, 2.5  # whichever is spent first
VERSES = ("To be, or not to be, that is the question", "Friends, Romans, countrymen, lend me your ears")
WORD = "question"
START_SECONDS_MAX = 60.0

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--train", action="store_true", help="train, export and prove a model, and serve that"
    )
    started = time.perf_counter()
    if parser.parse_args().train:
        models, model, other = _train(), TRAINED, "make demo                           the shipped model"
    else:
        models, model = ROOT / "models", SHIPPED
        other = "make train-demo                     a model of your own, in three minutes"
    asyncio.run(_show(models, model))
    console.print(f"\n[dim]Done in {time.perf_counter() - started:.0f} s.[/]")
    _say_how_to_go_on(models, model, other)


# ---------------------------------------------------------------- the steps


def _train() -> Path:
    """Train for two minutes and a half at most, export, prove.

    Returns:
        The directory of models that holds the new one.
    """
    _title("Train")
    runs = ROOT / "runs"
    recipe = ROOT / "models" / SHIPPED / "recipe.toml"
    settings = (
        f"name={TRAINED}",
        f"training.tokens={TRAINED_TOKENS}",
        f"training.minutes={TRAINED_MINUTES}",
    )
    changes = (word for one in settings for word in ("--set", one))
    _run("train", str(recipe), "--restart", "--runs", str(runs), *changes)  # whatever a Ctrl-C left there
    _title("Export, and prove")
    models = runs / TRAINED / "models"
    _run("export", str(runs / TRAINED / "checkpoint"), "--models", str(models))
    return models


async def _show(models: Path, model: str) -> None:
    with _serving(models, model) as (target, metrics_url):
        await _wait_until_serving(target)
        await _keep_states_apart(target)
        await _go_on_after_the_stream_ended(target)
        await _look_at_the_gates(target)
        await _generate(target)
        _tell_latency(metrics_url, model)


async def _keep_states_apart(target: str) -> None:
    """Two clients take turns, a character each; then each text alone: the answers must be the same bits."""
    _title("Two clients, taking turns on one server")
    async with Client(target) as first, Client(target) as second:
        together: list[list[NDArray[np.float32]]] = [[], []]
        async with first.session() as romeo, second.session() as brutus:
            for place in range(max(map(len, VERSES))):
                for session, verse, answers in zip((romeo, brutus), VERSES, together, strict=True):
                    if place < len(verse):
                        reply = await session.predict(verse[place], log_probabilities=True, top_k=1)
                        answers.append(reply.outputs["log_probabilities"][0])
        for verse, answers in zip(VERSES, together, strict=True):
            async with first.session() as alone:
                reply = await alone.predict(verse, want="every_step", log_probabilities=True, score=True)
            same = np.array_equal(np.stack(answers), reply.outputs["log_probabilities"])
            verdict = "[green]the same, bit for bit[/]" if same else "[red]DIFFERENT[/]"
            bits = float(np.nanmean(reply.surprise_bits))
            console.print(f"  {verse!r}: {bits:.2f} bits per character; interleaved against alone: {verdict}")
            if not same:
                raise SystemExit("the states of two sessions mixed: this must never happen")


async def _go_on_after_the_stream_ended(target: str) -> None:
    _title("A session goes on after its stream ended")
    async with Client(target) as client, client.session("demo") as session:
        reply = await session.predict("The quality of mercy is not str")
        console.print(f"  first stream ends at position {reply.position}")
    async with Client(target) as client, client.session("demo") as session:
        reply = await session.predict("ain'd", score=True, want="every_step")
        told = ", ".join(
            f"{char!r} {bits:.1f}" for char, bits in zip("ain'd", reply.surprise_bits, strict=True)
        )
        console.print(f"  second stream goes on to position {reply.position}; surprise in bits: {told}")
        await session.close()


async def _look_at_the_gates(target: str) -> None:
    """The gates of the very steps that answered, mean over the units of the top layer."""
    _title(f"What the gates did at each character of {WORD!r}")
    async with Client(target) as client, client.session() as session:
        await session.predict(VERSES[0].removesuffix(WORD), want="none")
        reply = await session.predict(WORD, want="every_step", gates=True, states=True, score=True, top_k=1)
    table = Table(box=None, padding=(0, 2))
    for heading in ("character", "surprise", "forget", "input", "output", "|C̃|", "|C|", "next"):
        table.add_column(heading, justify="right")
    names = ("forget", "input", "output", "candidate")
    columns = [np.abs(reply.gates[name][:, -1]).mean(axis=-1) for name in names]
    columns.append(np.abs(reply.states["cell"][:, -1]).mean(axis=-1))
    for step, character in enumerate(WORD):
        means = [f"{column[step]:.2f}" for column in columns]
        guess = bytes([int(reply.top_ids[step, 0])]).decode("latin-1")
        table.add_row(repr(character), f"{reply.surprise_bits[step]:.1f} bits", *means, repr(guess))
    console.print(table)


async def _generate(target: str) -> None:
    _title("What the model writes")
    async with Client(target) as client:
        generation = client.generate("ROMEO.\n", max_tokens=240, temperature=0.7, seed=1597)
        async with generation:
            console.print("ROMEO.", style="dim")
            async for piece in generation:
                console.print(piece.text, end="", markup=False)
    console.print()


def _tell_latency(metrics_url: str, model: str) -> None:
    _title(f"Latency, from {metrics_url}")
    with urllib.request.urlopen(metrics_url, timeout=5) as response:
        families = {
            family.name: family for family in text_string_to_metric_families(response.read().decode())
        }
    table = Table(box=None, padding=(0, 2))
    for heading in ("", "count", "p50", "p95", "p99"):
        table.add_column(heading, justify="right")
    for name in ("feed_seconds", "queue_seconds", "call_seconds", "generate_first_piece_seconds"):
        buckets = [
            (float(sample.labels["le"]), sample.value)
            for sample in families[f"cellstream_{name}"].samples
            if sample.name.endswith("_bucket") and sample.labels["model"] == model
        ]
        count = buckets[-1][1]
        quantiles = [f"{_quantile(share, buckets) * 1e3:.2f} ms" for share in (0.5, 0.95, 0.99)]
        table.add_row(name, f"{count:.0f}", *(quantiles if count else ["-"] * 3))
    console.print(table)


def _quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    """What Prometheus' histogram_quantile gives, in seconds: linear inside the bucket.

    Args:
        share: Which quantile, 0 to 1.
        buckets: Upper bounds in seconds and cumulative counts, the last one to infinity.
    """
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if count >= rank and count > below:
            return (
                lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
            )
        lower, below = upper, count
    return lower


# ---------------------------------------------------------------- the server


@contextmanager
def _serving(models: Path, model: str) -> Iterator[tuple[str, str]]:
    """`cellstream serve` on free ports.

    Yields:
        The target of gRPC, and the address of /metrics.
    """
    port, metrics_port = _free_port(), _free_port()
    process = subprocess.Popen(
        [
            *_COMMAND,
            *("serve", "--models", str(models), "--default-model", model, "--log-level", "warning"),
            *("--port", str(port), "--metrics-port", str(metrics_port)),
        ]
    )
    try:
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"
    finally:
        process.terminate()
        process.wait(timeout=30)


async def _wait_until_serving(target: str) -> None:
    _title(f"cellstream serve, on {target}")
    deadline = time.monotonic() + START_SECONDS_MAX
    async with Client(target) as client:
        while time.monotonic() < deadline:
            try:
                if await client.health(timeout_seconds=2) is Health.SERVING:
                    break
            except ConnectionLost:
                await asyncio.sleep(0.1)
        else:
            raise SystemExit(f"the server was not ready within {START_SECONDS_MAX:.0f} s")
        for model in await client.models():
            bits = model.metrics.get("heldout_bits_per_character", float("nan"))
            default = " (default)" if model.is_default else ""
            console.print(f"  {model.name}/{model.version}{default}: {bits:.3f} bits per held-out character")


_COMMAND = (sys.executable, "-c", "from cellstream.cli import main; main()")


def _run(*arguments: str) -> None:
    if subprocess.run([*_COMMAND, *arguments], check=False).returncode:
        raise SystemExit(f"`cellstream {arguments[0]}` failed; what it said stands above")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _title(text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def _say_how_to_go_on(models: Path, model: str, other: str) -> None:
    here = models.relative_to(ROOT)
    console.print(
        "\nGo on with:\n"
        f"  .venv/bin/cellstream serve --models {here} --default-model {model}\n"
        "and, while that runs, in another terminal with\n"
        "  .venv/bin/cellstream stream --score < README.md      what surprises the model, coloured\n"
        "  .venv/bin/cellstream generate 'JULIET.'              more verses\n"
        f"  .venv/bin/cellstream inspect {model} --models {here}\n"
        "or with\n"
        "  docker-compose up                   the server with Prometheus and Grafana\n"
        f"  {other}",
        markup=False,
    )


if __name__ == "__main__":
    main()
