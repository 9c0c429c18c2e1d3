"""What a stream owes: bytes that it has read and not applied, and bytes that it has not sent.

A stream above its bound of unsent bytes is neither read nor stepped; at half of it, it goes on. What it reads
is bounded by its window: its bytes are given back as they are applied, unless it is paused.
"""

from __future__ import annotations

from cellstream.sessions import Registry, Stream
from cellstream.settings import Settings
from cellstream.transport.call import Call


class UnsentBytes:
    """What all streams together have not sent.

    While it is above its bound, no stream may have more than its fair share, so that all of them together
    have at most twice the bound.

    Args:
        settings: The bounds.

    Attributes:
        total: Bytes.
        always_allowed: What any stream may have unsent, however many there are.
    """

    def __init__(self, settings: Settings) -> None:
        self._total_max = settings.buffered_bytes_max
        self.total = 0
        self.always_allowed = min(
            settings.stream_outbox_bytes_max,
            settings.generation_outbox_bytes_max,
            self._total_max // settings.streams_max,
        )

    def __repr__(self) -> str:
        return f"<UnsentBytes: {self.total} of about {self._total_max}>"

    def stream_max(self, streams: int) -> int:
        """Return how many bytes one of so many streams may have unsent now, for the sake of the others."""
        return self._total_max if self.total <= self._total_max else self._total_max // max(1, streams)


class Flow:
    """Holds back one stream while its client does not read.

    Args:
        call: Its call.
        stream: It, as the registry sees it.
        registry: Who pauses and resumes it.
        unsent: What all streams have not sent.
        bytes_max: What this one may have unsent at most.

    Attributes:
        unsent_bytes: What this stream has not sent.
    """

    __slots__ = ("_bytes_max", "_call", "_held_bytes", "_registry", "_stream", "_total", "unsent_bytes")

    def __init__(
        self, call: Call, stream: Stream, registry: Registry, unsent: UnsentBytes, bytes_max: int
    ) -> None:
        self._bytes_max = bytes_max
        self._call = call
        self._stream = stream
        self._registry = registry
        self._total = unsent
        self._held_bytes = 0  # applied, and not given back because the stream is paused
        self.unsent_bytes = 0

    def __repr__(self) -> str:
        return f"<Flow: {self.unsent_bytes} bytes unsent, {self._held_bytes} held back, {self._stream!r}>"

    def owe(self, size: int) -> None:
        """Count bytes that wait to be sent; pause the stream if they are too many."""
        unsent = self.unsent_bytes = self.unsent_bytes + size
        self._total.total += size
        if unsent > self._total.always_allowed and not self._stream.paused and unsent > self._bound():
            self._registry.pause(self._stream)

    def sent(self, size: int) -> None:
        """Count bytes that were sent; let the stream go on if few enough are left."""
        self.unsent_bytes -= size
        self._total.total -= size
        if self._stream.paused and self.unsent_bytes <= self._bound() // 2:
            self._registry.resume(self._stream)
            held, self._held_bytes = self._held_bytes, 0
            self._call.consumed(held)

    def applied(self, size: int) -> None:
        """Let the client send as much more, now or once the stream goes on."""
        if self._stream.paused:
            self._held_bytes += size
        else:
            self._call.consumed(size)

    def close(self) -> None:
        """Forget what was not sent: nobody is there to take it."""
        self._total.total -= self.unsent_bytes
        self.unsent_bytes = 0

    def _bound(self) -> int:
        return min(self._bytes_max, self._total.stream_max(len(self._registry.streams)))
