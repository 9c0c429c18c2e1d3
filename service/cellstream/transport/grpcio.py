"""The same handlers behind grpcio's server: the reference in our tests, and the fallback.

The call's own coroutine pulls messages and awaits their writes; one task beside it reads, and stops while
more is unapplied than a stream's window. What grpcio cannot do, and what stands here against it:

- A cancel, a deadline and a lost connection can look like a half-close while the reader waits; the handler
  then hears `half_closed` and after it `closed`. Only `closed` is proof.
- Its poller hands over about one event in each turn of the loop. Beside a busy engine everybody would wait
  for ever, so the engine leaves `LOOP_TURNS` turns between two calls.
- It unpacks gzip on the poller without a bound. That is switched off; packed messages are unpacked here.
- Headers without a message, rapid resets and windows are its own affair. `CONNECTION_STREAMS_MAX` is the only
  bound on them; beyond it clients wait in silence.
- A write that the client never makes room for never returns: the call ends after `stall_seconds_max`, and
  its client hears of it only when its connection ends.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from grpc.aio import ServicerContext

from cellstream.errors import PortInUse, SettingsInvalid
from cellstream.settings import Settings
from cellstream.transport import packing, tls
from cellstream.transport.call import Call, Code, Handler, Metadata, Method, Peer, Service, Status, Why

log = structlog.get_logger(__name__)

LOOP_TURNS = 40
"""Turns of the loop between two calls of an engine: with 40, 100 ping-pong sessions beside one long feed kept
1,468 of 3,350 feeds/s; with one, 40."""

CONNECTION_STREAMS_MAX = 1000
"""Calls of one connection; headers without a message cost 20 kB each here."""

END_SECONDS = 1.0
"""What calls have, at the end of a drain, to be broken off."""

GZIP_MAGIC = b"\x1f\x8b"
"""How gzip begins (RFC 1952). No protobuf message does: it would be field 3 of wire type 7, which there is
not. grpcio tells nobody which messages are packed."""

CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioServer:
    """A server of grpcio.

    Args:
        settings: The bounds, and where to listen.
        service: What to serve.
        sockets: Bound to the address, so that nobody else has it; closed when grpcio binds it itself.
    """

    loop_turns = LOOP_TURNS
    connections = 0  # which it tells nobody, as how they end and what it buffers
    buffered_bytes = 0
    ended: Mapping[str, int] = MappingProxyType({})

    def __init__(self, settings: Settings, service: Service, sockets: list[socket.socket]) -> None:
        self._settings = settings
        self._service = service
        self._sockets = sockets
        self._grpc = grpc.aio.server(options=_options(settings))
        self._grpc.add_generic_rpc_handlers((_Methods(self),))
        self._open: set[_Call] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self.port = 0

    def __repr__(self) -> str:
        return f"<GrpcioServer on port {self.port}: {len(self._open)} calls>"

    @property
    def calls(self) -> int:
        """How many calls are open."""
        return len(self._open)

    async def start(self) -> None:
        """Listen.

        Raises:
            PortInUse: Somebody took the port since it was bound.
            SettingsInvalid: A file of TLS is not one.
        """
        settings = self._settings
        port = next((found.getsockname()[1] for found in self._sockets if found.family != socket.AF_UNIX), 0)
        for bound in self._sockets:
            bound.close()
        if settings.host.startswith("unix:"):
            address = settings.host
        else:
            address = f"[{settings.host}]:{port}" if ":" in settings.host else f"{settings.host}:{port}"
        try:
            if tls.is_wanted(settings):
                tls.Certificates(settings)  # tells what is wrong with the files, which gRPC does not
                bound_port = self._grpc.add_secure_port(address, _credentials(settings))
            else:
                bound_port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise PortInUse(
                f"{address} cannot be bound: another program listens there, or the address is not this "
                "machine's. Choose another host or port; port 0 takes any that is free.",
                host=settings.host,
                port=port,
            ) from error
        self.port = 0 if address.startswith("unix:") else bound_port
        await self._grpc.start()

    def flush(self) -> None:
        """Do nothing: each call writes by itself."""

    async def drain(self, seconds: float) -> None:
        """Serve on until no call is open or the time is over, then end."""
        await self._wait_for_calls(seconds)
        await self._grpc.stop(grace=None)
        await self._wait_for_calls(END_SECONDS)  # their coroutines were cancelled, and have to be left

    async def _wait_for_calls(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none_open.wait()

    def begin(self, call: _Call) -> None:
        """Count a call that begins."""
        self._open.add(call)
        self._none_open.clear()

    def finish(self, call: _Call) -> None:
        """Count a call that is over."""
        self._open.discard(call)
        if not self._open:
            self._none_open.set()

    async def serve(
        self, method: Method, messages: AsyncIterator[bytes], context: ServicerContext[bytes, bytes]
    ) -> None:
        """Serve one call to its end."""
        call = _Call(method, self._service, context, self._settings)
        self.begin(call)
        reading: asyncio.Task[None] | None = None
        why = Why.LOST
        try:
            if method.one_request:
                await call.read(messages)
            else:
                reading = asyncio.create_task(call.read(messages))
            status = await call.write()
            why = Why.ENDED
            if status.code != Code.OK:
                details = (("grpc-status-details-bin", status.details),) if status.details else ()
                await context.abort(CODES[status.code], status.message, details)
        except ClientGone:
            raise asyncio.CancelledError from None  # which grpcio takes without a word in its log
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            if why is not Why.ENDED:
                why = Why.CANCELLED if remaining is None or remaining > 0 else Why.DEADLINE
            raise
        finally:
            if reading is not None:
                reading.cancel()
            call.close(why)
            self.finish(call)


class ClientGone(Exception):
    """The client does not take what is written."""


class _Methods(grpc.GenericRpcHandler):
    """Finds a method by its path; all are streams of bytes to grpcio, whatever they are to us."""

    def __init__(self, server: GrpcioServer) -> None:
        self._server = server
        self._handlers = {path: self._handler(method) for path, method in server._service.methods.items()}

    def service(self, details: Any) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handlers.get(details.method)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(messages: AsyncIterator[bytes], context: ServicerContext[bytes, bytes]) -> None:
            await self._server.serve(method, messages, context)

        return grpc.stream_stream_rpc_method_handler(serve)


class _Call(Call):
    """One call: what its handler holds, and what its two coroutines share."""

    def __init__(
        self, method: Method, service: Service, context: ServicerContext[bytes, bytes], settings: Settings
    ) -> None:
        loop = asyncio.get_running_loop()
        remaining = context.time_remaining()
        self.metadata = _metadata(context)
        self.deadline = None if remaining is None else loop.time() + remaining
        self.peer = Peer(_address(context.peer()))
        self._method = method
        self._service = service
        self._context = context
        self._settings = settings
        self._handler: Handler | None = None
        self._status: Status | None = None
        self._closed = False
        self._broken = False  # its handler cannot say what it has
        self._changed = asyncio.Event()  # there may be output, or the end
        self._unapplied_bytes = 0
        self._room = asyncio.Event()  # few enough bytes are unapplied
        self._room.set()

    # ------------------------------------------------------------ what the handler calls

    def ready(self) -> None:
        self._changed.set()

    def consumed(self, size: int) -> None:
        self._unapplied_bytes -= size
        if self._unapplied_bytes <= self._settings.stream_window_bytes:
            self._room.set()

    def end(self, status: Status) -> None:
        if self._status is None:
            self._status = status
            self._changed.set()

    # ------------------------------------------------------------ the two coroutines

    async def read(self, messages: AsyncIterator[bytes]) -> None:
        """Take messages until the client half-closes or the call ends."""
        try:
            await self._read(messages)
        except Exception as error:
            # Once the call ends, reading it raises; and a client that is gone cannot be told anything.
            if self._status is None and not self._context.cancelled():
                self.end(self._service.explain(error))

    async def _read(self, messages: AsyncIterator[bytes]) -> None:
        first: bytes | None = None
        async for packed in messages:
            if self._closed or self._status is not None:
                return
            message = packed
            if packed.startswith(GZIP_MAGIC):
                try:
                    message = packing.unpack(packed, self._settings.message_bytes_max)
                except packing.BadPacking as bad:
                    self.end(Status(Code.INTERNAL, str(bad)))
                    return
            if not self._method.one_request:
                self._receive(message)
                await self._room.wait()
            elif first is None:
                first = message
            else:
                self.end(Status(Code.INTERNAL, "the method takes one request message, and there are two."))
                return
        if self._closed or self._status is not None:
            return
        if self._method.one_request:
            if first is None:
                self.end(Status(Code.INTERNAL, "the method takes one request message, and there is none."))
                return
            self._receive(first)
        self._tell(lambda handler: handler.half_closed())

    async def write(self) -> Status:
        """Send what the handler has until it ends the call; return its status."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (message := self._next_message()) is not None:
                try:
                    async with asyncio.timeout(self._settings.stall_seconds_max):
                        await self._context.write(message)
                except (TimeoutError, grpc.aio.BaseError, asyncio.InvalidStateError):
                    # It did not read, or left during the write. A status cannot be sent behind a write that
                    # is still pending, so all that ends the call is its coroutine.
                    raise ClientGone from None
            if self._status is not None and not self._changed.is_set():
                return self._status

    def close(self, why: Why) -> None:
        """Tell the handler that the call is over."""
        self._closed = True
        self._room.set()
        handler, self._handler = self._handler, None
        if handler is not None:
            try:
                handler.closed(why)
            except Exception as error:
                self._service.explain(error)  # which logs it; there is nobody left to tell

    def _receive(self, message: bytes) -> None:
        self._unapplied_bytes += len(message)
        if self._unapplied_bytes > self._settings.stream_window_bytes:
            self._room.clear()
        self._tell(lambda handler: handler.received(message))

    def _tell(self, what: Any) -> None:
        """Call the handler, made when it is first needed; what it raises ends the call."""
        try:
            if self._handler is None:
                self._handler = self._method.start(self)
            what(self._handler)
        except Exception as error:
            self.end(self._service.explain(error))

    def _next_message(self) -> bytes | None:
        if self._handler is None or self._broken:
            return None
        try:
            return self._handler.next_message()
        except Exception as error:
            self._broken = True
            self._status = self._service.explain(error)
            return None


