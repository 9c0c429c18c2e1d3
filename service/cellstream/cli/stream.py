"""`cellstream stream`: a session that hears standard input, and what the model says of it, line by line."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cellstream.cli.console import count, note, print_json
from cellstream.cli.options import TARGET, AsJson, Model, SessionName, Target, Tls, split_model, with_tls
from cellstream.cli.standard_input import StandardInput
from cellstream.cli.timing import Timing
from cellstream.cli.views import Predictions, Scores, Sent, View

if TYPE_CHECKING:
    from cellstream.client import Client, Pending, Session

IN_FLIGHT_MAX = 64
"""Lines that wait for their answer: enough to keep a server busy, few enough that Ctrl-C loses little."""


@with_tls
def command(
    score: Annotated[
        bool,
        typer.Option(
            "--score",
            help="Print how surprising each line was, in bits: its total, its bits a character, and coloured "
            "what stands out: yellow from 5 bits, red from 8 (expected less than once in 32, in 256).",
        ),
    ] = False,
    top_k: Annotated[
        int, typer.Option(help="Without --score: how many likely tokens to print.", min=1, max=256)
    ] = 5,
    session: SessionName = "",
    model: Model = "",
    target: Target = TARGET,
    as_json: AsJson = False,
    *,
    tls: Tls,
) -> None:
    """Send standard input to a session, and print what the model says of each line as it comes.

    Without --score it is what the model expects next; with it, how surprised the model was. For example:
    tail -f app.log | cellstream stream --score

    At the end standard error has the time, the latency of a line, and how many bytes were not UTF-8.
    """
    run = _Run(score=score, top_k=top_k, as_json=as_json)
    try:
        asyncio.run(run.stream(session, model, target, tls))
    finally:
        run.summarise()


@dataclass(frozen=True, slots=True)
class _InFlight:
    sent: Sent
    at: float
    pending: Pending


class _Run:
    """One run of the command: lines go out on one task, answers are printed in order on another."""

    def __init__(self, *, score: bool, top_k: int, as_json: bool) -> None:
        self._score = score
        self._top_k = top_k
        self._as_json = as_json
        self._source = StandardInput()
        self._timing = Timing()
        self._view: View | None = None
        self._session: Session | None = None
        self._in_flight: asyncio.Queue[_InFlight | None] = asyncio.Queue(IN_FLIGHT_MAX)
        self._lines = 0
        self._characters = 0

    async def stream(self, name: str, model: str, target: str, tls: Tls) -> None:
        """Send all lines, and print each answer as soon as it and those before it are there."""
        from cellstream.client import Client

        model, version = split_model(model)
        async with (
            Client(target, **tls) as client,
            client.session(name, model=model, version=version) as session,
        ):
            view = self._view = await self._choose_view(client, session)
            self._session = session
            sending = asyncio.create_task(self._send(view, session))
            try:
                while (line := await self._in_flight.get()) is not None:
                    reply = await line.pending
                    self._timing.add(time.perf_counter() - line.at)
                    self._characters += len(line.sent.text)
                    if line.sent.shown is not None:
                        self._lines += 1
                        view.show(line.sent.shown, reply)
                await sending
            finally:
                sending.cancel()

    async def _choose_view(self, client: Client, session: Session) -> View:
        if self._score:
            if not self._as_json:
                note(f"[dim]{Scores.HEADING}[/dim]")
            return Scores(as_json=self._as_json)
        served = await client.model(session.model, session.version)
        return Predictions(self._top_k, bytewise=served.vocabulary_size == 256, as_json=self._as_json)

    async def _send(self, view: View, session: Session) -> None:
        try:
            async for sent in view.split(self._source.lines()):
                at = time.perf_counter()
                pending = await session.send(sent.text, **view.answer)
                await self._in_flight.put(_InFlight(sent, at, pending))
        finally:
            await self._in_flight.put(None)

    def summarise(self) -> None:
        """Tell on standard error how it went; nothing, if it never began."""
        if self._view is None or self._session is None:
            return
        found, bad, position = self._view.found, self._source.bad_bytes, self._session.position
        if self._as_json:
            counts = {"lines": self._lines, "characters": self._characters, "bad_bytes": bad}
            summary = {**counts, **found, **self._timing.to_json(), "position": position}
            print_json(summary, stderr=True)
            return
        bits = f": {found['bits']:,.1f} bits, {found['bits_per_character']:.3f} a character" if found else ""
        heard = f"{count(self._lines, 'line')}, {count(self._characters, 'character')}"
        note(f"[dim]{heard}{bits}.[/dim]")
        note(f"[dim]{self._timing} a line; the session is at position {position:,}.[/dim]")
        if bad:
            were = "was" if bad == 1 else "were"
            note(f"[yellow]{count(bad, 'byte')} {were} not UTF-8, and {were} sent as \ufffd.[/yellow]")
