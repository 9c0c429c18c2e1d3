"""`make soak`: random use for a long time, by clients good and bad; memory and descriptors must stay flat.

The clients live in this process and speak raw HTTP/2, so that they can break off at any byte. Everything they
do is drawn from one seed. Sessions have names from a bounded set and end when they are idle, so that nothing
that the server keeps has a reason to grow.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console

from cellstream.v1 import prediction_pb2 as pb
from trials.attack import frames
from trials.attack.attackers import CHECK, GENERATE, PREDICT
from trials.attack.frames import RawConnection, connect
from trials.oracle import TEXT_MODEL, write_models
from trials.server import ROOT, Server, serving

CLIENTS = 40
"""At once; the server and they share two cores here."""
NAMES = 400
IDLE_SECONDS = 20.0
"""`session_idle_seconds` and `tombstone_seconds` of the server: what is kept turns over many times."""
TOMBSTONES_MAX = 1000
PAUSE_SECONDS = 0.2
"""At most so long a client rests between two things: the load is steady, and takes about half a core."""
SAMPLES = 240
"""Of a run, evenly; at least a second apart."""
GROWTH_MOST = 0.05
"""The last quarter's memory may be so much above that of the second; the first quarter is warm-up."""
FILES_MOST = 4
"""Descriptors that may be open beyond those at the start, once all clients are gone."""
SETTLE_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at a moment.

    Attributes:
        seconds: Since the beginning.
        resident_bytes: Its memory.
        open_files: Its file descriptors.
        streams: Calls of Predict and Generate.
        sessions: All that it keeps.
        tokens: What it has absorbed so far.
    """

    seconds: float
    resident_bytes: int
    open_files: int
    streams: int
    sessions: int
    tokens: int


class Client:
    """One client: connects, does something of a few kinds, rests, begins again.

    Args:
        port: The server's.
        seed: Of what it does.
        done: Counts what was done, by kind and by how it ended.
    """

    def __init__(self, port: int, seed: int, done: Counter[str]) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._done = done
        self._heard: Counter[str] = Counter()

    async def run(self) -> None:
        """Use the server until cancelled."""
        kinds: Sequence[Callable[[RawConnection], Awaitable[None]]] = (
            self._feed,
            self._feed,
            self._generate,
            self._check,
            self._leave_in_a_message,
        )
        while True:
            connection = await connect(self._port, self._heard)
            try:
                for _ in range(self._random.randint(1, 4)):
                    kind = self._random.choice(kinds)
                    await kind(connection)
                    self._done[kind.__name__.strip("_")] += 1
                    if connection.closed.is_set():
                        break
                    await asyncio.sleep(self._random.random() * PAUSE_SECONDS)
            finally:
                connection.transport.abort()
            self._done["dropped connections"] += 1

    def _begin(self, connection: RawConnection, path: str) -> int:
        connection.streams_begun += 1
        stream = 2 * connection.streams_begun - 1
        connection.say(frames.headers(stream, frames.block(path)))
        return stream

    async def _feed(self, connection: RawConnection) -> None:
        """A call with some sessions and some feeds each; ended, cancelled, or dropped at any moment."""
        stream = self._begin(connection, PREDICT)
        handles = range(self._random.randint(1, 6))
        opens = [pb.Open(handle=handle, session_id=self._name()) for handle in handles]
        self._say(connection, stream, pb.PredictRequest(opens=opens))
        for _ in range(self._random.randint(1, 5)):
            text = "x" * int(self._random.paretovariate(1)) + "y"
            feeds = [pb.Feed(handle=handle, text=text[:3000]) for handle in handles]
            self._say(connection, stream, pb.PredictRequest(feeds=feeds))
            if self._random.random() < 0.5:
                await asyncio.sleep(self._random.random() * PAUSE_SECONDS)
            if connection.closed.is_set() or self._is_over(connection, stream):
                return
        if self._random.random() < 0.3:
            closes = [pb.Close(handle=handle) for handle in handles]
            self._say(connection, stream, pb.PredictRequest(closes=closes))
        await self._end(connection, stream)

    async def _generate(self, connection: RawConnection) -> None:
        """A generation, heard to its end or not."""
        stream = self._begin(connection, GENERATE)
        tokens = self._random.randint(1, 400)
        request = pb.GenerateRequest(session_id=self._name(), text="To be", max_tokens=tokens)
        self._say(connection, stream, request, end=True)
        if self._random.random() < 0.5:
            await asyncio.sleep(self._random.random() * PAUSE_SECONDS)
            connection.say(frames.reset(stream))
            self._done["cancelled"] += 1
        else:
            await self._until_over(connection, stream)

    async def _check(self, connection: RawConnection) -> None:
        """A health check."""
        stream = self._begin(connection, CHECK)
        connection.say(frames.data(stream, frames.grpc_message(b""), end=True))
        await self._until_over(connection, stream)

    async def _leave_in_a_message(self, connection: RawConnection) -> None:
        """Drop the connection in the middle of a message of up to a megabyte."""
        stream = self._begin(connection, PREDICT)
        body = frames.grpc_message(bytes(self._random.randint(100, 1_000_000)))
        connection.say(frames.data(stream, body[: min(len(body) // 2, frames.WINDOW)]))
        await asyncio.sleep(self._random.random() * PAUSE_SECONDS)
        connection.transport.abort()
        await connection.closed.wait()

    async def _end(self, connection: RawConnection, stream: int) -> None:
        """End a call as clients do: half-close and hear the rest, cancel, or drop the connection."""
        how = self._random.random()
        if how < 0.5:
            connection.say(frames.data(stream, b"", end=True))
            await self._until_over(connection, stream)
            self._done["half-closed"] += 1
        elif how < 0.8:
            connection.say(frames.reset(stream))
            self._done["cancelled"] += 1
        else:
            connection.transport.abort()
            await connection.closed.wait()

    def _say(
        self,
        connection: RawConnection,
        stream: int,
        request: pb.PredictRequest | pb.GenerateRequest,
        *,
        end: bool = False,
    ) -> None:
        connection.say(frames.data(stream, frames.grpc_message(request.SerializeToString()), end=end))

    def _name(self) -> str:
        """A session's name, or none."""
        return f"session {self._random.randrange(NAMES)}" if self._random.random() < 0.7 else ""

    @staticmethod
    def _is_over(connection: RawConnection, stream: int) -> bool:
        return stream in connection.streams_ended

    async def _until_over(self, connection: RawConnection, stream: int) -> None:
        while not self._is_over(connection, stream) and await connection.next_told():
            if connection.data_bytes > frames.WINDOW // 2:  # give back what was read, as clients do
                connection.say(frames.window_update(0, connection.data_bytes))
                connection.say(frames.window_update(stream, connection.data_bytes))
                connection.data_bytes = 0


