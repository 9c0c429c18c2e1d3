"""The client: sessions over one shared stream, generation, and what the server holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc

from cellstream.client.connection import Connection
from cellstream.client.feeds import AnswerOptions
from cellstream.client.generation import Generation, SamplingOptions, generate_request
from cellstream.client.inventory import (
    Health,
    ModelInfo,
    SessionInfo,
    read_health,
    read_model,
    read_session,
)
from cellstream.client.session import Mode, Session, read_mode
from cellstream.client.settings import ClientSettings
from cellstream.client.tls import TlsOptions, load_credentials
from cellstream.errors import SettingsInvalid
from cellstream.v1 import model_pb2, model_pb2_grpc, session_pb2, session_pb2_grpc


class Client:
    """A client of one server, for one event loop.

        async with Client("localhost:50051") as client:
            async with client.session("alice") as session:
                reply = await session.predict("To be, or not")

    All sessions share one stream, and what they send in the same moment travels in one message.

    Args:
        target: Where the server is, as gRPC writes it: `host:port`, `unix:path`.
        credentials: gRPC's own, in place of the options below.
        settings: The client's bounds.
        **tls: `tls_ca="ca.pem"` and the like: as `TlsOptions` says. None of them, and no credentials: plain
            text, without encryption.

    Raises:
        SettingsInvalid: A file of certificates is not what it should be.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        settings: ClientSettings | None = None,
        **tls: Unpack[TlsOptions],
    ) -> None:
        loaded = load_credentials(tls)
        if credentials is not None and loaded is not None:
            raise SettingsInvalid("credentials and tls options are given: one of them says it all.")
        server_name = tls.get("tls_server_name", "")
        self._connection = Connection(
            target, credentials or loaded, settings or ClientSettings(), server_name
        )

    def __repr__(self) -> str:
        return f"<Client of {self._connection.target}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the stream and the connection; named sessions stay with the server. Again: nothing."""
        await self._connection.close()

    def session(
        self,
        session_id: str = "",
        *,
        model: str = "",
        version: str = "",
        mode: Mode = "attach_or_create",
        **answer: Unpack[AnswerOptions],
    ) -> Session:
        """A session; nothing is sent until it is opened, by `async with` or by its first call.

        Args:
            session_id: Empty: a session that ends with this client's stream. Named: it stays with the server
                until it is closed or idle too long.
            model: Empty: the session's own when it exists, else the server's default.
            version: Empty: the session's own when it exists, else the highest.
            mode: Whether it is created, attached to, or whichever is possible.
            **answer: What its feeds answer with unless they say otherwise.
        """
        return Session(self._connection, session_id, model, version, mode, answer)

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        session_id: str = "",
        model: str = "",
        version: str = "",
        mode: Mode = "attach_or_create",
        timeout_seconds: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Has the model make tokens, sent as they are made.

            async for piece in client.generate("ROMEO:", max_tokens=200):
                print(piece.text, end="")

        Breaking out of the loop cancels it.

        Args:
            prompt: Text or token ids to absorb first; None: go on from where the session stands.
            session_id: Empty: a session for this call alone.
            model: As in `session`.
            version: As in `session`.
            mode: As in `session`.
            timeout_seconds: How long to wait for each piece; None: the client's own bound.
            **sampling: How tokens are drawn.

        Raises:
            GenerationInvalid: A setting is out of range.
        """
        return Generation(
            self._connection,
            generate_request(
                prompt, sampling, session_id=session_id, model=model, version=version, mode=read_mode(mode)
            ),
            self._connection.seconds(timeout_seconds),
        )

    async def models(self, *, timeout_seconds: float | None = None) -> list[ModelInfo]:
        """All models and versions, without their cards.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        response = await self._connection.ask(
            lambda channel: model_pb2_grpc.ModelServiceStub(channel).ListModels,
            model_pb2.ListModelsRequest(),
            timeout_seconds,
        )
        return [read_model(model) for model in response.models]

    async def model(
        self, name: str = "", version: str = "", *, timeout_seconds: float | None = None
    ) -> ModelInfo:
        """One version of a model, with its card.

        Args:
            name: Empty: the default.
            version: Empty: the one that new sessions get.
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            ModelUnknown: No such model.
            VersionUnknown: The model has no such version.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        response = await self._connection.ask(
            lambda channel: model_pb2_grpc.ModelServiceStub(channel).GetModel,
            model_pb2.GetModelRequest(name=name, version=version),
            timeout_seconds,
        )
        return read_model(response.model)

    async def sessions(
        self, *, page_size: int = 0, timeout_seconds: float | None = None
    ) -> AsyncIterator[SessionInfo]:
        """All sessions of the server, whoever holds them, fetched page by page as they are asked for.

        Args:
            page_size: How many at a time; 0: as the server likes.
            timeout_seconds: How long a page may take; None: the client's own bound.

        Raises:
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        token = ""
        while True:
            page = await self._connection.ask(
                lambda channel: session_pb2_grpc.SessionServiceStub(channel).ListSessions,
                session_pb2.ListSessionsRequest(page_size=page_size, page_token=token),
                timeout_seconds,
            )
            for session in page.sessions:
                yield read_session(session)
            token = page.next_page_token
            if not token:
                return

    async def get_session(self, session_id: str, *, timeout_seconds: float | None = None) -> SessionInfo:
        """One session by its id.

        Args:
            session_id: Its id.
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            SessionUnknown: There is none, and none is remembered.
            SessionExpired: It was idle too long.
            SessionClosed: It was closed.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        response = await self._connection.ask(
            lambda channel: session_pb2_grpc.SessionServiceStub(channel).GetSession,
            session_pb2.GetSessionRequest(session_id=session_id),
            timeout_seconds,
        )
        return read_session(response.session)

    async def close_session(self, session_id: str, *, timeout_seconds: float | None = None) -> int:
        """Ends a session, whoever holds it: they are told.

        Args:
            session_id: Its id.
            timeout_seconds: How long it may take; None: the client's own bound.

        Returns:
            How many tokens it had absorbed.

        Raises:
            SessionUnknown: There is none, and none is remembered.
            SessionExpired: It was idle too long.
            SessionClosed: It was closed already.
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        response = await self._connection.ask(
            lambda channel: session_pb2_grpc.SessionServiceStub(channel).CloseSession,
            session_pb2.CloseSessionRequest(session_id=session_id),
            timeout_seconds,
        )
        return response.position

    async def health(self, *, timeout_seconds: float | None = None) -> Health:
        """Whether the server serves, by the standard health service; does not wait for it to come up.

        Args:
            timeout_seconds: How long it may take; None: the client's own bound.

        Raises:
            ConnectionLost: The server cannot be reached, or did not answer in time.
        """
        return await self._connection.ask(
            lambda channel: channel.unary_unary(
                "/grpc.health.v1.Health/Check", response_deserializer=read_health
            ),
            b"",  # a HealthCheckRequest that names no service: the whole server
            timeout_seconds,
            wait=False,
        )
