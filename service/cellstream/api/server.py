"""The server: loads what it serves, listens, and goes away in order.

Addresses are bound first, so that one that is taken is found before minutes of loading; nothing listens until
every model is loaded and has checked itself.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

import structlog
from prometheus_client import CollectorRegistry

from cellstream.api.context import Context
from cellstream.api.engine_loop import EngineLoop
from cellstream.api.flow import UnsentBytes
from cellstream.api.generate import GenerateStream
from cellstream.api.health import Health
from cellstream.api.inspection import Models, Sessions
from cellstream.api.predict import PredictStream
from cellstream.api.reflection import Reflection
from cellstream.api.status import ErrorReporter
from cellstream.api.unary import unary
from cellstream.engine import Engine
from cellstream.errors import ManifestInvalid, SettingsInvalid
from cellstream.metrics import Census, Metrics, ModelCensus, render
from cellstream.repository import ModelVersion, Repository
from cellstream.sessions import Catalogue, Registry, Served, choose_default
from cellstream.settings import Settings
from cellstream.text import load_tokenizer
from cellstream.transport import tls
from cellstream.transport.call import Method, Service
from cellstream.transport.http1 import Page, Pages, PageServer
from cellstream.transport.sockets import bind
from cellstream.v1 import model_pb2, prediction_pb2, session_pb2

log = structlog.get_logger(__name__)

SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (prediction_pb2, "PredictionService"),
        (session_pb2, "SessionService"),
        (model_pb2, "ModelService"),
    )
)

SWEEP_SECONDS_MAX = 0.5
"""How late an expiry or a time-out may be noticed."""

YOUNG_OBJECTS_MAX = 20_000
"""Threshold of the collector's youngest generation: net new objects between two collections."""

DRAIN_RESERVE_SECONDS = 1.0
"""What is left of `drain_seconds` for leaving, once streams have had their time."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What ends a server, in order: asked by a supervisor, by a person, or because the terminal is gone."""

T = TypeVar("T")


class Transport(Protocol):
    """What carries calls: `transport/listener.py`, or `transport/grpcio.py`.

    Attributes:
        port: The port that was bound; 0: a Unix socket.
        loop_turns: How many turns of the event loop it needs between two calls of an engine.
    """

    port: int
    loop_turns: int

    @property
    def connections(self) -> int:
        """How many connections are open."""

    @property
    def calls(self) -> int:
        """How many calls are open."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes of messages that are not whole, or not applied beyond their streams' windows."""

    @property
    def ended(self) -> Mapping[str, int]:
        """How many connections it ended, by cause."""

    async def start(self) -> None:
        """Listen."""

    def flush(self) -> None:
        """Write what is pending."""

    async def drain(self, seconds: float) -> None:
        """Serve on until no call is open or the time is over, then close everything."""


def serve(settings: Settings, *, log_lines_dropped: Callable[[], int] = int) -> bool:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain and return.

    Args:
        settings: The settings.
        log_lines_dropped: Returns how many log lines were lost, for a metric.

    Returns:
        Whether all is done. If not, it was stopped while a thread was loading a model: leave by `os._exit`,
        because Python's own end aborts a thread that is inside ONNX Runtime.

    Raises:
        SetupError: It cannot be started.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings, log_lines_dropped))