def _metadata(context: ServicerContext[bytes, bytes]) -> Metadata:
    found: dict[str, str | bytes] = {}
    for key, value in context.invocation_metadata() or ():
        before = found.get(key)
        found[key] = f"{before},{value}" if isinstance(before, str) and isinstance(value, str) else value
    return found


def _address(peer: str) -> str:
    """Return `ipv4:127.0.0.1:40112` as `127.0.0.1:40112`, and `unix:…` as `unix:`."""
    kind, _, rest = peer.partition(":")
    return "unix:" if kind == "unix" else unquote(rest)


def _options(settings: Settings) -> list[tuple[str, int]]:
    keepalive, timeout = settings.keepalive_seconds, settings.keepalive_timeout_seconds
    return [
        # Two servers on one port would share its clients without a word.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # Ours is checked first, with a reason; gRPC's own refusal has none.
        ("grpc.max_receive_message_length", 2 * settings.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", CONNECTION_STREAMS_MAX),
        # A silent peer is noticed only where the ping has a time-out too.
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", int(timeout * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(settings.ping_seconds_min * 1000)),
        # Bursts of new streams were cancelled with the defaults; ours are counted, and refused with a reason.
        ("grpc.server.max_pending_requests", 4 * settings.streams_max),
        ("grpc.server.max_pending_requests_hard_limit", 8 * settings.streams_max),
    ]


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    """Return credentials that are read again when a file has changed."""
    files = [file for file in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if file]
    known = _changed_at(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        try:
            changed_at = _changed_at(files)
            if changed_at == known:
                return None
            tls.Certificates(settings)
            configuration = _configuration(settings)
        except (OSError, SettingsInvalid) as error:  # half written, perhaps: the old ones serve on
            log.warning("certificates_not_read", why=str(error))
            return None
        known = changed_at
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        _configuration(settings),
        fetch,  # type: ignore[arg-type]  # None: nothing has changed, as grpc's documentation says
        require_client_authentication=settings.tls_client_ca is not None,
    )


def _configuration(settings: Settings) -> grpc.ServerCertificateConfiguration:
    assert settings.tls_cert is not None, "TLS has a certificate"
    key = (settings.tls_key or settings.tls_cert).read_bytes()
    authorities = None if settings.tls_client_ca is None else settings.tls_client_ca.read_bytes()
    return grpc.ssl_server_certificate_configuration([(key, settings.tls_cert.read_bytes())], authorities)


def _changed_at(files: list[Path]) -> list[int]:
    return [file.stat().st_mtime_ns for file in files]
