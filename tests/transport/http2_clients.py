"""Two clients in memory that are not ours, behind one face: h2 (pure Python) and nghttp2 (by way of ngh2).

Both parse strictly: whatever of ours breaks the protocol is an exception here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import ngh2

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a/B"),
    (":authority", "a"),
    ("te", "trailers"),
]
INITIAL_WINDOW_SIZE = 4  # RFC 9113, section 6.5.2


class Client:
    """What both have.

    Attributes:
        received: Data that came, by stream.
        unreturned: Bytes of it whose window was not given back.
        answers: How many responses began, by stream.
        ended: Streams that the server ended.
        reset: Streams that the server reset, with the code.
        trailers: Streams whose trailers came.
        pings: Answers to our PINGs.
        goaways: Codes of GOAWAYs.
    """

    def __init__(self) -> None:
        self.received: dict[int, bytes] = defaultdict(bytes)
        self.unreturned: dict[int, int] = defaultdict(int)
        self.answers: dict[int, int] = defaultdict(int)
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.trailers: set[int] = set()
        self.pings: list[bytes] = []
        self.goaways: list[int] = []

    def take_data(self, stream_id: int, data: bytes) -> None:
        """Count data that came."""
        self.received[stream_id] += data
        self.unreturned[stream_id] += len(data)


class H2Client(Client):
    """h2; it does not queue what a window has no room for, so this does."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.peer.initiate_connection()
        self._queue: dict[int, list[tuple[bytes, bool]]] = defaultdict(list)

    def open(self, *, end: bool) -> int:
        """Send a request; return its stream."""
        stream_id = self.peer.get_next_available_stream_id()
        self.peer.send_headers(stream_id, FIELDS, end_stream=end)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool, padding: int = 0) -> None:
        """Send data as soon as windows allow; padding only where it fits at once."""
        if padding and not self._queue[stream_id] and len(data) + padding + 1 <= self._room(stream_id):
            self.peer.send_data(stream_id, data, end_stream=end, pad_length=padding)
            return
        self._queue[stream_id].append((data, end))
        self._flush()

    def send_trailers(self, stream_id: int) -> bool:
        """End the stream with trailers; return whether they could be sent now."""
        if self._queue[stream_id]:
            return False
        self.peer.send_headers(stream_id, [("some", "trailer")], end_stream=True)
        return True

    def cancel(self, stream_id: int) -> None:
        """Reset a stream."""
        self._queue.pop(stream_id, None)
        self.peer.reset_stream(stream_id, 8)

    def set_initial_window(self, size: int) -> None:
        """Send SETTINGS_INITIAL_WINDOW_SIZE."""
        self.peer.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: size})

    def ping(self, data: bytes) -> None:
        """Send PING."""
        self.peer.ping(data)

    def give_back(self, stream_id: int, size: int) -> None:
        """Let the server send so many bytes more."""
        self.peer.acknowledge_received_data(size, stream_id)
        self.unreturned[stream_id] -= size

    def output(self) -> bytes:
        """Return what is to be written."""
        return self.peer.data_to_send()

    def receive(self, data: bytes) -> None:
        """Take bytes; raise if they break the protocol."""
        for event in self.peer.receive_data(data):
            self._hear(event)
        self._flush()

    def send_windows(self, stream_id: int) -> tuple[int, int]:
        """Return how much may be sent on the connection and on the stream."""
        return self.peer.outbound_flow_control_window, self.peer.streams[
            stream_id
        ].outbound_flow_control_window

    def receive_room(self, stream_id: int) -> int:
        """Return how much the server may send on the stream."""
        return self.peer.remote_flow_control_window(stream_id)

    def _hear(self, event: Any) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id] += 1
            case h2.events.DataReceived():
                self.take_data(event.stream_id, event.data)
            case h2.events.TrailersReceived():
                self.trailers.add(event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.reset[event.stream_id] = int(event.error_code)
                self._queue.pop(event.stream_id, None)
            case h2.events.PingAckReceived():
                self.pings.append(event.ping_data)
            case h2.events.ConnectionTerminated():
                self.goaways.append(int(event.error_code))

    def _room(self, stream_id: int) -> int:
        return min(self.peer.local_flow_control_window(stream_id), self.peer.max_outbound_frame_size)

    def _flush(self) -> None:
        for stream_id, queue in list(self._queue.items()):
            while queue:
                data, end = queue[0]
                room = max(0, self._room(stream_id))
                if len(data) <= room:
                    self.peer.send_data(stream_id, data, end_stream=end)
                    queue.pop(0)
                    continue
                if room:
                    self.peer.send_data(stream_id, data[:room])
                    queue[0] = (data[room:], end)
                    continue
                break


class NghttpClient(Client):
    """libnghttp2; it queues by itself, and does not pad."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=False))
        self.peer.initiate_connection()

    def open(self, *, end: bool) -> int:
        """Send a request; return its stream."""
        return self.peer.send_request([(n.encode(), v.encode()) for n, v in FIELDS], end_stream=end)

    def send(self, stream_id: int, data: bytes, *, end: bool, padding: int = 0) -> None:
        """Send data as soon as windows allow."""
        self.peer.send_data(stream_id, data, end_stream=end)

    def send_trailers(self, stream_id: int) -> bool:
        """End the stream with trailers, behind its data."""
        self.peer.send_trailers(stream_id, [(b"some", b"trailer")])
        return True

    def cancel(self, stream_id: int) -> None:
        """Reset a stream."""
        self.peer.reset_stream(stream_id, 8)

    def set_initial_window(self, size: int) -> None:
        """Send SETTINGS_INITIAL_WINDOW_SIZE."""
        self.peer.update_settings({INITIAL_WINDOW_SIZE: size})

    def ping(self, data: bytes) -> None:
        """Send PING."""
        self.peer.ping(data)

    def give_back(self, stream_id: int, size: int) -> None:
        """Let the server send so many bytes more."""
        self.peer.acknowledge_received_data(size, stream_id)
        self.unreturned[stream_id] -= size

    def output(self) -> bytes:
        """Return what is to be written."""
        return self.peer.data_to_send()

    def receive(self, data: bytes) -> None:
        """Take bytes; raise if they break the protocol."""
        self.peer.receive_data(data)
        for event in self.peer.events():
            self._hear(event)

    def send_windows(self, stream_id: int) -> tuple[int, int]:
        """Return how much may be sent on the connection and on the stream."""
        return self.peer.remote_window_size, self.peer.stream_remote_window_size(stream_id)

    def receive_room(self, stream_id: int) -> int:
        """Return how much the server may send on the stream."""
        return min(self.peer.local_window_size, self.peer.stream_local_window_size(stream_id))

    def _hear(self, event: Any) -> None:
        match event:
            case ngh2.ResponseReceived():
                self.answers[event.stream_id] += 1
            case ngh2.DataReceived():
                self.take_data(event.stream_id, event.data)
            case ngh2.TrailersReceived():
                self.trailers.add(event.stream_id)
            case ngh2.StreamReset():
                self.reset[event.stream_id] = event.error_code
            case ngh2.PingAcknowledged():
                self.pings.append(event.opaque_data)
            case ngh2.GoAwayReceived():
                self.goaways.append(event.error_code)
        if isinstance(event, ngh2.ResponseReceived | ngh2.DataReceived) and event.end_stream:
            self.ended.add(event.stream_id)
        if isinstance(event, ngh2.TrailersReceived):
            self.ended.add(event.stream_id)