def _sample(server: Server, began: float) -> Sample:
    metrics = server.metrics()
    return Sample(
        seconds=time.monotonic() - began,
        resident_bytes=server.resident_bytes(),
        open_files=server.open_files(),
        streams=int(metrics["cellstream_streams"]),
        sessions=int(metrics["cellstream_sessions"]),
        tokens=int(metrics["cellstream_tokens_total"]),
    )


async def _use(server: Server, minutes: float, seed: int) -> tuple[list[Sample], Counter[str]]:
    """Have all clients use the server for so long; sample it meanwhile, and once when it is at rest again."""
    done: Counter[str] = Counter()
    began, end = time.monotonic(), time.monotonic() + 60 * minutes
    pause = max(1.0, 60 * minutes / SAMPLES)
    samples = [await asyncio.to_thread(_sample, server, began)]
    tasks = [asyncio.create_task(Client(server.port, seed + n, done).run()) for n in range(CLIENTS)]
    while time.monotonic() < end:
        finished, _ = await asyncio.wait(tasks, timeout=pause, return_when=asyncio.FIRST_EXCEPTION)
        for task in finished:
            task.result()  # raises why it ended
        samples.append(await asyncio.to_thread(_sample, server, began))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    settled = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        samples.append(await asyncio.to_thread(_sample, server, began))
        if samples[-1].streams == samples[-1].sessions == 0 or time.monotonic() > settled:
            return samples, done
        await asyncio.sleep(1)


