"""`cellstream generate`: a model goes on from a prompt, printed as it is made."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cellstream.cli.console import console, count, note, print_json, visible
from cellstream.cli.options import TARGET, AsJson, Model, SessionName, Target, Tls, split_model, with_tls
from cellstream.cli.timing import Timing

if TYPE_CHECKING:
    from cellstream.client import Generation, SamplingOptions


@with_tls
def command(
    prompt: Annotated[
        str,
        typer.Argument(
            help="What the model hears first; -: standard input. May be left out with --session.",
            show_default=False,
        ),
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="How many tokens to make at most.", min=1)] = 256,
    temperature: Annotated[
        float, typer.Option(help="0: always the most likely; 1: as the model says; above: bolder.", min=0)
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among this many most likely tokens; 0: all.", min=0)] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the most likely that hold this much probability.", min=0, max=1)
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="For the same text again; drawn and told if not given.", min=0)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends it and is not printed; may be given often.")
    ] = None,
    session: SessionName = "",
    model: Model = "",
    target: Target = TARGET,
    as_json: AsJson = False,
    *,
    tls: Tls,
) -> None:
    """Let a model go on from a prompt; prompt and text are printed, the text as it is made.

    For example: cellstream generate "ROMEO:" --max-tokens 400 --temperature 0.7

    At the end standard error has the time, the latency of a piece, and the seed.
    """
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode(errors="replace")
    sampling: SamplingOptions = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": stop or [],
    }
    if seed is not None:
        sampling["seed"] = seed
    asyncio.run(_generate(prompt, sampling, session, model, target, tls, as_json=as_json))


async def _generate(
    prompt: str,
    sampling: SamplingOptions,
    session: str,
    model: str,
    target: str,
    tls: Tls,
    *,
    as_json: bool,
) -> None:
    from cellstream.client import Client

    model, version = split_model(model)
    timing = Timing()
    tokens, heard = 0, False  # a stop text that comes at once is heard of, with no token
    async with (
        Client(target, **tls) as client,
        client.generate(
            prompt or None, session_id=session, model=model, version=version, **sampling
        ) as generation,
    ):
        asked = time.perf_counter()
        try:
            async for piece in generation:
                if not (heard or as_json):
                    console().print(escape(_shown(prompt)), style="bold", end="", soft_wrap=True)
                heard = True
                now = time.perf_counter()
                timing.add(now - asked)
                asked = now
                tokens += len(piece.ids)
                if as_json:
                    print_json({"text": piece.text, "ids": piece.ids, "position": piece.position})
                else:
                    print(_shown(piece.text), end="", flush=True)
        finally:
            if heard:
                _summarise(generation, tokens, timing, as_json=as_json)


def _shown(text: str) -> str:
    """As it is into a file or a pipe; on a terminal without what would steer it."""
    return "\n".join(map(visible, text.split("\n"))) if sys.stdout.isatty() else text


def _summarise(generation: Generation, tokens: int, timing: Timing, *, as_json: bool) -> None:
    if as_json:
        counts = {"tokens": tokens, "position": generation.position, "seed": generation.seed}
        print_json({**counts, "finish_reason": generation.finish_reason, **timing.to_json()}, stderr=True)
        return
    print(flush=True)
    why = {"length": "all that was asked for", "stop": "a stop text came"}
    ended = why.get(generation.finish_reason or "", "interrupted")
    made = f"{count(tokens, 'token')} ({ended}), {tokens / timing.seconds:,.0f} a second"
    # One that is broken off may have gone further than its last piece that came.
    least = "" if generation.finish_reason else "at least "
    seed = f"seed {generation.seed}, position {least}{generation.position:,}"
    note(f"[dim]{made}, {timing} a piece; {seed}.[/dim]")
