"""The client for code without an event loop: the asynchronous one, run on a loop and thread of its own.

Each method is the asynchronous one of the same name, with its signature and its documentation; here is only
how a call crosses to the loop and back. What waits can be interrupted: Ctrl-C cancels it on the loop too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

import grpc

from cellstream.client.client import Client
from cellstream.client.feeds import AnswerOptions, Input
from cellstream.client.generation import FinishReason, Generation, Piece
from cellstream.client.pending import Pending
from cellstream.client.reply import Reply
from cellstream.client.session import Ending, Session
from cellstream.client.settings import ClientSettings
from cellstream.client.tls import TlsOptions
from cellstream.errors import ConnectionLost

Given = ParamSpec("Given")
Result = TypeVar("Result")
Inner = TypeVar("Inner")
Made = TypeVar("Made")


class LoopThread:
    """An event loop on a thread of its own, until `stop` or the end of the program."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="cellstream client", daemon=True
        )
        self.thread.start()
        self._ready.wait()

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine on the loop, and waits for its end.

        Raises:
            ConnectionLost: As `start`.
        """
        assert threading.current_thread() is not self.thread, "the loop cannot wait for itself"
        future = self.start(work)
        try:
            return future.result()
        except CancelledError:
            raise ConnectionLost("the client was closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C in the middle of the wait; to what has ended already it does nothing.
            raise

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Runs a coroutine on the loop, behind what was started before.

        Raises:
            ConnectionLost: The loop has stopped, or this process is a fork of the one that made it: neither
                threads nor connections survive a fork.
        """
        if os.getpid() != self._process:
            work.close()
            raise ConnectionLost("this client was made before a fork: make one in each process")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ConnectionLost("the client was closed") from None

    def stop(self) -> None:
        """Ends the loop, with all that it runs, and its thread. Again, or in a fork: nothing."""
        if os.getpid() == self._process and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)
            if threading.current_thread() is not self.thread:
                self.thread.join()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._ready.set()
        await self._stopped.wait()


