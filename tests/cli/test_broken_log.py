"""A server whose log cannot be written serves, sweeps and drains like any other, and counts what it lost."""

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.cli.conftest import PROGRAM, environment

from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1.prediction_pb2_grpc import PredictionServiceStub

WAIT_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; the log, which would tell the server's own, cannot be read."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def closed() -> tuple[tuple[str, ...], int | None, int | None]:
    """Standard error is closed, as `2>&-` has it."""
    return ("sh", "-c", 'exec "$@" 2>&-', "sh"), None, None


def full() -> tuple[tuple[str, ...], int | None, int | None]:
    """It is a disk without room."""
    return (), os.open("/dev/full", os.O_WRONLY), None


def unread() -> tuple[tuple[str, ...], int | None, int | None]:
    """It is a pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n")
    os.set_blocking(writing, True)
    return (), writing, reading


def abandoned() -> tuple[tuple[str, ...], int | None, int | None]:
    """It is a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return (), writing, None


@pytest.fixture(
    params=[
        (closed, "native"),
        (full, "native"),
        (unread, "native"),
        (unread, "grpcio"),
        (abandoned, "native"),
    ],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def running(
    request: pytest.FixtureRequest, many: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """A server with such a log: its process, where it serves, and its metrics port."""
    broken, transport = request.param
    shell, stderr, kept = broken()
    port, metrics_port = free_ports(2)
    flags = {
        "--models": many,
        "--default-model": "tiny",
        "--slots-max": 64,
        "--port": port,
        "--metrics-port": metrics_port,
        "--transport": transport,
        "--log-level": "debug",
        "--log-buffer-bytes-max": 400,
        "--session-idle-seconds": 0.3,
    }
    arguments = [str(part) for flag in flags.items() for part in flag]
    process = subprocess.Popen(
        [*shell, *PROGRAM, "serve", *arguments], stderr=stderr, cwd=tmp_path, env=environment()
    )
    if stderr is not None:
        os.close(stderr)
    yield process, f"127.0.0.1:{port}", metrics_port
    process.kill()
    process.wait()
    if kept is not None:
        os.close(kept)


def wait_for(responses: Iterator[pb.PredictResponse], cause: "pb.Cause.ValueType") -> None:
    """Read a stream until it tells this event."""
    for response in responses:
        if cause in [event.cause for event in response.events]:
            return
    raise AssertionError(f"the stream ended without {pb.Cause.Name(cause)}")


def test_it_serves_expires_and_drains(running: tuple[subprocess.Popen[bytes], str, int]) -> None:
    """Each of these stopped for ever, or the whole server did, when a log line raised or waited."""
    process, target, metrics_port = running
    requests: queue.SimpleQueue[pb.PredictRequest] = queue.SimpleQueue()
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(WAIT_SECONDS)
        responses = PredictionServiceStub(channel).Predict(iter(requests.get, None), timeout=WAIT_SECONDS)
        requests.put(pb.PredictRequest(opens=[pb.Open(handle=1)]))
        wait_for(responses, pb.CAUSE_EXPIRED)
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=WAIT_SECONDS) as page:
            dropped = re.search(rb"^cellstream_log_lines_dropped_total (\S+)$", page.read(), re.MULTILINE)
        assert dropped is not None
        assert float(dropped[1]) > 0

        requests.put(pb.PredictRequest(opens=[pb.Open(handle=2)]))
        assert next(responses).opened[0].created
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError, match="the server is going away"):
            wait_for(responses, pb.CAUSE_UNSPECIFIED)
        assert process.wait(WAIT_SECONDS) == 0
