"""Who holds which state: sessions, the streams that write to them, and the rules between them.

Knows no gRPC and no protobuf: `api` reads messages and tells this package; it answers through a `Listener`.
"""

from cellstream.sessions.catalogue import Catalogue, Served, choose_default
from cellstream.sessions.endings import Ending
from cellstream.sessions.life import Cause
from cellstream.sessions.registry import Registry
from cellstream.sessions.session import (
    Handle,
    Listener,
    Mode,
    Open,
    QueuedFeed,
    Session,
    Stream,
)

__all__ = [
    "Catalogue",
    "Cause",
    "Ending",
    "Handle",
    "Listener",
    "Mode",
    "Open",
    "QueuedFeed",
    "Registry",
    "Served",
    "Session",
    "Stream",
    "choose_default",
]