class Twin(Generic[Inner]):
    """Something asynchronous, and the loop that it lives on."""

    def __init__(self, inner: Inner, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"


def _blocking(
    method: Callable[Concatenate[Inner, Given], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Twin[Inner], Given], Result]:
    """The method, waited for."""

    @functools.wraps(method)
    def call(twin: Twin[Inner], /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return twin._thread.call(method(twin._inner, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Inner, Given], AsyncIterator[Result]],
) -> Callable[Concatenate[Twin[Inner], Given], Iterator[Result]]:
    """The method, whose items are waited for one by one."""

    @functools.wraps(method)
    def call(twin: Twin[Inner], /, *args: Given.args, **kwargs: Given.kwargs) -> Iterator[Result]:
        items = method(twin._inner, *args, **kwargs)
        try:
            while (item := twin._thread.call(_next_of(items))) is not None:
                yield item
        finally:
            # Not waited for: an iterator may be collected on any thread, the loop's own too.
            with contextlib.suppress(ConnectionLost):  # closed meanwhile: then the items are, too
                twin._thread.start(_close(items))

    return call


def _making(
    method: Callable[Concatenate[Inner, Given], Made], twin_of: Callable[[Made, LoopThread], Result]
) -> Callable[Concatenate[Twin[Inner], Given], Result]:
    """The method, whose result gets a blocking twin."""

    @functools.wraps(method)
    def call(twin: Twin[Inner], /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return twin_of(method(twin._inner, *args, **kwargs), twin._thread)

    return call


async def _next_of(items: AsyncIterator[Result]) -> Result | None:
    return await anext(items, None)


async def _close(items: AsyncIterator[Any]) -> None:
    await items.aclose()  # type: ignore[attr-defined] # all of ours are generators, or close like one


class BlockingPending(Twin[Pending]):
    """What `BlockingSession.send` gives back: ask it for the reply."""

    def done(self) -> bool:
        """Whether it is answered, failed or given up."""
        return self._inner.done()

    def result(self) -> Reply:
        """Waits for the reply.

        Raises:
            CellstreamError: The feed failed; as `Session.predict`.
        """
        return self._thread.call(self._wait())

    async def _wait(self) -> Reply:
        return await self._inner


class BlockingGeneration(Twin[Generation], Iterator[Piece]):
    """The pieces of one generation, in order. Breaking out of the loop cancels it; so does `close`."""

    @property
    def seed(self) -> int | None:
        """The seed, once the first piece is there."""
        return self._inner.seed

    @property
    def position(self) -> int | None:
        """How many tokens the session had absorbed at the last piece."""
        return self._inner.position

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, once it has."""
        return self._inner.finish_reason

    def __next__(self) -> Piece:
        piece = self._thread.call(_next_of(self._inner))
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Ends it here. Over already: nothing."""
        self._thread.call(self._inner.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A call may only be cancelled on its own loop; not waited for, as this may be any thread, its too.
        with contextlib.suppress(ConnectionLost):
            self._thread.start(self._inner.aclose())


class BlockingSession(Twin[Session]):
    """A `Session` whose methods wait."""

    open = _blocking(Session.open)
    reattach = _blocking(Session.reattach)
    leave = _blocking(Session.leave)
    close = _blocking(Session.close)
    predict = _blocking(Session.predict)
    predict_in_parts = _iterating(Session.predict_in_parts)
    reset = _blocking(Session.reset)
    generate = _making(Session.generate, BlockingGeneration)

    def send(
        self, given: Input, *, timeout_seconds: float | None = None, **answer: Unpack[AnswerOptions]
    ) -> BlockingPending:
        """Feeds it without waiting for the answer; see `Session.send`."""
        sent = self._inner.send(given, timeout_seconds=timeout_seconds, **answer)
        return BlockingPending(self._thread.call(sent), self._thread)

    @property
    def id(self) -> str:
        """Its id; of a session without a name, the server's, once it is open."""
        return self._inner.id

    @property
    def position(self) -> int:
        """How many tokens or frames it has absorbed, as far as the caller was told."""
        return self._inner.position

    @property
    def model(self) -> str:
        """The model that serves it; empty until it is open."""
        return self._inner.model

    @property
    def version(self) -> str:
        """The version that serves it; empty until it is open."""
        return self._inner.version

    @property
    def created(self) -> bool:
        """Whether its state was new when it was last opened."""
        return self._inner.created

    @property
    def previous(self) -> Ending | None:
        """How the last session of this name ended, if the server remembers."""
        return self._inner.previous

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.call(self._inner.__aexit__(kind, error, trace))


class BlockingClient(Twin[Client]):
    """A `Client` whose methods wait; usable from any thread.

        with BlockingClient("localhost:50051") as client:
            with client.session("alice") as session:
                reply = session.predict("To be, or not")

    Args:
        target: Where the server is, as gRPC writes it: `host:port`, `unix:path`.
        credentials: As `Client` takes them.
        settings: The client's bounds.
        **tls: As `Client` takes them.

    Raises:
        SettingsInvalid: A file of certificates is not what it should be.
    """

    session = _making(Client.session, BlockingSession)
    generate = _making(Client.generate, BlockingGeneration)
    models = _blocking(Client.models)
    model = _blocking(Client.model)
    sessions = _iterating(Client.sessions)
    get_session = _blocking(Client.get_session)
    close_session = _blocking(Client.close_session)
    health = _blocking(Client.health)

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        settings: ClientSettings | None = None,
        **tls: Unpack[TlsOptions],
    ) -> None:
        client = Client(target, credentials=credentials, settings=settings, **tls)
        super().__init__(client, LoopThread())
        # Also at the end of a program that forgot to: gRPC's threads must not outlive the interpreter.
        self._finalizer = weakref.finalize(self, _shut, self._inner, self._thread)

    def close(self) -> None:
        """Ends the stream and the connection; named sessions stay with the server. Again: nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shut(client: Client, thread: LoopThread) -> None:
    if threading.current_thread() is not thread.thread:  # collected there, it could not wait for its loop
        with contextlib.suppress(ConnectionLost):  # in a fork there is nothing to close
            thread.call(client.close())
    thread.stop()