async def _serve(settings: Settings, log_lines_dropped: Callable[[], int]) -> bool:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in STOP_SIGNALS:  # before the models are loaded: that may take minutes
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
            loop.add_signal_handler(number, told.set)
    starting = asyncio.create_task(Server.start(settings, log_lines_dropped=log_lines_dropped))
    stop_asked = asyncio.create_task(told.wait())
    await asyncio.wait((starting, stop_asked), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped_while_loading")
        starting.cancel()
        await asyncio.wait((starting,))
        return False
    server = await starting
    calm_collector()  # here and not in the server, which may share its process with other things
    await stop_asked
    await server.stop()
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Server:
    """A running server; `start` makes it, `stop` ends it.

    Attributes:
        registry: Its sessions and streams.
        host: The address of gRPC.
        port: The port of gRPC that was bound.
        metrics_port: The port of /metrics that was bound.
    """

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        metrics: Metrics,
        sockets: list[socket.socket],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._clock = clock
        self._health = Health(settings)
        self._reflection = Reflection(SERVICES, settings)
        unsent = UnsentBytes(settings)
        errors = ErrorReporter(metrics)
        self.registry = Registry(
            catalogue, settings, metrics, wake=self._wake, clock=clock, wall_clock=wall_clock
        )
        self._context = Context(self.registry, settings, errors, metrics, unsent, clock, wall_clock)
        self._transport = _make_transport(settings, Service(self._methods(), errors.explain), sockets)
        self._engine_loop = EngineLoop(
            catalogue, metrics, self._transport.flush, loop_turns=self._transport.loop_turns
        )
        self._pages: PageServer
        self._sweeping: asyncio.Task[None]
        self.host = settings.host
        self.port = 0
        self.metrics_port = 0

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wall_clock: Callable[[], float] = time.time,
        log_lines_dropped: Callable[[], int] = int,
    ) -> Server:
        """Bind, load every model, then listen.

        Raises:
            RepositoryError: A model cannot be loaded.
            SettingsInvalid: The settings do not fit the models, an address cannot be bound, or a file of TLS
                is not one.
            PortInUse: A port is taken.
        """
        sockets = bind(settings.host, settings.port, reuse_port=settings.reuse_port)
        page_sockets: list[socket.socket] = []
        try:
            if tls.is_wanted(settings):
                tls.Certificates(settings)  # tells what is wrong with the files before minutes of loading
            page_sockets = bind(settings.metrics_host, settings.metrics_port, what="metrics_port")
            metrics_registry = CollectorRegistry()
            metrics = Metrics(metrics_registry)
            catalogue = await _load_catalogue(settings, metrics, clock)
            server = cls(settings, catalogue, metrics, sockets, clock, wall_clock)
            metrics.watch(lambda: server._census(log_lines_dropped()))
            server._pages = PageServer(settings, server._make_pages(metrics_registry), page_sockets)
            await server._listen()
        except BaseException:
            for bound in (*sockets, *page_sockets):
                bound.close()
            raise
        return server

    def __repr__(self) -> str:
        return f"<Server on port {self.port}: {self.registry!r}>"

    async def stop(self) -> None:
        """Drain: tell all clients their final positions, send what is pending, go within `drain_seconds`."""
        log.info("draining", sessions=len(self.registry), streams=len(self.registry.streams))
        self._health.shutdown()
        self._reflection.shutdown()
        self._sweeping.cancel()
        self.registry.drain()
        self.registry.end_streams()
        await self._transport.drain(max(0.1, self._settings.drain_seconds - DRAIN_RESERVE_SECONDS))
        await self._pages.close()
        log.info("drained")

    def sweep(self) -> None:
        """End what has waited or been idle too long; done by itself, twice a second or oftener."""
        self.registry.sweep()

    # ------------------------------------------------------------ starting

    async def _listen(self) -> None:
        await self._transport.start()
        self.port = self._transport.port
        try:
            await self._pages.start()
        except BaseException:
            await self._transport.drain(0.0)  # or it would go on serving a server that was not started
            raise
        self.metrics_port = self._pages.port
        for service in ("", *SERVICES):
            self._health.set(service, serving=True)
        self._sweeping = asyncio.create_task(self._sweep_for_ever())
        log.info("serving", host=self.host, port=self.port, metrics_port=self.metrics_port)
        if not tls.is_wanted(self._settings) and not _is_local(self.host):
            log.warning(
                "serving_without_tls",
                host=self.host,
                what="everybody on the way can read and change what is sent; set tls_cert and tls_key",
            )

    def _methods(self) -> Mapping[str, Method]:
        prediction, session, model = SERVICES
        sessions = Sessions(self.registry, self._settings, self._clock)
        models = Models(self._catalogue)
        context, bytes_max = self._context, self._settings.message_bytes_max
        return {
            f"/{prediction}/Predict": Method(lambda call: PredictStream(call, context)),
            f"/{prediction}/Generate": Method(lambda call: GenerateStream(call, context), one_request=True),
            f"/{session}/GetSession": unary(session_pb2.GetSessionRequest, sessions.get, bytes_max),
            f"/{session}/ListSessions": unary(session_pb2.ListSessionsRequest, sessions.list, bytes_max),
            f"/{session}/CloseSession": unary(session_pb2.CloseSessionRequest, sessions.close, bytes_max),
            f"/{model}/ListModels": unary(model_pb2.ListModelsRequest, models.list, bytes_max),
            f"/{model}/GetModel": unary(model_pb2.GetModelRequest, models.get, bytes_max),
            **self._health.methods(),
            **self._reflection.methods(),
        }

    # ------------------------------------------------------------ serving

    def _wake(self) -> None:
        self._engine_loop.ask()

    async def _sweep_for_ever(self) -> None:
        settings = self._settings
        shortest = min(
            settings.session_idle_seconds, settings.feed_wait_seconds_max, settings.tombstone_seconds
        )
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS_MAX, shortest / 4))
            try:
                self.sweep()
            except Exception:
                # The next one may succeed, and nothing else depends on this one.
                log.exception("sweep_failed")

    def _make_pages(self, registry: CollectorRegistry) -> Pages:
        def metrics(query: str, headers: Mapping[str, str]) -> Page:
            content_type, body = render(registry, query, headers)
            return Page(200, content_type, body)

        def healthz(query: str, headers: Mapping[str, str]) -> Page:
            if self.registry.draining:
                return Page(503, "text/plain; charset=utf-8", b"DRAINING\n")
            return Page(200, "text/plain; charset=utf-8", b"SERVING\n")

        return {"/metrics": metrics, "/healthz": healthz}

    def _census(self, log_lines_dropped: int) -> Census:
        return Census(
            streams=len(self.registry.streams),
            draining=self.registry.draining,
            connections=self._transport.connections,
            connections_ended=self._transport.ended,
            buffered_bytes=self._transport.buffered_bytes,
            unsent_bytes=self._context.unsent.total,
            log_lines_dropped=log_lines_dropped,
            models=[self._model_census(served) for served in self._catalogue],
        )

    def _model_census(self, served: Served) -> ModelCensus:
        engine = served.engine
        oldest = engine.oldest_received_at
        return ModelCensus(
            model=served.name,
            version=served.version,
            sessions=engine.slots_taken,
            sessions_held=self.registry.held[served],
            slots=engine.slots_taken,
            slots_max=engine.slots_max,
            feeds_waiting=engine.waiting,
            queue_age_seconds=0.0 if oldest is None else max(0.0, self._clock() - oldest),
            numerics=engine.numerics,
            numerics_digest=engine.numerics_digest,
            manifest_digest=served.manifest_digest,
            is_default=self._catalogue.is_default(served),
        )


