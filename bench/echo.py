"""The floor of the row without joined messages: grpc.aio on uvloop that answers and does nothing else.

A stream's first message is what each of its messages is answered with, itself included. So the echo moves the
very bytes that the service would.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import grpc
import uvloop
from grpc.aio import ServicerContext

from cellstream.api import calm_collector


async def _echo(messages: AsyncIterator[bytes], context: ServicerContext[bytes, bytes]) -> None:
    answer = None
    async for message in messages:
        answer = answer or message
        await context.write(answer)


async def _serve() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Predict": grpc.stream_stream_rpc_method_handler(_echo)
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("cellstream.v1.PredictionService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    calm_collector()
    print(json.dumps({"event": "serving", "port": port}), file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
