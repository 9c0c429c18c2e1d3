"""What bounds a client, each with its reason; the server's own bounds stand in `cellstream.settings`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The bounds of one client.

    Attributes:
        timeout_seconds: How long any call waits for the next word of the server. More than the 30 s after
            which a server gives up a waiting feed by itself, so that the server's own answer comes first.
        connect_timeout_seconds: How long a call waits for a connection; a server that restarts in the same
            moment is met, a wrong port is told of while someone still looks.
        close_timeout_seconds: How long closing waits for the server to end the stream cleanly.
        joined_items_max: Opens, resets, feeds and closes of one message: a server's batch has 512 rows.
        joined_bytes_max: Bytes of a joined message, estimated from above; beyond it joining gains nothing.
        message_bytes_max: Bytes of one feed. The server's own bound on a message: there it would end the
            stream and with it every session without a name, so it is refused here.
        unsent_bytes_max: Bytes that wait to be written; beyond it senders wait, as the server bids them to.
        response_bytes_max: Bytes of one response. Servers cut at 1 MiB, but one step alone, with gates and
            states of a large model, may be more.
        keepalive_seconds: Silence after which the server is asked whether it lives; proxies drop silent
            connections after 60.
        keepalive_timeout_seconds: Without an answer to that, the connection is lost.
    """

    timeout_seconds: float = 60.0
    connect_timeout_seconds: float = 5.0
    close_timeout_seconds: float = 2.0
    joined_items_max: int = 512
    joined_bytes_max: int = 256 << 10
    message_bytes_max: int = (4 << 20) - 1024
    unsent_bytes_max: int = 8 << 20
    response_bytes_max: int = 64 << 20
    keepalive_seconds: float = 20.0
    keepalive_timeout_seconds: float = 10.0
