"""grpcio, gRPC's C core under Python: its synchronous client and its asyncio client.

The synchronous one also stands behind each proxy.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from cellstream.v1 import model_pb2, model_pb2_grpc, prediction_pb2_grpc
from cellstream.v1 import prediction_pb2 as pb
from trials.peers import contract
from trials.peers.contract import SECONDS, Ability, Cell, Endpoint, Peer, Security, Site

_METADATA = (contract.METADATA_TEXT, contract.METADATA_BYTES)
_SESSION = "cancelled by {}"


def credentials(site: Site, security: Security) -> grpc.ChannelCredentials:
    """What the client trusts, and what it shows."""
    files = site.certificates
    authority = files.authority.read_bytes()
    if security == "TLS":
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(
        authority, files.client_key.read_bytes(), files.client_cert.read_bytes()
    )


def _reason(error: Any) -> str:
    """ErrorInfo's reason in a call's status details."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    for detail in Status.FromString(details).details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            return str(ErrorInfo.FromString(detail.value).reason)
    return ""


def _code(error: Any) -> int:
    return int(error.code().value[0])


# ------------------------------------------------------------------------------------------- synchronous


class Requests:
    """An iterator of requests that ends when it is told to: how the synchronous client sends a stream."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[pb.PredictRequest | None] = SimpleQueue()

    def send(self, request: pb.PredictRequest) -> None:
        """Send one."""
        self._queue.put(request)

    def end(self) -> None:
        """Half-close."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.PredictRequest]:
        """What gRPC's own thread reads."""
        return iter(self._queue.get, None)


@contextmanager
def _channel(site: Site, endpoint: Endpoint, **options: Any) -> Iterator[grpc.Channel]:
    if endpoint.security == "plain":
        channel = grpc.insecure_channel(endpoint.target, **options)
    else:
        channel = grpc.secure_channel(endpoint.target, credentials(site, endpoint.security), **options)
    with channel:
        yield channel


def _next_results(call: Iterator[pb.PredictResponse], count: int) -> list[pb.Result]:
    found: list[pb.Result] = []
    while len(found) < count:
        found += next(call).results
    return found


def _stream(site: Site, *, security: Security = "plain", compression: grpc.Compression | None = None) -> None:
    with _channel(site, site.endpoints[security], compression=compression) as channel:
        requests = Requests()
        call = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(iter(requests), timeout=SECONDS)
        results = []
        for request in contract.conversation():
            requests.send(request)
            results += _next_results(call, 1)
        contract.check_answers(site, results)
        requests.end()
        assert next(call, None) is None
        assert call.code() is grpc.StatusCode.OK


def _half_close(site: Site) -> None:
    with _channel(site, site.endpoints["plain"]) as channel:
        call = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(
            iter(contract.conversation()), timeout=SECONDS
        )
        contract.check_answers(site, [result for response in call for result in response.results])
        assert call.code() is grpc.StatusCode.OK


def _cancel(site: Site, name: str) -> None:
    endpoint = site.endpoints["plain"]
    with _channel(site, endpoint) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        requests = Requests()
        call = stub.Predict(iter(requests), timeout=SECONDS)
        requests.send(contract.long_work(_SESSION.format(name)))
        assert next(call).opened, "the session was not opened"
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED
        requests.end()
    contract.check_no_stream_stays(endpoint.server)
    with _channel(site, endpoint) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        attach = pb.PredictRequest(opens=[contract.opening(_SESSION.format(name))])
        responses = list(stub.Predict(iter([attach]), timeout=SECONDS))
    contract.check_work_was_broken_off(responses[0].opened[0].position)


def _deadline(site: Site) -> None:
    endpoint = site.endpoints["plain"]
    with _channel(site, endpoint) as channel:
        requests = Requests()
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        call = stub.Predict(iter(requests), timeout=contract.DEADLINE_SECONDS)
        requests.send(contract.conversation()[0])
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED, call.code()
        requests.end()
    contract.check_no_stream_stays(endpoint.server)


def _metadata(site: Site) -> None:
    with _channel(site, site.endpoints["plain"]) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        asked = model_pb2.GetModelRequest(name=contract.UNKNOWN_MODEL)
        try:
            stub.GetModel(asked, metadata=_METADATA, timeout=SECONDS)
        except grpc.RpcError as error:
            contract.check_unknown_model(_code(error), error.details() or "", _reason(error))
        else:
            raise AssertionError("there is no such model")


def _large(site: Site) -> None:
    with _channel(site, site.endpoints["plain"]) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        responses = stub.Predict(iter([contract.large_request()]), timeout=SECONDS)
        contract.check_large([result for response in responses for result in response.results])


