"""When the engines run: on the event loop itself, behind all that the loop has read in the same turn.

The first arrival asks for a call; until it comes, everything else that is read joins it. Between two calls
the loop runs once, so that messages, health checks and metrics are never behind more than one call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from cellstream.engine import Call
from cellstream.metrics import Metrics
from cellstream.sessions import Served


class EngineLoop:
    """Gives the engines their turns, one call at a time, round robin.

    Args:
        served: The models.
        metrics: Where calls are counted.
        settled: Called after each turn.
        loop_turns: How often the event loop runs between two calls, at least 1. A transport that needs
            several turns to deliver what has come says how many; before the first call it gets two of them.
    """

    def __init__(
        self, served: Iterable[Served], metrics: Metrics, settled: Callable[[], None], loop_turns: int = 1
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._engines = deque((one.engine, _observer(one, metrics)) for one in served)
        self._settled = settled
        self._asked = False
        self._loop_turns = loop_turns

    def ask(self) -> None:
        """Ask for a turn: an engine has something to do."""
        if not self._asked:
            self._asked = True
            self._run_after(min(2, self._loop_turns))

    def _run(self) -> None:
        """Let the next engine for which something waits make one call."""
        self._asked = False
        try:
            for _ in range(len(self._engines)):
                engine, observe = self._engines[0]
                self._engines.rotate(-1)
                call = engine.turn()
                if call is not None:
                    observe(call)
                    break
            self._settled()
        finally:
            if not self._asked and any(engine.waiting for engine, _ in self._engines):
                self._asked = True
                self._run_after(self._loop_turns)

    def _run_after(self, loop_turns: int) -> None:
        if loop_turns > 1:
            self._loop.call_soon(self._run_after, loop_turns - 1)
        else:
            self._loop.call_soon(self._run)


def _observer(served: Served, metrics: Metrics) -> Callable[[Call], None]:
    """Make a function that counts one model version's calls; the labels are looked up once."""
    labels = (served.name, served.version)
    calls, steps, tokens = (
        counter.labels(*labels) for counter in (metrics.calls, metrics.steps, metrics.tokens)
    )
    call_seconds, queue_seconds, batch_rows = (
        histogram.of(*labels)
        for histogram in (metrics.call_seconds, metrics.queue_seconds, metrics.batch_rows)
    )

    def observe(call: Call) -> None:
        calls.inc()
        steps.inc(call.steps)
        tokens.inc(call.tokens)
        call_seconds.observe(call.seconds)
        batch_rows.observe(call.rows)
        if call.queue_seconds:
            queue_seconds.observe_many(call.queue_seconds)

    return observe
