"""The server: loads what it serves, binds its ports, and goes away in order.

Ready only after every model is loaded and has checked itself: before that nothing listens.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from grpc.aio import ServicerContext
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from cellstream.api import rpc
from cellstream.api.generate import Generation
from cellstream.api.inspection import Models, Sessions
from cellstream.api.predict import PredictStream
from cellstream.api.status import Teller
from cellstream.api.turns import Turns
from cellstream.engine import Engine
from cellstream.errors import Draining, ManifestInvalid, PortInUse, SettingsInvalid
from cellstream.metrics import Census, Metrics, MetricsServer, ModelCensus, make_metrics_server
from cellstream.repository import ModelVersion, Repository
from cellstream.sessions import Catalogue, Registry, Served, choose_default
from cellstream.settings import Settings
from cellstream.text import load_tokenizer
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
"""How many objects more than were dropped may be made between two visits of the collector: some megabytes."""

DRAIN_RESERVE_SECONDS = 1.0
"""What is left of `drain_seconds` for leaving, once streams have had their time."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Raises:
        SetupError: It cannot be started.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # before the models are loaded: that may take seconds
        loop.add_signal_handler(number, told.set)
    server = await Server.start(settings)
    calm_collector()  # here and not in the server, which may share its process with other things
    await told.wait()
    await server.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Server:
    """A running server; `start` makes it, `stop` ends it.

    Attributes:
        host: The address of gRPC.
        port: The port of gRPC that was bound.
        metrics_port: The port of /metrics that was bound.
    """

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._teller = Teller(metrics)
        self._streams: set[PredictStream] = set()
        self._watching: set[PredictStream] = set()
        self._turns = Turns(catalogue, metrics, self._settled)
        self.registry = Registry(
            catalogue,
            settings,
            metrics,
            wake=self._turns.ask,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._health = health.aio.HealthServicer()
        self._metrics_server: MetricsServer
        self._grpc: grpc.aio.Server
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
    ) -> Server:
        """Load every model, then bind.

        Raises:
            RepositoryError: A model cannot be loaded.
            SettingsInvalid: The settings do not fit the models, or an address cannot be bound.
            PortInUse: A port is taken.
        """
        registry = CollectorRegistry()
        metrics = Metrics(registry)
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
        served = [_load_version(version, settings, metrics, clock) for version in repository.load_all()]
        server = cls(settings, Catalogue(served, default_model), metrics, clock, wall_clock)
        metrics.watch(server._census)
        server._metrics_server = make_metrics_server(registry, settings.metrics_host, settings.metrics_port)
        try:
            await server._bind()
        except BaseException:
            server._metrics_server.close()
            raise
        return server

    def __repr__(self) -> str:
        return f"<Server on port {self.port}: {self.registry!r}>"

    async def stop(self) -> None:
        """Drain: tell all clients their final positions, send what is pending, go within `drain_seconds`."""
        log.info("draining", sessions=len(self.registry), streams=len(self.registry.streams))
        await self._health.enter_graceful_shutdown()
        self._sweeping.cancel()
        self.registry.drain()
        for stream in self._streams:
            error = Draining(
                "the server is going away; all positions that it told are final.",
                retry_after_seconds=self._settings.retry_after_seconds,
            )
            stream.cut(error)
        await self._grpc.stop(grace=max(0.1, self._settings.drain_seconds - DRAIN_RESERVE_SECONDS))
        await asyncio.to_thread(self._metrics_server.close)
        log.info("drained")

    def sweep(self) -> None:
        """End what has waited or been idle too long; done by itself, twice a second or oftener."""
        self.registry.sweep()
        self._settled()

    # ------------------------------------------------------------ starting

    async def _bind(self) -> None:
        settings = self._settings
        self._grpc = grpc.aio.server(options=_grpc_options(settings))
        for service, handlers in self._handlers().items():
            self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host  # IPv6
        address = f"{host}:{settings.port}"
        try:
            self.port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise PortInUse(
                f"{address} cannot be bound: another program listens there, or the address is not this "
                "machine's. Choose another host or port; port 0 takes any that is free.",
                host=settings.host,
                port=settings.port,
            ) from error
        self.metrics_port = self._metrics_server.port
        await self._grpc.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._sweeping = asyncio.create_task(self._sweep_for_ever())
        log.info("serving", host=settings.host, port=self.port, metrics_port=self.metrics_port)

    def _handlers(self) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
        prediction, session, model = SERVICES
        sessions = Sessions(self.registry, self._settings, self._clock)
        models = Models(self._catalogue)

        def unary(kind: type[Message], answer: Callable[[Any], Message]) -> grpc.RpcMethodHandler[Any, Any]:
            return rpc.unary(kind, answer, self._teller, self._settings.message_bytes_max)

        return {
            prediction: {
                "Predict": rpc.stream_stream(self._predict, self._teller),
                "Generate": rpc.unary_stream(self._generate, self._teller),
            },
            session: {
                "GetSession": unary(session_pb2.GetSessionRequest, sessions.get),
                "ListSessions": unary(session_pb2.ListSessionsRequest, sessions.list),
                "CloseSession": unary(session_pb2.CloseSessionRequest, sessions.close),
            },
            model: {
                "ListModels": unary(model_pb2.ListModelsRequest, models.list),
                "GetModel": unary(model_pb2.GetModelRequest, models.get),
            },
        }

    # ------------------------------------------------------------ serving

    async def _predict(
        self, messages: AsyncIterator[bytes], context: ServicerContext[bytes, prediction_pb2.PredictResponse]
    ) -> None:
        stream = PredictStream(
            self.registry,
            self._settings,
            self._teller,
            self._metrics,
            self._clock,
            self._wall_clock,
            self._watching,
        )
        self._streams.add(stream)
        try:
            await stream.run(messages, context)
        finally:
            self._streams.discard(stream)

    async def _generate(
        self, raw: bytes, context: ServicerContext[bytes, prediction_pb2.GenerateResponse]
    ) -> None:
        request = rpc.parse(prediction_pb2.GenerateRequest, raw, self._settings.message_bytes_max)
        await Generation(request, self.registry, self._settings, self._metrics, self._clock).run(context)

    def _settled(self) -> None:
        for stream in tuple(self._watching):
            stream.look()

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

    def _census(self) -> Census:
        return Census(
            streams=len(self.registry.streams),
            draining=self.registry.draining,
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


def _grpc_options(settings: Settings) -> list[tuple[str, int]]:
    keepalive, timeout = settings.keepalive_seconds, settings.keepalive_timeout_seconds
    return [
        # Two servers on one port would share its clients without a word.
        ("grpc.so_reuseport", 0),
        # Ours is checked first, with a reason; gRPC's own refusal has none.
        ("grpc.max_receive_message_length", 2 * settings.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        # A silent peer is noticed only where the ping has a time-out too.
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", int(timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        # Bursts of new streams were cancelled with the defaults; ours are counted, and refused with a reason.
        ("grpc.server.max_pending_requests", 4 * settings.streams_max),
        ("grpc.server.max_pending_requests_hard_limit", 8 * settings.streams_max),
    ]