def synchronous_cells(name: str) -> dict[Ability, Cell]:
    """The synchronous client's cells.

    Args:
        name: Of the peer; sessions are named for it.
    """
    return {
        "stream": _stream,
        "cancel": partial(_cancel, name=name),
        "half-close": _half_close,
        "deadline": _deadline,
        "metadata": _metadata,
        "gzip": partial(_stream, compression=grpc.Compression.Gzip),
        "TLS": partial(_stream, security="TLS"),
        "mutual TLS": partial(_stream, security="mutual TLS"),
        "3 MB message": _large,
    }


# ----------------------------------------------------------------------------------------------- asyncio


@asynccontextmanager
async def _aio_channel(site: Site, endpoint: Endpoint, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    if endpoint.security == "plain":
        channel = grpc.aio.insecure_channel(endpoint.target, **options)
    else:
        channel = grpc.aio.secure_channel(endpoint.target, credentials(site, endpoint.security), **options)
    async with channel:
        yield channel


def _predict(channel: grpc.aio.Channel, timeout: float = SECONDS) -> Any:
    stub: Any = prediction_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(timeout=timeout)


async def _aio_stream(
    site: Site, *, security: Security = "plain", compression: grpc.Compression | None = None
) -> None:
    async with _aio_channel(site, site.endpoints[security], compression=compression) as channel:
        call = _predict(channel)
        results: list[pb.Result] = []
        for answered, request in enumerate(contract.conversation(), start=1):
            await call.write(request)
            while len(results) < answered:
                results += (await call.read()).results
        contract.check_answers(site, results)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def _aio_half_close(site: Site) -> None:
    async with _aio_channel(site, site.endpoints["plain"]) as channel:
        call = _predict(channel)
        for request in contract.conversation():
            await call.write(request)
        await call.done_writing()
        contract.check_answers(site, [result async for response in call for result in response.results])
        assert await call.code() is grpc.StatusCode.OK


async def _aio_cancel(site: Site) -> None:
    endpoint = site.endpoints["plain"]
    async with _aio_channel(site, endpoint) as channel:
        call = _predict(channel)
        await call.write(contract.long_work(_SESSION.format("aio")))
        assert (await call.read()).opened, "the session was not opened"
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await asyncio.to_thread(contract.check_no_stream_stays, endpoint.server)
        again = _predict(channel)
        await again.write(pb.PredictRequest(opens=[contract.opening(_SESSION.format("aio"))]))
        contract.check_work_was_broken_off((await again.read()).opened[0].position)
        await again.done_writing()


async def _aio_deadline(site: Site) -> None:
    endpoint = site.endpoints["plain"]
    async with _aio_channel(site, endpoint) as channel:
        call = _predict(channel, contract.DEADLINE_SECONDS)
        await call.write(contract.conversation()[0])
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.to_thread(contract.check_no_stream_stays, endpoint.server)


async def _aio_metadata(site: Site) -> None:
    async with _aio_channel(site, site.endpoints["plain"]) as channel:
        stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        asked = model_pb2.GetModelRequest(name=contract.UNKNOWN_MODEL)
        try:
            await stub.GetModel(asked, metadata=_METADATA, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            contract.check_unknown_model(_code(error), error.details() or "", _reason(error))
        else:
            raise AssertionError("there is no such model")


async def _aio_large(site: Site) -> None:
    async with _aio_channel(site, site.endpoints["plain"]) as channel:
        call = _predict(channel)
        await call.write(contract.large_request())
        await call.done_writing()
        contract.check_large([result async for response in call for result in response.results])


def _run(cell: Callable[..., Awaitable[None]], **options: Any) -> Cell:
    """Run a coroutine in a loop and thread of its own: grpc.aio keeps to the loop it was first used in."""

    def run(site: Site) -> None:
        failures: list[BaseException] = []

        def in_thread() -> None:
            try:
                asyncio.run(_bounded(cell(site, **options)))
            except BaseException as error:  # told in the caller's thread
                failures.append(error)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    return run


async def _bounded(cell: Awaitable[None]) -> None:
    async with asyncio.timeout(2 * SECONDS):
        await cell


def _version(site: Site) -> str:
    return grpc.__version__


PEERS = (
    Peer("grpcio, sync", _version, synchronous_cells("sync")),
    Peer(
        "grpcio, aio",
        _version,
        {
            "stream": _run(_aio_stream),
            "cancel": _run(_aio_cancel),
            "half-close": _run(_aio_half_close),
            "deadline": _run(_aio_deadline),
            "metadata": _run(_aio_metadata),
            "gzip": _run(_aio_stream, compression=grpc.Compression.Gzip),
            "TLS": _run(_aio_stream, security="TLS"),
            "mutual TLS": _run(_aio_stream, security="mutual TLS"),
            "3 MB message": _run(_aio_large),
        },
    ),
)
