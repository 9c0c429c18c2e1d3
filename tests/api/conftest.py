"""A real server on a real port, and raw generated stubs: what anybody's client sees.

Nothing here sleeps: a test waits for an answer, or for something in the server (`until`), and moves the
server's clock by hand. When a test is over the server is stopped and must be empty: every slot free, no
stream, nothing logged as a mistake.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import structlog
import uvloop
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from prometheus_client.parser import text_string_to_metric_families

from cellstream.engine import Engine
from cellstream.testing import ManualClock, RunningServer, running_server
from cellstream.v1 import model_pb2_grpc, prediction_pb2_grpc, session_pb2_grpc
from cellstream.v1 import prediction_pb2 as pb

SECONDS = 20.0
"""Longer than anything takes; a hang fails here, with the line that waited."""


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the server is where the test wants it."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - the server has no event for a test to wait for
            await asyncio.sleep(0)


@dataclass
class Told:
    """An error as a client is told it, in-band or as the end of its call."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    retry_seconds: float | None = None


CODES = {code.value[0]: code for code in grpc.StatusCode}


def told(error: Status | grpc.aio.AioRpcError) -> Told:
    """Read a status from wherever it came."""
    if isinstance(error, Status):
        status = error
    else:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        if details is None:
            return Told(error.code(), error.details() or "")
        status = Status.FromString(details)
        assert status.code == error.code().value[0], "the status and its details say the same"
        assert status.message == error.details()
    found = Told(CODES[status.code], status.message)
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            info = ErrorInfo.FromString(detail.value)
            found.reason, found.domain, found.metadata = info.reason, info.domain, dict(info.metadata)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            found.retry_seconds = RetryInfo.FromString(detail.value).retry_delay.ToTimedelta().total_seconds()
    return found


class Talk:
    """One Predict call: says messages, and hears items in the order in which a client applies them.

    Attributes:
        call: The raw call.
        messages: What was heard, whole.
        heard: Its items, in order, that `hear` has given out.
    """

    def __init__(self, call: Any) -> None:
        self.call = call
        self.messages: list[pb.PredictResponse] = []
        self.heard: list[Any] = []
        self._ahead: list[Any] = []

    async def say(self, **lists: Sequence[Any]) -> None:
        """Send one message: opens, resets, feeds, closes."""
        await self.call.write(pb.PredictRequest(**lists))

    async def next(self) -> Any:
        """The next Opened, Result or Event; None at the end."""
        async with asyncio.timeout(SECONDS):
            while not self._ahead:
                message = await self.call.read()
                if message is grpc.aio.EOF:
                    return None
                self.messages.append(message)
                self._ahead += [*message.opened, *message.results, *message.events]
        self.heard.append(self._ahead.pop(0))
        return self.heard[-1]

    async def hear(self, count: int) -> list[Any]:
        """The next so many items."""
        return [await self.next() for _ in range(count)]

    async def open(self, handle: int = 0, session_id: str = "", **fields: Any) -> pb.Opened:
        """Open one handle, and hear so."""
        await self.say(opens=[pb.Open(handle=handle, session_id=session_id, **fields)])
        return await self.opened(handle)

    async def opened(self, handle: int) -> pb.Opened:
        """Listen until this handle is opened, or refused."""
        return await self._listen(lambda item: isinstance(item, pb.Opened) and item.handle == handle)

    async def result(self, feed_id: int) -> pb.Result:
        """Its last result; listen until this feed is done, unless it is."""

        def is_last(item: Any) -> bool:
            return isinstance(item, pb.Result) and item.feed_id == feed_id and item.done

        return next(filter(is_last, self.heard), None) or await self._listen(is_last)

    async def event(self, handle: int) -> pb.Event:
        """Listen until something happens to this handle."""
        return await self._listen(lambda item: isinstance(item, pb.Event) and item.handle == handle)

    async def feed(self, text: str = "", ids: Sequence[int] | None = None, **fields: Any) -> pb.Result:
        """Send one feed of text, or of token ids, and hear its end."""
        if text:
            fields["text"] = text
        if ids is not None:
            fields["tokens"] = pb.Tokens(ids=ids)
        feed = pb.Feed(**fields)
        await self.say(feeds=[feed])
        return await self.result(feed.id)

    def results(self, feed_id: int) -> list[pb.Result]:
        """All results of a feed that were heard."""
        return [item for item in self.heard if isinstance(item, pb.Result) and item.feed_id == feed_id]

    def arrays(self, feed_id: int, group: str = "outputs") -> dict[str, np.ndarray]:
        """The columns of a feed's results, one result after the other."""
        found: dict[str, list[np.ndarray]] = {}
        for result in self.results(feed_id):
            for tensor in getattr(result.predictions, group):
                assert tensor.shape[0] == result.predictions.steps
                found.setdefault(tensor.name, []).append(array(tensor))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    async def end(self) -> Told:
        """Half-close, hear the rest, and say how it ended."""
        await self.call.done_writing()
        return await self.ending()

    async def ending(self) -> Told:
        """Hear the rest, and say how the call ended."""
        try:
            while await self.next() is not None:
                pass
        except grpc.aio.AioRpcError as error:
            return told(error)
        return Told(await self.call.code(), await self.call.details())

    async def _listen(self, wanted: Callable[[Any], bool]) -> Any:
        while (item := await self.next()) is not None:
            if wanted(item):
                return item
        raise AssertionError(f"the call ended; heard were: {self.heard}")


