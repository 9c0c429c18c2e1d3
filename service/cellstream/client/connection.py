"""One channel to one server: it waits for the connection, carries the shared conversation and single calls.

It knows gRPC and the bounds of time; sessions and generations know neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from cellstream.client.conversation import Conversation, PredictCall
from cellstream.client.settings import ClientSettings
from cellstream.client.status import from_rpc_error
from cellstream.client.tls import ATTEMPT_SECONDS, channel_options, explain_handshake
from cellstream.errors import ConnectionLost
from cellstream.v1 import prediction_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")


@asynccontextmanager
async def bounded(seconds: float, waited_for: str) -> AsyncIterator[None]:
    """Gives up a wait.

    Args:
        seconds: How long it may take.
        waited_for: What the message says was waited for.

    Raises:
        ConnectionLost: It took longer. Whether the server did what was asked, only the position tells.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ConnectionLost(f"waited {seconds:g} s for {waited_for}", waited_seconds=seconds) from error


class Connection:
    """A channel that is made when it is first needed, on the loop that needs it.

    Args:
        target: Where the server is, as gRPC writes it: `host:port`, `unix:path`.
        credentials: None: plain text.
        settings: Its bounds.
        server_name: The name that the server's certificate must have; empty: the target's host.
    """

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        settings: ClientSettings,
        server_name: str = "",
    ) -> None:
        self.target = target
        self.settings = settings
        self._credentials = credentials
        self._server_name = server_name
        self._channel: grpc.aio.Channel | None = None
        self._conversation: Conversation | None = None
        self.closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel.

        Raises:
            ConnectionLost: The client is closed.
        """
        if self.closed:
            raise ConnectionLost("the client was closed")
        if self._channel is None:
            self._channel = self._make_channel(_channel_options(self.settings))
        return self._channel

    def conversation(self) -> Conversation:
        """The stream that all sessions share: the one that lives, or a new one."""
        if self._conversation is None or self._conversation.ended is not None:
            self._conversation = Conversation(self._start_predict, self.settings)
        return self._conversation

    async def connected(self) -> grpc.aio.Channel:
        """Waits a moment for a connection, and goes on without one: the call then tells what is wrong.

        Raises:
            ConnectionLost: There is none, because of TLS.
        """
        channel = self.channel
        try:
            async with asyncio.timeout(self.settings.connect_timeout_seconds):
                await channel.channel_ready()
        except TimeoutError:
            await self._raise_if_tls_fails()
        return channel

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Makes our errors of what a call on the channel ends with.

        Raises:
            CellstreamError: What the server refused it for, or why it cannot be reached.
            ConnectionLost: The client was closed meanwhile. gRPC then raises CancelledError, as if the caller
                had been cancelled, and UsageError where it was still connecting.
        """
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                raise ConnectionLost("the client was closed") from None
            raise

    def seconds(self, timeout_seconds: float | None) -> float:
        """How long a call may take: what its caller said, or the client's own bound."""
        return self.settings.timeout_seconds if timeout_seconds is None else timeout_seconds

    async def ask(
        self,
        method: Callable[[grpc.aio.Channel], Callable[..., Awaitable[Response]]],
        request: Request,
        timeout_seconds: float | None = None,
        *,
        wait: bool = True,
    ) -> Response:
        """Makes one call with one answer.

        Args:
            method: Finds the method on a channel.
            request: What it asks.
            timeout_seconds: How long it may take; None: the client's own bound.
            wait: Whether to wait for a connection first.

        Raises:
            CellstreamError: What the server refused it for, or why it cannot be reached.
        """
        async with self.calling():
            channel = await self.connected() if wait else self.channel
            return await method(channel)(request, timeout=self.seconds(timeout_seconds))

    async def close(self) -> None:
        """Ends the conversation, then the channel. Again: nothing."""
        self.closed = True
        if self._conversation is not None:
            await self._conversation.close()
        if self._channel is not None:
            await self._channel.close()

    def _make_channel(self, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options)
        options = options + channel_options(self._server_name)
        return grpc.aio.secure_channel(self.target, self._credentials, options)

    async def _raise_if_tls_fails(self) -> None:
        """Raises ConnectionLost if a first attempt is told of a failed handshake.

        gRPC tells what happened at the address that it tried last. `localhost` has two, and on one of them
        nobody listens; only of a first attempt, with nothing remembered, is the last one IPv4's.
        """
        channel = self._make_channel([("grpc.use_local_subchannel_pool", 1)])
        try:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
            await check(b"", timeout=ATTEMPT_SECONDS)
        except grpc.aio.AioRpcError as error:
            if explain_handshake(error.details() or ""):
                raise from_rpc_error(error) from None
        finally:
            await channel.close()

    async def _start_predict(self) -> PredictCall:
        channel = await self.connected()
        return prediction_pb2_grpc.PredictionServiceStub(channel).Predict()


def _channel_options(settings: ClientSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.response_bytes_max),
        ("grpc.max_send_message_length", -1),  # ours is checked, and a message is one feed at most
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        # A silent peer is noticed only where the ping itself has a time-out too.
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        # An idle stream is watched for as long as it is idle, not for two pings.
        ("grpc.http2.max_pings_without_data", 0),
        # Without these a server that comes back is not tried again for up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