def problems(samples: Sequence[Sample]) -> list[str]:
    """What is not flat.

    Args:
        samples: The first before the load, the last at rest after it.
    """
    used = samples[1:-1]
    quarter = max(1, len(used) // 4)
    second = statistics.median(sample.resident_bytes for sample in used[quarter : 2 * quarter] or used)
    last = statistics.median(sample.resident_bytes for sample in used[-quarter:])
    found = []
    if last > second * (1 + GROWTH_MOST):
        found.append(f"memory grew from {second / (1 << 20):.1f} to {last / (1 << 20):.1f} MiB")
    if samples[-1].open_files > samples[0].open_files + FILES_MOST:
        found.append(f"{samples[0].open_files} files at the start, {samples[-1].open_files} at the end")
    if samples[-1].streams or samples[-1].sessions:
        found.append(f"{samples[-1].streams} streams and {samples[-1].sessions} sessions stay")
    return found


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Draw memory and file descriptors over time."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    minutes = [sample.seconds / 60 for sample in samples]
    figure, (memory, files) = pyplot.subplots(2, 1, figsize=(8, 4.5), sharex=True, layout="constrained")
    mebibytes = [sample.resident_bytes / (1 << 20) for sample in samples]
    memory.plot(minutes, mebibytes)
    memory.set_ylim(0, 1.25 * max(mebibytes))
    memory.set_ylabel("memory, MiB")
    files.plot(minutes, [sample.open_files for sample in samples], label="file descriptors")
    files.plot(minutes, [sample.streams for sample in samples], label="streams", linewidth=0.8)
    files.set_ylim(0, 1.4 * max(sample.open_files for sample in samples))
    files.set_xlabel("minutes")
    files.legend(frameon=False, ncols=2, loc="upper center")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _page(samples: Sequence[Sample], done: Counter[str], transport: str, seed: int) -> str:
    """The numbers as Markdown, for the documentation."""
    used = samples[1:-1]
    quarter = max(1, len(used) // 4)

    def mebibytes(part: Sequence[Sample]) -> str:
        return f"{statistics.median(sample.resident_bytes for sample in part) / (1 << 20):.1f}"

    rows = {
        "minutes, clients, seed": f"{samples[-1].seconds / 60:.0f}, {CLIENTS}, {seed}",
        "connections dropped": f"{done['dropped connections']:,}",
        "calls: fed, generated, checked": f"{done['feed']:,}, {done['generate']:,}, {done['check']:,}",
        "of them cancelled, half-closed": f"{done['cancelled']:,}, {done['half-closed']:,}",
        "connections left in the middle of a message": f"{done['leave_in_a_message']:,}",
        "tokens": f"{samples[-1].tokens:,}",
        "memory, MiB: at the start": mebibytes(samples[:1]),
        "memory, MiB: medians of the four quarters": ", ".join(
            mebibytes(used[at * quarter : (at + 1) * quarter] or used) for at in range(4)
        ),
        "memory, MiB: at rest at the end": mebibytes(samples[-1:]),
        "file descriptors: start, most, end": f"{samples[0].open_files}, "
        f"{max(sample.open_files for sample in samples)}, {samples[-1].open_files}",
    }
    lines = [f'| `transport = "{transport}"` | |', "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join([*lines, ""])


def run(transport: str, tree: Path, minutes: float, seed: int, results: Path | None) -> bool:
    """Soak a server; print the numbers, draw the figure.

    Returns:
        Whether memory and file descriptors were flat, and the server logged no mistake.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        models, log = Path(folder) / "models", Path(folder) / "server.log"
        models.mkdir()
        write_models(models)
        settings: dict[str, object] = {
            "transport": transport,
            "default_model": TEXT_MODEL,
            "session_idle_seconds": IDLE_SECONDS,
            "tombstone_seconds": IDLE_SECONDS,
            "tombstones_max": TOMBSTONES_MAX,
        }
        with serving(models, log, tree=tree, settings=settings) as server:
            samples, done = uvloop.run(_use(server, minutes, seed))
            found = [*problems(samples), *server.mistakes()[:5]]
    page = _page(samples, done, transport, seed)
    console.print(page, markup=False)
    for problem in found:
        console.print(problem, markup=False)
    if results is not None:
        results.mkdir(exist_ok=True)
        (results / f"soak-{transport}.md").write_text(page)
        raw = json.dumps([asdict(sample) for sample in samples])
        (results / f"soak-{transport}.json").write_text(raw + "\n")
        plot(samples, ROOT / "docs" / "trials" / f"soak-{transport}.png")
    return not found
