"""The edge: gRPC in and out. It alone knows sockets, tasks and protobuf."""

from cellstream.api.server import Server, serve

__all__ = ["Server", "serve"]
