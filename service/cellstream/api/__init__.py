"""The edge: gRPC in and out. It alone knows sockets, tasks and protobuf."""

from cellstream.api.server import Server, calm_collector, serve

__all__ = ["Server", "calm_collector", "serve"]