def array(tensor: pb.Tensor) -> np.ndarray:
    """A tensor as numpy reads it."""
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)


class Brake:
    """Holds an engine between two of its turns, so that what a test does next is done in between.

    What runs, and in what order, is the engine's own affair; only when is the test's.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._turn = engine.turn
        self._allowed: int | None = None
        engine.turn = self._next  # type: ignore[method-assign]

    def _next(self) -> Any:
        if self._allowed == 0:
            return None
        call = self._turn()
        if self._allowed is not None and call is not None:
            self._allowed -= 1
        return call

    def hold(self) -> None:
        """No further turn."""
        self._allowed = 0

    async def turns(self, count: int) -> None:
        """So many turns more, then none."""
        self._allowed = count
        await until(lambda: self._allowed == 0)

    def release(self) -> None:
        """Go on as ever."""
        self._allowed = None


class Front:
    """A server as a test meets it: stubs in front, and a look behind."""

    until = staticmethod(until)
    told = staticmethod(told)
    small_window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    """A channel with these options takes a few KiB that nobody has read, in place of some MiB."""

    def __init__(self, running: RunningServer, clock: ManualClock, channel: grpc.aio.Channel) -> None:
        self.running = running
        self.server = running.server
        self.registry = running.server.registry
        self.clock = clock
        self.channel = channel
        self.prediction = prediction_pb2_grpc.PredictionServiceStub(channel)
        self.session = session_pb2_grpc.SessionServiceStub(channel)
        self.model = model_pb2_grpc.ModelServiceStub(channel)
        self.engines = [served.engine for served in self.registry.catalogue]

    def engine(self, name: str = "") -> Engine:
        """The engine of a model's highest version; of the default model's."""
        return self.registry.catalogue.find(name, "").engine

    def brake(self, name: str = "") -> Brake:
        """A brake on that engine."""
        return Brake(self.engine(name))

    @asynccontextmanager
    async def talk(self, channel: grpc.aio.Channel | None = None, **options: Any) -> AsyncIterator[Talk]:
        """A Predict call of one's own, cancelled at the end unless it has ended."""
        stub = self.prediction if channel is None else prediction_pb2_grpc.PredictionServiceStub(channel)
        talk = Talk(stub.Predict(**options))
        try:
            yield talk
        finally:
            talk.call.cancel()

    @asynccontextmanager
    async def raw_talk(self) -> AsyncIterator[Talk]:
        """A Predict call whose `call.write` takes bytes too, whatever they are."""

        def serialize(message: Any) -> bytes:
            return message if isinstance(message, bytes) else message.SerializeToString()

        method = self.channel.stream_stream(
            "/cellstream.v1.PredictionService/Predict", serialize, pb.PredictResponse.FromString
        )
        talk = Talk(method())
        try:
            yield talk
        finally:
            talk.call.cancel()

    async def generate(self, **fields: Any) -> list[pb.GenerateResponse]:
        """All messages of a generation."""
        async with asyncio.timeout(SECONDS):
            return [response async for response in self.prediction.Generate(pb.GenerateRequest(**fields))]

    async def failure(self, call: Awaitable[Any]) -> Told:
        """How a call of one answer, or a generation, failed."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        return told(raised.value)

    def sweep_after(self, seconds: float) -> None:
        """Move the clock, and let the server notice."""
        self.clock.advance(seconds)
        self.running.sweep()

    async def scrape(self) -> Counter[str]:
        """Every sample of /metrics by `name{label="value"}`; model, version and digests left out."""
        url = f"http://127.0.0.1:{self.running.metrics_port}/metrics"

        def read() -> str:
            with urlopen(url) as page:
                return page.read().decode()

        left_out = {"model", "version", "numerics", "numerics_digest", "manifest_digest", "is_default"}
        samples: Counter[str] = Counter()
        for family in text_string_to_metric_families(await asyncio.to_thread(read)):
            for sample in family.samples:
                labels = ",".join(
                    f'{name}="{value}"' for name, value in sample.labels.items() if name not in left_out
                )
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] += sample.value
        return samples

    def check_empty(self) -> None:
        """Once it has stopped: nothing is left of any session or stream."""
        assert len(self.registry) == 0
        assert not self.registry.streams
        assert self.registry.held.total() == 0
        for engine in self.engines:
            engine.check_integrity()
            assert engine.slots_taken == 0
            assert engine.waiting == 0


@dataclass
class Log:
    """What the server logged, and which events of it are mistakes that the test provokes."""

    entries: list[dict[str, Any]]
    expected: set[str] = field(default_factory=set)

    def of(self, event: str) -> list[dict[str, Any]]:
        """All entries of an event."""
        return [entry for entry in self.entries if entry["event"] == event]


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that a real server runs on (from pytest-asyncio 1.4 on; before, on asyncio's)."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """The server's log; a mistake in it that the test did not provoke fails the test."""
    with structlog.testing.capture_logs() as entries:
        found = Log(entries)
        yield found
    mistakes = [
        entry
        for entry in entries
        if entry["log_level"] in ("error", "critical") and entry["event"] not in found.expected
    ]
    assert not mistakes
    others = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.ERROR and not any(race in record.getMessage() for race in GRPC_RACES)
    ]
    assert not others


