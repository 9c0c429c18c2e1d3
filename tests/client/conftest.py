"""A real server for each test; one in a process of its own to be killed; a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cellstream import Client
from cellstream.testing import RunningServer, running_server

SERVE = """
import asyncio, pathlib, sys
from cellstream.testing import running_server

async def serve():
    async with running_server(pathlib.Path(sys.argv[1]), port=int(sys.argv[2])) as server:
        print(server.target, file=sys.stderr, flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""


@pytest.fixture
async def server(tiny: Path) -> AsyncIterator[RunningServer]:
    """A server of `tiny` in this process."""
    async with running_server(tiny) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(server.target) as connected:
        yield connected


class ServerProcess:
    """A server in a process of its own, so that it can be stopped in the middle of anything."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._process: asyncio.subprocess.Process | None = None
        self.target = ""

    async def start(self, port: int = 0) -> None:
        """Start it; at the port of its life before, if asked to."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", SERVE, str(self._models), str(port)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        while not self.target.startswith("127.0.0.1:"):
            line = await self._process.stderr.readline()
            assert line, "the server ended before it served"
            self.target = line.decode().strip()

    async def restart(self) -> None:
        """Start it again where it was."""
        port = int(self.target.rpartition(":")[2])
        self.target = ""
        await self.start(port)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP makes it silent, SIGCONT goes on."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def kill(self) -> None:
        """End it without a word."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


@pytest.fixture
async def process(tiny: Path) -> AsyncIterator[ServerProcess]:
    """A server of `tiny` in another process."""
    running = ServerProcess(tiny)
    await running.start()
    try:
        yield running
    finally:
        await running.kill()


class Wire:
    """A TCP connection's stretch between client and server, which can be cut, or deaf on the way back."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.deaf = False
        """Whether what the server says is thrown away."""
        self.target = ""

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break all connections; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.deaf = False

    async def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in tuple(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, server_writer]
        for one in (
            self._pump(reader, server_writer, lambda: False),
            self._pump(server_reader, writer, lambda: self.deaf),
        ):
            task = asyncio.create_task(one)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, deaf: Callable[[], bool]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if not deaf():
                    sink.write(data)
                    await sink.drain()
        sink.transport.abort()


@pytest.fixture
async def wire(server: RunningServer) -> AsyncIterator[Wire]:
    """A wire to the server in this process."""
    stretch = Wire(server.target)
    await stretch.start()
    try:
        yield stretch
    finally:
        await stretch.stop()