def calm_collector() -> None:
    """Have Python's collector of cycles leave alone what was loaded, which stays, and come seldom.

    A call makes some ten objects for each feed and drops them, hardly one in a cycle. With the default
    threshold the collector looks through them several times a call.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX)


async def _load_catalogue(settings: Settings, metrics: Metrics, clock: Callable[[], float]) -> Catalogue:
    """Load every model, in a thread so that signals are heard meanwhile."""
    repository = Repository(settings.models)
    for folder, why in repository.skipped.items():
        log.warning("folder_skipped", folder=str(folder), why=why)
    if not repository.names:
        raise SettingsInvalid(
            f"{settings.models} has no model: expected a folder NAME/VERSION/ for each, as "
            "`cellstream export` makes.",
            setting="models",
        )
    default_model = choose_default(repository.names, settings.default_model)  # loading may take a minute
    log.info("loading", models=", ".join(repository.names))
    served = await _in_thread(
        lambda: [_load_version(version, settings, metrics, clock) for version in repository.load_all()]
    )
    return Catalogue(served, default_model)


async def _in_thread(work: Callable[[], T]) -> T:
    """Do something long in a thread that does not hold up the process's end, unlike an executor's."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(outcome: T | None, error: BaseException | None) -> None:
        if result.done():
            return  # nobody waits any more
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(outcome)  # type: ignore[arg-type]

    def run() -> None:
        outcome: T | None = None
        error: BaseException | None = None
        try:
            outcome = work()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome, error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await result


def _load_version(
    version: ModelVersion, settings: Settings, metrics: Metrics, clock: Callable[[], float]
) -> Served:
    """Load one version of a model, let it check itself, and say how it will serve."""

    def waiter_failed(error: BaseException) -> None:
        metrics.waiter_errors.inc()
        log.error("waiter_failed", exc_info=error)

    engine = Engine(
        version,
        slots_max=settings.slots_max,
        batch_rows_max=settings.batch_rows_max,
        step_milliseconds_max=settings.step_milliseconds_max,
        intra_op_threads=settings.intra_op_threads,
        numerics=settings.numerics,
        clock=clock,
        on_waiter_error=waiter_failed,
    )
    tokenizer = None if version.tokenizer is None else load_tokenizer(version.tokenizer)
    if tokenizer is not None and tokenizer.vocabulary_size != version.manifest.input.vocabulary_size:
        raise ManifestInvalid(
            f"{version.tokenizer}: expected a tokeniser of {version.manifest.input.vocabulary_size} tokens, "
            f"found one of {tokenizer.vocabulary_size}."
        )
    served = Served(
        manifest=version.manifest,
        manifest_digest=version.manifest_digest,
        card=version.load_card(),
        engine=engine,
        tokenizer=tokenizer,
    )
    metrics.begin(served.name, served.version)
    log.info(
        "model_loaded",
        model=served.name,
        version=served.version,
        numerics=engine.numerics,
        numerics_digest=engine.numerics_digest,
    )
    costs = {"step": str(engine.step_costs)}
    if engine.sequence_costs is not None:
        costs["sequence"] = str(engine.sequence_costs)
    log.info("costs_measured", model=served.name, version=served.version, **costs)
    if engine.why_exact is not None:
        log.warning("serving_exact", model=served.name, version=served.version, why=engine.why_exact)
    if engine.row_by_row:
        log.warning(
            "serving_row_by_row",
            model=served.name,
            version=served.version,
            why="on this CPU a row's result depends on the batch; one row a call keeps answers exact",
        )
    return served


def _make_transport(settings: Settings, service: Service, sockets: list[socket.socket]) -> Transport:
    if settings.transport == "grpcio":
        from cellstream.transport.grpcio import GrpcioServer  # here: the other one does without grpcio

        return GrpcioServer(settings, service, sockets)
    from cellstream.transport.listener import Listener

    return Listener(settings, service, sockets)


def _is_local(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    return host.startswith(("127.", "unix:")) or host in ("::1", "localhost")