GRPC_RACES = (
    "ExecuteBatchError raised in core",  # the call ended under a handler that was just returning
    "PollerCompletionQueue._handle_events",  # an event came for a test before this one, whose loop is closed
)
"""What gRPC itself logs as errors now and then; it goes on."""

GRPCIO_CANNOT = {
    "test_a_full_queue_starves_nobody": "its poller hands over about one event in each turn of the loop",
    "test_a_cancel_is_no_half_close": "a cancel that comes while it reads looks like the end of the input",
    "test_a_deadline": "so does a deadline",
    "test_headers_alone_are_bounded": "calls without a message are its core's affair, which has no bound",
    "test_a_stream_that_ends_is_told_from_a_connection_that_is_lost": "it tells a handler no difference",
    "test_a_connection_is_told_to_go_before_it_is_closed": "its core sends GOAWAY as it likes",
}
"""Tests that do not hold behind grpcio, each with the reason."""


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    """Every test of the api runs on both transports."""
    name = getattr(request.node, "originalname", request.node.name)
    if request.param == "grpcio" and name in GRPCIO_CANNOT:
        pytest.skip(f"grpcio: {GRPCIO_CANNOT[name]}")
    return str(request.param)


@pytest.fixture
async def serve(tiny: Path, log: Log, transport: str) -> AsyncIterator[Callable[..., Any]]:
    """Starts servers of a models directory with these settings; they are looked over when the test ends."""
    async with AsyncExitStack() as stack:
        fronts = []

        async def start(models: Path = tiny, **settings: Any) -> Front:
            clock = ManualClock()
            # Few rows, because each number of them is timed at load.
            running = await stack.enter_async_context(
                running_server(
                    models, clock=clock, **{"batch_rows_max": 32, "transport": transport, **settings}
                )
            )
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.target))
            fronts.append(Front(running, clock, channel))
            return fronts[-1]

        yield start
        for front in fronts:
            for engine in front.engines:
                engine.check_integrity()
    for front in fronts:
        front.check_empty()


@pytest.fixture
async def front(serve: Callable[..., Any]) -> Front:
    """A server of the model `tiny`, its settings the defaults."""
    return await serve()
