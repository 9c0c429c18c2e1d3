"""Going away: everybody is told first, nothing is lost without a word, and the time is kept.

And coming: what keeps a server from starting is said at once, and nothing is left listening.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstream.errors import (
    DigestMismatch,
    ModelFileMissing,
    PortInUse,
    RepositoryError,
    SettingsInvalid,
    SetupError,
    SignatureMismatch,
)
from cellstream.testing import running_server, write_model
from cellstream.v1 import prediction_pb2 as pb
from cellstream.v1 import prediction_pb2_grpc

LARGE = pb.Answer(want=pb.WANT_EVERY_STEP, top_k=256, log_probabilities=True)


async def test_everybody_is_told_where_their_sessions_stand(front: Any) -> None:
    """Queued feeds end, one event for each open handle, then the stream; positions are final."""
    brake = front.brake()
    async with front.talk() as talk, front.talk() as idle:
        await talk.say(opens=[pb.Open(handle=0, session_id="alice"), pb.Open(handle=1)])
        await talk.opened(1)
        await idle.open(0, "bob")
        slow = pb.Answer(want=pb.WANT_EVERY_STEP, states=True)
        brake.hold()
        await talk.say(
            feeds=[pb.Feed(handle=0, id=1, text="abcdef", answer=slow), pb.Feed(handle=0, id=2, text="never")]
        )
        await front.until(lambda: front.engine().waiting == 1)
        await brake.turns(2)
        stopping = asyncio.create_task(front.server.stop())
        ending = await talk.ending()
        assert (ending.code, ending.reason) == (StatusCode.UNAVAILABLE, "DRAINING")
        assert "final" in ending.message
        assert [result.position for result in talk.results(1)] == [1, 2, 2]
        assert front.told(talk.results(1)[-1].error).reason == "DRAINING"
        assert front.told(talk.results(2)[-1].error).reason == "DRAINING"
        events = {event.handle: event for event in talk.heard if isinstance(event, pb.Event)}
        assert {event.cause for event in events.values()} == {pb.CAUSE_DRAINING}
        assert {handle: event.position for handle, event in events.items()} == {0: 2, 1: 0}
        assert (await idle.event(0)).cause == pb.CAUSE_DRAINING
        assert (await idle.ending()).reason == "DRAINING"
        await stopping
    assert front.registry.draining


async def test_an_open_that_is_read_while_the_stream_ends_is_refused(front: Any) -> None:
    """A session made then would be gone without a word; one that waits for a Close is refused by its name."""
    brake = front.brake()
    async with front.talk() as talk:
        await talk.open(0, "alice")
        brake.hold()
        await talk.say(feeds=[pb.Feed(handle=0, text="abc")], closes=[pb.Close(handle=0)])
        await talk.say(opens=[pb.Open(handle=1, session_id="alice")])
        await front.until(lambda: len(next(iter(front.registry.streams)).handles) == 2)
        front.registry.drain()
        await talk.say(opens=[pb.Open(handle=2, session_id="late")])
        for handle, name in ((1, "alice"), (2, "late")):
            refused = await talk.opened(handle)
            assert (refused.session_id, front.told(refused.error).reason) == (name, "DRAINING")
        assert len(front.registry) == 0


async def test_a_generation_is_told_too(front: Any) -> None:
    """All that it absorbed has been sent; then UNAVAILABLE."""
    brake = front.brake()
    generation = front.prediction.Generate(pb.GenerateRequest(text="ROMEO:", max_tokens=900, seed=1))
    brake.hold()
    await front.until(lambda: front.engine().waiting == 1)
    await brake.turns(8)
    (session,) = front.registry
    position = session.position
    await front.server.stop()
    ids: list[int] = []

    async def read() -> None:
        while (response := await generation.read()) is not grpc.aio.EOF:
            ids.extend(response.ids)

    error = await front.failure(read())
    assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "DRAINING")
    assert len(ids) == position - len("ROMEO:") > 0


async def test_sessions_that_nobody_holds_end_too(front: Any) -> None:
    """They are in memory alone: counted as drained, their slots free."""
    async with front.talk() as talk:
        await talk.open(0, "alice")
        await talk.say(closes=[pb.Close(handle=0, keep=True)])
        await talk.event(0)
    await front.until(lambda: not front.registry.streams)
    assert len(front.registry) == 1
    front.registry.drain()
    assert len(front.registry) == 0
    found = await front.scrape()
    assert found['cellstream_sessions_ended_total{cause="drained"}'] == 1
    assert found["cellstream_draining"] == 1


async def test_a_stream_that_comes_while_the_server_goes_is_refused(front: Any) -> None:
    """Told why, with when to try again; whoever asks for health is told NOT_SERVING."""
    front.registry.drain()
    async with front.talk() as talk:
        await talk.say(opens=[pb.Open()])
        ending = await talk.ending()
    assert (ending.code, ending.reason, ending.retry_seconds) == (StatusCode.UNAVAILABLE, "DRAINING", 1.0)
    error = await front.failure(front.generate(text="x", max_tokens=1))
    assert error.reason == "DRAINING"


async def test_health_says_not_serving_at_once(front: Any) -> None:
    """A balancer that watches learns it before the last stream has ended."""
    watch = health_pb2_grpc.HealthStub(front.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(front.server.stop())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await stopping


async def test_a_client_that_never_reads_does_not_hold_it_up(serve: Any) -> None:
    """The server goes within drain_seconds, whoever still owes it a read."""
    front = await serve(stream_outbox_bytes_max=64 * 1024, drain_seconds=1.2)
    async with (
        grpc.aio.insecure_channel(front.running.target, front.small_window) as channel,
        front.talk(channel) as slow,
    ):
        await slow.open(0, answer=LARGE)
        (stream,) = front.registry.streams
        await slow.say(feeds=[pb.Feed(id=number, text="x" * 4000) for number in range(2)])
        await front.until(lambda: stream.paused)
        began = time.perf_counter()
        await front.server.stop()
        assert time.perf_counter() - began < 1.2
        assert not front.registry.streams


@asynccontextmanager
async def real_server(
    models: Path, folder: Path, *flags: str, wrapper: Sequence[str] = ()
) -> AsyncIterator[Any]:
    """`cellstream serve` as a process; it is killed at the end if it is still there."""
    server = await asyncio.create_subprocess_exec(
        *wrapper,
        *(sys.executable, "-m", "cellstream.cli", "serve"),
        *("--models", str(models), "--port", "0", "--metrics-port", "0"),
        *("--drain-seconds", "5", "--log-format", "json", *flags),
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,  # where no settings file is
    )
    try:
        yield server
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def logged(server: Any, event: str) -> dict[str, Any]:
    """The server's next line of this event."""
    async with asyncio.timeout(60):
        while line := await server.stderr.readline():
            entry: dict[str, Any] = json.loads(line)
            if entry["event"] == event:
                return entry
    raise AssertionError(f"it ended without {event}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_to_a_real_server(
    number: signal.Signals, tiny: Path, tmp_path: Path, transport: str
) -> None:
    """With streams open: each is told, and the process exits with 0 within drain_seconds."""
    async with real_server(tiny, tmp_path, "--transport", transport) as server:
        port = (await logged(server, "serving"))["port"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = prediction_pb2_grpc.PredictionServiceStub(channel).Predict()
            await call.write(
                pb.PredictRequest(opens=[pb.Open(session_id="alice")], feeds=[pb.Feed(text="abc")])
            )
            responses = []
            while not any(response.results for response in responses):
                responses.append(await call.read())
            server.send_signal(number)
            began = time.perf_counter()
            response = await call.read()
            assert [(event.cause, event.position) for event in response.events] == [(pb.CAUSE_DRAINING, 3)]
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert raised.value.code() is StatusCode.UNAVAILABLE
            assert await server.wait() == 0
            assert time.perf_counter() - began < 5


async def test_a_hangup_that_nohup_ignores(tiny: Path, tmp_path: Path) -> None:
    """A signal that was ignored at the start stays ignored: the server goes on."""
    async with real_server(tiny, tmp_path, wrapper=["nohup"]) as server:
        port = (await logged(server, "serving"))["port"]
        server.send_signal(signal.SIGHUP)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert (await check).status == health_pb2.HealthCheckResponse.SERVING
        server.send_signal(signal.SIGTERM)
        assert await server.wait() == 0


@pytest.mark.parametrize(("host", "is_told"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_listening_beyond_this_machine_without_tls_is_told(
    host: str, is_told: bool, tiny: Path, tmp_path: Path
) -> None:
    """Everybody on the way can read and change what is sent, so whoever starts it is told."""
    async with real_server(tiny, tmp_path, "--host", host) as server:
        await logged(server, "serving")
        server.send_signal(signal.SIGTERM)
        rest = (await server.stderr.read()).decode()
        events = [json.loads(line)["event"] for line in rest.splitlines()]
        assert ("serving_without_tls" in events) is is_told
        assert await server.wait() == 0


async def test_a_metrics_port_that_is_taken_meanwhile_stops_the_server(tiny: Path) -> None:
    """Two servers that start at once: the one that comes second serves nothing, and says why."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def start() -> bool:
        try:
            async with running_server(tiny, metrics_port=port):
                await until_all_have_tried.wait()
                return True
        except PortInUse as error:
            assert str(port) in error.message  # noqa: PT017 - one of the two raises, whichever
            return False
        finally:
            until_all_have_tried.set()

    until_all_have_tried = asyncio.Event()
    async with asyncio.timeout(60):
        assert sorted(await asyncio.gather(start(), start())) == [False, True]


async def test_a_signal_while_models_are_loaded(tiny: Path, tmp_path: Path) -> None:
    """It is obeyed then and not after them, and nothing has listened."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ("--batch-rows-max", "512", "--port", str(port))
    async with real_server(tiny, tmp_path, *flags) as server:
        await logged(server, "loading")
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        server.send_signal(signal.SIGTERM)
        rest = (await server.stderr.read()).decode()
        events = [json.loads(line)["event"] for line in rest.splitlines()]
        assert "stopped_while_loading" in events
        assert "serving" not in events
        assert await server.wait() == 0


# ---------------------------------------------------------------- starting


async def start_fails(models: Path, **settings: Any) -> SetupError:
    """How a server does not start; and nothing listens afterwards on the ports that it would have used."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (one, other)]
    given = {"port": ports[0], "metrics_port": ports[1], **settings}
    with pytest.raises(SetupError) as raised:
        async with running_server(models, **given):
            pass
    for name, port in zip(("port", "metrics_port"), ports, strict=True):
        if given[name] == port:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, f"{name} is left listening"
    return raised.value


@pytest.mark.parametrize("which", ["port", "metrics_port"])
async def test_a_port_in_use(front: Any, which: str, tiny: Path) -> None:
    """Said at once, never shared in silence; the server that has it goes on."""
    port = front.server.port if which == "port" else front.server.metrics_port
    async with front.talk() as talk:
        await talk.open(0)
        assert (await talk.feed("abc", id=1)).position == 3
        error = await start_fails(tiny, **{which: port})
        assert isinstance(error, PortInUse)
        assert str(port) in error.message
        assert (await talk.feed("def", id=2)).position == 6


async def test_an_address_that_is_not_ours(tiny: Path) -> None:
    """Named with its port, and what else it could be."""
    error = await start_fails(tiny, host="192.0.2.1")
    assert "192.0.2.1" in error.message


async def test_models_that_cannot_be_served(tmp_path: Path) -> None:
    """A byte that differs, a file that is gone, a graph that is another: which file, expected, found."""
    weights = write_model(tmp_path / "a") / "tiny" / "1" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    error = await start_fails(tmp_path / "a")
    assert isinstance(error, DigestMismatch)
    assert "weights.bin" in error.message

    weights.unlink()
    error = await start_fails(tmp_path / "a")
    assert isinstance(error, ModelFileMissing)
    assert "weights.bin" in error.message

    wide = write_model(tmp_path / "b") / "tiny" / "1"
    manifest = json.loads((wide / "manifest.json").read_text())
    manifest["states"][0]["shape"] = [2, 17]
    (wide / "manifest.json").write_text(json.dumps(manifest))
    error = await start_fails(tmp_path / "b")
    assert isinstance(error, SignatureMismatch)
    assert "hidden" in error.message


async def test_one_bad_version_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """A server that starts serves all that is there: else the next lower version would come in silence."""
    models = write_model(tmp_path)
    write_model(models, version=2)
    (models / "tiny" / "2" / "model.onnx").write_bytes(b"")
    assert isinstance(await start_fails(models), RepositoryError)


async def test_no_model_and_no_default(tmp_path: Path, many: Path) -> None:
    """Which models there are is said, and what to set."""
    (tmp_path / "empty").mkdir()
    error = await start_fails(tmp_path / "empty")
    assert isinstance(error, SettingsInvalid)
    assert f"{tmp_path / 'empty'} has no model" in error.message
    assert isinstance(await start_fails(tmp_path / "nowhere"), SetupError)
    error = await start_fails(many)
    assert isinstance(error, SettingsInvalid)
    assert "letters, meter, tiny" in error.message
    assert "default_model" in error.message
    models = write_model(tmp_path / "models")
    (models / "tiny" / "1" / "weights.bin").unlink()  # seen only by loading, which would come too late
    error = await start_fails(models, default_model="nobody")
    assert isinstance(error, SettingsInvalid)
    assert "'nobody', and the models here are: tiny." in error.message
