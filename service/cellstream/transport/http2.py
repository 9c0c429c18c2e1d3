"""A server's HTTP/2 connection (RFC 9113) without I/O: bytes in, events out; calls in, bytes out.

It knows frames, streams, windows, settings and every limit of a connection. It refuses to know sockets, time
(but for a clock that is passed in, for floods alone), and what is carried: it never looks into DATA.

Rule 1. A peer that breaks the protocol hears GOAWAY with the code that the RFC names, and nothing more is
        read; where the fault is one stream's alone, it hears RST_STREAM and the connection goes on.

Rule 2. Streams live by the table `NEXT_STATE` below. A pair that is not in it is a mistake of our own. A
        stream that is not in `Connection.streams` is idle, or closed. Frames on it are answered so:

        | stream            | DATA           | HEADERS        | RST_STREAM     | WINDOW_UPDATE  | PRIORITY |
        |-------------------|----------------|----------------|----------------|----------------|----------|
        | idle              | PROTOCOL_ERROR | opens it       | PROTOCOL_ERROR | PROTOCOL_ERROR | ignored  |
        | ended             | STREAM_CLOSED  | STREAM_CLOSED  | ignored        | ignored        | ignored  |
        | reset by the peer | STREAM_CLOSED  | STREAM_CLOSED  | ignored        | ignored        | ignored  |
        | reset by us       | ignored        | ignored        | ignored        | ignored        | ignored  |
        | forgotten         | ignored        | ignored        | ignored        | ignored        | ignored  |
        | skipped           | STREAM_CLOSED  | PROTOCOL_ERROR | ignored        | ignored        | ignored  |
        | after last GOAWAY | ignored        | ignored        | ignored        | ignored        | ignored  |

        All of these are connection errors. What we have reset may have frames under way, so they are ignored.
        Only so many closed streams are remembered. One that is forgotten is treated as if we had reset it:
        a good peer that is slow must not lose its connection, and a bad one gains nothing by it.

Rule 3. Every header block is decoded, whatever becomes of its stream, because the next one builds on it.

Rule 4. The connection's receive window is given back as DATA comes, padding and what is ignored included, so
        that a stream that is not read stalls itself alone. A stream's window is given back by `give_back`
        alone, but for padding, which nobody above hears of.

Rule 5. A stream's send window is kept as the difference to the peer's initial window, and may be negative.
        So a SETTINGS that moves the windows of all streams costs the same however many there are.

Rule 6. What a peer could do without end takes a token of a bucket; an empty one is ENHANCE_YOUR_CALM.
        Resets have one bucket, whoever sent them: the peer before our END_STREAM, we for a fault of the
        peer's, or the layer above; but NO_ERROR is free, it only follows a whole response.
        Frames that carry nothing have another: SETTINGS and their acknowledgements, PRIORITY, empty DATA and
        CONTINUATION, GOAWAY, unknown frames, answers to no PING, and RST_STREAM on streams that are long
        closed. A WINDOW_UPDATE takes a token only where they are more than `UPDATES_PER_FRAME` for each
        request and each frame that we sent: clients that enlarge the window of every call, or give it back
        with every message, are legal. PINGs have a rule of their own, `floods.PingGuard`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog

from cellstream.settings import Settings
from cellstream.transport import frames
from cellstream.transport.floods import PingGuard, TokenBucket
from cellstream.transport.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    STREAM_ID_MAX,
    WINDOW_BYTES_INITIAL,
    WINDOW_BYTES_MAX,
    Code,
    Kind,
    Setting,
)
from cellstream.transport.headers import BlockError, HeaderDecoder, Headers, Request

log = structlog.get_logger(__name__)


class State(enum.Enum):
    """Where a stream stands (section 5.1). Idle streams have no object."""

    OPEN = "open"
    HALF_CLOSED_REMOTE = "half-closed (remote)"
    """The peer has sent END_STREAM."""
    HALF_CLOSED_LOCAL = "half-closed (local)"
    """We have sent END_STREAM."""
    CLOSED = "closed"


class Move(enum.Enum):
    """What changes a stream's state."""

    RECEIVE_END = "END_STREAM received"
    SEND_END = "END_STREAM sent"
    RESET = "RST_STREAM sent or received"


NEXT_STATE = {
    (State.OPEN, Move.RECEIVE_END): State.HALF_CLOSED_REMOTE,
    (State.OPEN, Move.SEND_END): State.HALF_CLOSED_LOCAL,
    (State.OPEN, Move.RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Move.SEND_END): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Move.RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Move.RECEIVE_END): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Move.RESET): State.CLOSED,
}
"""HEADERS make a stream that is OPEN; END_STREAM on them is a move of its own."""


class Closed(enum.Enum):
    """Why a stream that is not idle has no object: the rows of Rule 2."""

    ENDED = "ended"
    RESET_BY_PEER = "reset by the peer"
    RESET_BY_US = "reset by us"
    FORGOTTEN = "forgotten"
    SKIPPED = "skipped"
    IGNORED = "after last GOAWAY"


CLOSED_REMEMBERED_MIN = 128
"""How many closed streams are remembered at least, and twice as many at most. It only has to cover faults of
peers that mistake a stream that has just ended, and a number takes about 100 bytes."""

CONNECTION_WINDOW_BYTES = 16 << 20
"""The connection's receive window. What arrives is handed on at once, so it bounds no memory, and only must
not be what limits a fast and distant client: 16 MiB are 1.3 Gbit/s at 100 ms."""

_CONNECTION_WINDOW_LOW = CONNECTION_WINDOW_BYTES // 2
"""At this rest the window is filled up again: one WINDOW_UPDATE for each 8 MiB."""

SETTINGS_ENTRIES_MAX = 32
"""Entries of one SETTINGS; nghttp2's bound. Eight are defined."""

UPDATES_PER_FRAME = 8
"""WINDOW_UPDATEs that are free for each request, and for each frame that we send. gRPC's C core sends two."""

BLOCK_BYTES_PER_UNIT = 64
"""Bytes of a header block, or of the list it decodes to, that cost as much as a frame in a turn's budget; any
part of them counts. hpack takes 5 to 8 microseconds for so many bytes, as a frame and its message do."""


class Stream:
    """One stream.

    Attributes:
        id: Its number.
        owner: Whatever the layer above keeps for it (its call); None at first.
        receive_ended: Whether the peer has sent END_STREAM.
        send_ended: Whether we have.
        closed: Whether nothing more may be sent or will come (both ended, or reset by either side, or the
            connection failed).
        state: The same three in one word.
        credit_bytes: How much larger its send window is than the peer's initial window (Connection's own).
        held_bytes: What the peer has sent and we have not given back (Connection's own).
        owed_bytes: The part of `held_bytes` that will be given back with the next WINDOW_UPDATE.
        content_left_bytes: What is to come by its `content-length`; None: it had none.
    """

    __slots__ = (
        "closed",
        "content_left_bytes",
        "credit_bytes",
        "held_bytes",
        "id",
        "owed_bytes",
        "owner",
        "receive_ended",
        "send_ended",
        "state",
    )

    def __init__(self, id: int, content_bytes: int | None = None) -> None:
        self.id = id
        self.owner: Any = None
        self.receive_ended = False
        self.send_ended = False
        self.closed = False
        self.state = State.OPEN
        self.credit_bytes = 0
        self.held_bytes = 0
        self.owed_bytes = 0
        self.content_left_bytes = content_bytes

    def __repr__(self) -> str:
        return f"<Stream {self.id}: {self.state.value}>"

    def move(self, move: Move) -> None:
        """Change the state as `NEXT_STATE` says."""
        self.state = state = NEXT_STATE[self.state, move]
        self.closed = state is State.CLOSED
        if move is Move.RECEIVE_END:
            self.receive_ended = True
        elif move is Move.SEND_END:
            self.send_ended = True


@dataclass(slots=True)
class RequestReceived:
    """A stream began.

    Attributes:
        stream: The new stream.
        headers: In order, as raw bytes; not to be changed.
        ended: Whether the peer has ended it already.
        too_large: The list was beyond `header_list_bytes_max`, `headers` is empty, and the stream is to be
            refused with a status.
    """

    stream: Stream
    headers: Headers
    ended: bool
    too_large: bool = False


@dataclass(slots=True)
class DataReceived:
    """Data of a stream, without padding, which has been given back already.

    `data` counts against the stream's receive window until `give_back`. The connection's window is
    replenished by the Connection.
    """

    stream: Stream
    data: bytes
    ended: bool


@dataclass(slots=True)
class TrailersReceived:
    """A request's trailers: the peer has ended the stream."""

    stream: Stream


@dataclass(slots=True)
class StreamReset:
    """A stream ended early: the peer reset it, or we did for a fault of the peer's."""

    stream: Stream
    code: int
    by_peer: bool


@dataclass(slots=True)
class WindowOpened:
    """There may be room to send again.

    Attributes:
        stream: The one whose window opened; None: the connection's did, or those of all streams.
        is_initial: Whether SETTINGS opened the windows of all streams.
    """

    stream: Stream | None
    is_initial: bool = False


@dataclass(slots=True)
class PingAcknowledged:
    """The peer answered our PING."""

    data: bytes


@dataclass(slots=True)
class ConnectionFailed:
    """A connection error: GOAWAY is in the output, nothing more will be read, and all streams are closed.

    Attributes:
        code: The code of the GOAWAY.
        message: For our log; it never quotes what the peer sent.
    """

    code: int
    message: str


Event = (
    RequestReceived
    | DataReceived
    | TrailersReceived
    | StreamReset
    | WindowOpened
    | PingAcknowledged
    | ConnectionFailed
)


class _Fault(Exception):
    """A connection error on its way to `Connection.events`."""

    def __init__(self, code: Code, message: str, debug: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.debug = debug


class _ClosedStreams:
    """Remembers how the latest streams closed."""

    __slots__ = ("_forgotten_id_max", "_how")

    def __init__(self) -> None:
        self._how: dict[int, Closed] = {}
        self._forgotten_id_max = 0

    def add(self, stream_id: int, how: Closed) -> None:
        """Remember how a stream closed, and forget the older half if they are too many."""
        self._how[stream_id] = how
        if len(self._how) > 2 * CLOSED_REMEMBERED_MIN:
            oldest = list(islice(self._how, CLOSED_REMEMBERED_MIN))
            self._forgotten_id_max = max(self._forgotten_id_max, *oldest)
            for forgotten in oldest:
                del self._how[forgotten]

    def get(self, stream_id: int) -> Closed:
        """Return how a stream closed that is neither idle nor open."""
        how = self._how.get(stream_id)
        if how is not None:
            return how
        return Closed.FORGOTTEN if stream_id <= self._forgotten_id_max else Closed.SKIPPED


class _PartialBlock:
    """A header block whose CONTINUATION frames are still to come."""

    __slots__ = ("continuations", "ended", "pieces", "self_dependent", "size", "stream_id")

    def __init__(self, stream_id: int, piece: bytes, *, ended: bool, self_dependent: bool) -> None:
        self.stream_id = stream_id
        self.pieces = [piece]
        self.size = len(piece)
        self.continuations = 0
        self.ended = ended
        self.self_dependent = self_dependent


class Connection:
    """A server's side of one connection. Its SETTINGS are in the output from the start.

    Args:
        settings: The limits.
        clock: Seconds, monotonic; for token buckets and PING strikes alone.

    Attributes:
        streams: Open and half-closed streams, by number; after a connection error those that it closed.
        spent: What the last call of `events` cost, in units of its budget.
        failed: Whether a connection error ended it. From then on calls that send do nothing.
        preface_received: Whether the peer's preface and first SETTINGS have come.
        peer_header_list_bytes_max: The peer's MAX_HEADER_LIST_SIZE; None: it did not say.
        output_bytes: How many bytes `take_output` would return.
    """

    __slots__ = (
        "_block",
        "_clock",
        "_closed",
        "_continuations_max",
        "_control",
        "_credit_bytes_max",
        "_decoder",
        "_events",
        "_frames_sent",
        "_greeted",
        "_header_block_bytes_max",
        "_input",
        "_last_accepted",
        "_last_stream_id",
        "_output",
        "_overdrawn",
        "_ping_guard",
        "_pings_unanswered",
        "_receive_left",
        "_requests",
        "_resets",
        "_send_left",
        "_size_update_due",
        "_stream_held_max",
        "_stream_send_initial",
        "_stream_window_bytes",
        "_streams_max",
        "_table",
        "_updates",
        "failed",
        "output_bytes",
        "peer_header_list_bytes_max",
        "preface_received",
        "spent",
        "streams",
    )

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.streams: dict[int, Stream] = {}
        self.spent = 0
        self.failed = False
        self.preface_received = False
        self.peer_header_list_bytes_max: int | None = None
        self.output_bytes = 0

        self._clock = clock
        self._input = b""
        self._greeted = False  # whether the preface's 24 bytes have come
        self._table = _FIRST_FRAME
        self._events: list[Any] = _NO_EVENTS
        self._output: list[bytes] = []

        self._closed = _ClosedStreams()
        self._last_stream_id = 0
        self._last_accepted: int | None = None  # the stream that our last GOAWAY named
        self._streams_max = settings.connection_streams_max

        self._decoder = HeaderDecoder(settings.header_list_bytes_max)
        self._block: _PartialBlock | None = None
        self._header_block_bytes_max = settings.header_block_bytes_max
        self._continuations_max = settings.continuations_max
        self._size_update_due = True

        self._stream_window_bytes = settings.stream_window_bytes
        # Until it has read our SETTINGS the peer may fill the window that every stream has by default.
        self._stream_held_max = max(settings.stream_window_bytes, WINDOW_BYTES_INITIAL)
        self._receive_left = CONNECTION_WINDOW_BYTES
        self._send_left = WINDOW_BYTES_INITIAL
        self._stream_send_initial = WINDOW_BYTES_INITIAL
        self._credit_bytes_max = 0  # no stream's credit is above it

        now = clock()
        self._resets = TokenBucket(settings.resets_burst, settings.resets_per_second, now)
        self._control = TokenBucket(settings.control_frames_burst, settings.control_frames_per_second, now)
        self._overdrawn = False  # whether our own resets emptied their bucket
        self._ping_guard = PingGuard(settings.ping_seconds_min, settings.ping_strikes_max)
        self._pings_unanswered = 0
        self._frames_sent = 0  # HEADERS and DATA
        self._requests = 0
        self._updates = 0  # WINDOW_UPDATEs received

        self._send(
            frames.settings_frame(
                {
                    Setting.MAX_CONCURRENT_STREAMS: settings.connection_streams_max,
                    Setting.INITIAL_WINDOW_SIZE: settings.stream_window_bytes,
                    Setting.MAX_HEADER_LIST_SIZE: settings.header_list_bytes_max,
                }
            )
            + frames.window_update(0, CONNECTION_WINDOW_BYTES - WINDOW_BYTES_INITIAL)
        )

    def __repr__(self) -> str:
        state = "failed" if self.failed else "open" if self.preface_received else "new"
        return f"<Connection: {state}, {len(self.streams)} streams, {self.output_bytes} bytes to send>"

    # ---------------------------------------------------------------- bytes in

    @property
    def has_input(self) -> bool:
        """Whether a whole frame that was received waits for `events`."""
        data = self._input
        start = 0 if self._greeted else len(PREFACE)
        if len(data) < start + FRAME_HEADER_BYTES:
            return False
        length = int.from_bytes(data[start : start + 3], "big")
        # The header of a frame that is too long is enough: `events` ends the connection for it.
        return length > FRAME_BYTES_MAX or len(data) >= start + FRAME_HEADER_BYTES + length

    def receive(self, data: bytes) -> None:
        """Take bytes from the socket. Parses nothing."""
        if not self.failed:
            self._input = self._input + data if self._input else data

    def events(self, budget: int) -> list[Any]:
        """Parse frames until the input or `budget` is spent, and return what they say.

        A frame costs one unit, and one more for each 64 bytes of a header block or of the list in it.
        """
        self.spent = 0
        if self.failed:
            return []
        events: list[Any] = []
        self._events = events
        try:
            if self._greeted or self._read_preface():
                self._read_frames(budget)
        except (_Fault, BlockError) as fault:
            self._fail(fault.code, fault.message, getattr(fault, "debug", b""))
        self._events = _NO_EVENTS  # an idle connection holds no data
        return events

    def _read_preface(self) -> bool:
        """Read the preface as far as it has come, and return whether it has come whole."""
        start = self._input[: len(PREFACE)]
        if not PREFACE.startswith(start):
            raise _Fault(Code.PROTOCOL_ERROR, "not the preface of HTTP/2")
        if len(start) < len(PREFACE):
            return False
        self._input = self._input[len(PREFACE) :]
        self._greeted = True
        return True

    def _read_frames(self, budget: int) -> None:
        data = self._input
        end = len(data)
        at = spent = 0
        while spent < budget and end - at >= FRAME_HEADER_BYTES:
            length, flags, stream_id = FRAME_HEADER.unpack_from(data, at)
            kind = length & 0xFF
            length >>= 8
            if length > FRAME_BYTES_MAX:
                raise _Fault(Code.FRAME_SIZE_ERROR, "a frame longer than 16,384 bytes")
            start = at + FRAME_HEADER_BYTES
            stop = start + length
            if stop > end:
                break
            spent += 1 + self._table[kind](self, flags, stream_id & STREAM_ID_MAX, data, start, stop)
            at = stop
        self.spent = spent
        if at:
            self._input = data[at:]

    # ---------------------------------------------------------------- frames; each returns its cost beyond 1

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        size = stop - start
        left = self._receive_left - size
        if left < _CONNECTION_WINDOW_LOW:  # so it never is used up: a frame has far less than is left
            left = self._replenish(left)
        self._receive_left = left

        stream = self.streams.get(stream_id)
        if stream is None:
            self._data_without_stream(stream_id)
            return 0
        if stream.receive_ended:
            self._stream_error(stream, Code.STREAM_CLOSED)
            return 0
        held = stream.held_bytes + size
        if held > self._stream_held_max and size:
            self._stream_error(stream, Code.FLOW_CONTROL_ERROR)
            return 0
        stream.held_bytes = held
        if flags & PADDED:
            start, stop = self._unpad(data, start, stop)
            self.give_back(stream, size - (stop - start))
        chunk = data[start:stop]
        ended = flags & END_STREAM == 1
        if stream.content_left_bytes is not None and not self._content_fits(stream, len(chunk), ended):
            return 0
        if ended:
            self._move(stream, Move.RECEIVE_END)
        elif not chunk:
            self._take_control("empty DATA")
            return 0
        self._events.append(DataReceived(stream, chunk, ended))
        return 0

    def _replenish(self, left: int) -> int:
        """Fill the connection's receive window up, and return what is left of it then."""
        self._send(frames.window_update(0, CONNECTION_WINDOW_BYTES - left))
        return CONNECTION_WINDOW_BYTES

    def _data_without_stream(self, stream_id: int) -> None:
        if self._is_idle(stream_id):
            raise _Fault(Code.PROTOCOL_ERROR, "DATA on an idle stream")
        if self._how_closed(stream_id) in (Closed.ENDED, Closed.RESET_BY_PEER, Closed.SKIPPED):
            raise _Fault(Code.STREAM_CLOSED, "DATA on a closed stream")

    @staticmethod
    def _unpad(data: bytes, start: int, stop: int) -> tuple[int, int]:
        """Return where a padded frame's content is."""
        if start == stop:
            raise _Fault(Code.FRAME_SIZE_ERROR, "a padded frame without a pad length")
        content_stop = stop - data[start]
        if content_stop <= start:
            raise _Fault(Code.PROTOCOL_ERROR, "padding longer than its frame")
        return start + 1, content_stop

    def _content_fits(self, stream: Stream, size: int, ended: bool) -> bool:
        """Count content against the request's `content-length`; return False if it was a stream error."""
        left = (stream.content_left_bytes or 0) - size
        stream.content_left_bytes = left
        if left < 0 or (ended and left):
            self._stream_error(stream, Code.PROTOCOL_ERROR)
            return False
        return True

    def _on_headers(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        if not stream_id & 1:
            raise _Fault(Code.PROTOCOL_ERROR, "HEADERS on a stream that a client cannot open")
        if flags & PADDED:
            start, stop = self._unpad(data, start, stop)
        self_dependent = False
        if flags & PRIORITY_FLAG:
            # Padding that reaches into these bytes is as wrong as a frame that is too short for them.
            if stop - start < 5:
                code = Code.PROTOCOL_ERROR if flags & PADDED else Code.FRAME_SIZE_ERROR
                raise _Fault(code, "HEADERS too short for their priority")
            self_dependent = _depends_on(data, start) == stream_id
            start += 5
        block = data[start:stop]
        ended = flags & END_STREAM == 1
        if flags & END_HEADERS:
            return self._on_block(stream_id, block, ended, self_dependent)
        self._block = _PartialBlock(stream_id, block, ended=ended, self_dependent=self_dependent)
        self._table = _CONTINUATION_ONLY
        return 0

    def _on_continuation(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        block = self._block
        assert block is not None, "only the table of unfinished blocks leads here"
        if stream_id != block.stream_id:
            raise _Fault(Code.PROTOCOL_ERROR, "CONTINUATION of another stream's block")
        block.continuations += 1
        block.size += stop - start
        if block.continuations > self._continuations_max or block.size > self._header_block_bytes_max:
            raise _Fault(Code.ENHANCE_YOUR_CALM, "a header block in too many frames, or too long")
        if start == stop:
            self._take_control("empty CONTINUATION")
        block.pieces.append(data[start:stop])
        if not flags & END_HEADERS:
            return 0
        self._block = None
        self._table = _ANY_FRAME
        return self._on_block(stream_id, b"".join(block.pieces), block.ended, block.self_dependent)

    def _on_block(self, stream_id: int, block: bytes, ended: bool, self_dependent: bool) -> int:
        """Take a whole header block: a request, trailers, or one that is only decoded."""
        if len(block) > self._header_block_bytes_max:
            raise _Fault(Code.ENHANCE_YOUR_CALM, "a header block in too many frames, or too long")
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, block, ended, self_dependent)
        elif stream_id > self._last_stream_id:
            self._on_request(stream_id, block, ended, self_dependent)
        else:
            self._block_without_stream(stream_id, block)
        list_bytes = self._decoder.list_bytes  # 0 for a block that was known: nothing was decoded
        return -(-max(len(block), list_bytes) // BLOCK_BYTES_PER_UNIT) if list_bytes else 0

    def _on_request(self, stream_id: int, block: bytes, ended: bool, self_dependent: bool) -> None:
        self._last_stream_id = stream_id
        request = self._decoder.request(block)
        if self._last_accepted is not None:
            return
        if self._overdrawn:
            self._overdrawn = False
            self._take_reset()
        if len(self.streams) >= self._streams_max:
            self._refuse(stream_id, Code.REFUSED_STREAM)
        elif self_dependent or request.fault is not None or (ended and request.content_bytes):
            log.debug("request_malformed", why=request.fault or "its priority or its content-length")
            self._refuse(stream_id, Code.PROTOCOL_ERROR)
        else:
            self._open(stream_id, request, ended)

    def _open(self, stream_id: int, request: Request, ended: bool) -> None:
        self._requests += 1
        self.streams[stream_id] = stream = Stream(stream_id, request.content_bytes)
        if ended:
            self._move(stream, Move.RECEIVE_END)
        self._events.append(RequestReceived(stream, request.headers, ended, request.too_large))

    def _refuse(self, stream_id: int, code: Code) -> None:
        """Reset a stream that the layer above never hears of."""
        self._closed.add(stream_id, Closed.RESET_BY_US)
        self._send(frames.rst_stream(stream_id, code))
        self._take_reset()

    def _on_trailers(self, stream: Stream, block: bytes, ended: bool, self_dependent: bool) -> None:
        fault = self._decoder.trailers_fault(block)
        if stream.receive_ended:
            self._stream_error(stream, Code.STREAM_CLOSED)
        elif fault is not None or not ended or self_dependent or stream.content_left_bytes:
            self._stream_error(stream, Code.PROTOCOL_ERROR)
        else:
            self._move(stream, Move.RECEIVE_END)
            self._events.append(TrailersReceived(stream))

    def _block_without_stream(self, stream_id: int, block: bytes) -> None:
        how = self._how_closed(stream_id)
        if how in (Closed.ENDED, Closed.RESET_BY_PEER):
            raise _Fault(Code.STREAM_CLOSED, "HEADERS on a closed stream")
        if how is Closed.SKIPPED:
            raise _Fault(Code.PROTOCOL_ERROR, "a new stream below an earlier one")
        self._decoder.skip(block)

    def _on_priority(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        """Ignore a priority (RFC 9113 deprecates them), but for its faults."""
        if stream_id == 0:
            raise _Fault(Code.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._take_control("PRIORITY")
        if stop - start != 5:
            self._priority_error(stream_id, Code.FRAME_SIZE_ERROR)
        elif _depends_on(data, start) == stream_id:
            self._priority_error(stream_id, Code.PROTOCOL_ERROR)
        return 0

    def _priority_error(self, stream_id: int, code: Code) -> None:
        """Answer a bad PRIORITY. An idle stream cannot be reset, so its error is the connection's."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._stream_error(stream, code)
        elif self._is_idle(stream_id):
            raise _Fault(code, "a PRIORITY that is malformed, or names its own stream")

    def _on_rst_stream(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        if self._is_idle(stream_id):
            raise _Fault(Code.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        if stop - start != 4:
            raise _Fault(Code.FRAME_SIZE_ERROR, "RST_STREAM that is not 4 bytes long")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._reset_without_stream(stream_id)
            return 0
        premature = not stream.send_ended
        self._close_by_reset(stream, Closed.RESET_BY_PEER)
        self._events.append(StreamReset(stream, frames.NUMBER.unpack_from(data, start)[0], by_peer=True))
        if premature:
            self._take_reset()
        return 0

    def _reset_without_stream(self, stream_id: int) -> None:
        """Ignore a reset that crossed our end of the stream; count it if it cannot have."""
        if self._how_closed(stream_id) in (Closed.ENDED, Closed.RESET_BY_US):
            self._closed.add(stream_id, Closed.RESET_BY_PEER)
        else:
            self._take_control("RST_STREAM on closed streams")

    def _on_first_settings(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        if flags & ACK:
            raise _Fault(Code.PROTOCOL_ERROR, "an acknowledgement before any SETTINGS")
        cost = self._on_settings(flags, stream_id, data, start, stop)
        self._table = _ANY_FRAME
        self.preface_received = True
        return cost

    def _on_settings(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        size = stop - start
        if stream_id:
            raise _Fault(Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        if size % frames.SETTINGS_ENTRY.size or (flags & ACK and size):
            raise _Fault(Code.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        self._take_control("SETTINGS")
        if flags & ACK:
            self._stream_held_max = self._stream_window_bytes
            return 0
        if size > SETTINGS_ENTRIES_MAX * frames.SETTINGS_ENTRY.size:
            raise _Fault(Code.ENHANCE_YOUR_CALM, "too many entries in one SETTINGS")
        for number, value in frames.SETTINGS_ENTRY.iter_unpack(data[start:stop]):
            self._apply_setting(number, value)
        self._size_update_due = True
        self._send(frames.SETTINGS_ACK)
        return 0

    def _apply_setting(self, number: int, value: int) -> None:
        """Take a value of the peer's. HEADER_TABLE_SIZE does not matter: our blocks use no table."""
        if number == Setting.INITIAL_WINDOW_SIZE:
            self._set_send_initial(value)
        elif number == Setting.MAX_HEADER_LIST_SIZE:
            self.peer_header_list_bytes_max = value
        elif number == Setting.ENABLE_PUSH:
            if value > 1:
                raise _Fault(Code.PROTOCOL_ERROR, "ENABLE_PUSH that is neither 0 nor 1")
        elif number == Setting.MAX_FRAME_SIZE and not FRAME_BYTES_MAX <= value < 1 << 24:
            raise _Fault(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")

    def _set_send_initial(self, value: int) -> None:
        """Set the send window that all streams are relative to."""
        if value > WINDOW_BYTES_MAX:
            raise _Fault(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE out of range")
        if value + self._credit_bytes_max > WINDOW_BYTES_MAX:
            # The bound is not exact, as streams close. Looking at all streams makes it so; it can only be too
            # high again after a further stream has been enlarged and closed.
            self._credit_bytes_max = max((s.credit_bytes for s in self.streams.values()), default=0)
            if value + self._credit_bytes_max > WINDOW_BYTES_MAX:
                raise _Fault(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window too large")
        if value > self._stream_send_initial:
            self._events.append(WindowOpened(None, is_initial=True))
        self._stream_send_initial = value

    def _on_push_promise(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        raise _Fault(Code.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_ping(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        if stream_id:
            raise _Fault(Code.PROTOCOL_ERROR, "PING on a stream")
        if stop - start != frames.PING_BYTES:
            raise _Fault(Code.FRAME_SIZE_ERROR, "PING that is not 8 bytes long")
        if flags & ACK:
            self._on_ping_answer(data[start:stop])
        elif self._ping_guard.allows(self._clock(), self._frames_sent):
            self._send(frames.ping_frame(data[start:stop], answer=True))
        else:
            # The words are gRPC's: its clients double their keepalive interval when they read them.
            raise _Fault(Code.ENHANCE_YOUR_CALM, "too many PINGs", b"too_many_pings")
        return 0

    def _on_ping_answer(self, data: bytes) -> None:
        if self._pings_unanswered:
            self._pings_unanswered -= 1
            self._events.append(PingAcknowledged(data))
        else:
            self._take_control("answers to no PING")

    def _on_goaway(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        if stream_id:
            raise _Fault(Code.PROTOCOL_ERROR, "GOAWAY on a stream")
        if stop - start < 8:
            raise _Fault(Code.FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")
        self._take_control("GOAWAY")  # and that is all: the peer opens no further stream, open ones go on
        return 0

    def _on_window_update(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        if stop - start != 4:
            raise _Fault(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE that is not 4 bytes long")
        size = frames.NUMBER.unpack_from(data, start)[0] & WINDOW_BYTES_MAX
        self._updates += 1
        if self._updates > UPDATES_PER_FRAME * (self._frames_sent + self._requests):
            self._take_control("WINDOW_UPDATE")
        if stream_id == 0:
            self._open_connection_window(size)
            return 0
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._open_stream_window(stream, size)
        elif self._is_idle(stream_id):
            raise _Fault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        return 0

    def _open_connection_window(self, size: int) -> None:
        if size == 0:
            raise _Fault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        self._send_left += size
        if self._send_left > WINDOW_BYTES_MAX:
            raise _Fault(Code.FLOW_CONTROL_ERROR, "the connection's window became too large")
        self._events.append(WindowOpened(None))

    def _open_stream_window(self, stream: Stream, size: int) -> None:
        credit = stream.credit_bytes + size
        if size == 0:
            self._stream_error(stream, Code.PROTOCOL_ERROR)
        elif self._stream_send_initial + credit > WINDOW_BYTES_MAX:
            self._stream_error(stream, Code.FLOW_CONTROL_ERROR)
        else:
            stream.credit_bytes = credit
            if credit > self._credit_bytes_max:
                self._credit_bytes_max = credit
            if not stream.send_ended:
                self._events.append(WindowOpened(stream))

    def _on_unknown(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        """Ignore a frame of a kind that we do not know (section 4.1)."""
        self._take_control("unknown frames")
        return 0

    def _on_stray_continuation(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        raise _Fault(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")

    def _on_not_continuation(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        raise _Fault(Code.PROTOCOL_ERROR, "another frame inside a header block")

    def _on_not_settings(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> int:
        raise _Fault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    # ---------------------------------------------------------------- streams, faults and floods

    def _is_idle(self, stream_id: int) -> bool:
        """Whether a stream was never opened; 0 and the server's even numbers never are."""
        return stream_id > self._last_stream_id or not stream_id & 1

    def _how_closed(self, stream_id: int) -> Closed:
        """Return which row of Rule 2 a stream is in that is neither idle nor open."""
        if self._last_accepted is not None and stream_id > self._last_accepted:
            return Closed.IGNORED
        return self._closed.get(stream_id)

    def _move(self, stream: Stream, move: Move) -> None:
        """Move a stream on by END_STREAM of either side."""
        stream.move(move)
        if stream.closed:
            del self.streams[stream.id]
            self._closed.add(stream.id, Closed.ENDED)

    def _close_by_reset(self, stream: Stream, how: Closed) -> None:
        stream.move(Move.RESET)
        del self.streams[stream.id]
        self._closed.add(stream.id, how)

    def _stream_error(self, stream: Stream, code: Code) -> None:
        """End a stream for a fault of the peer's."""
        self._close_by_reset(stream, Closed.RESET_BY_US)
        self._send(frames.rst_stream(stream.id, code))
        self._events.append(StreamReset(stream, code, by_peer=False))
        self._take_reset()

    def _fail(self, code: Code, message: str, debug: bytes) -> None:
        """End the connection for a fault of the peer's."""
        self._send(frames.goaway(self._goaway_stream_id(), code, debug))
        self.failed = True
        self._input = b""
        self._block = None
        for stream in self.streams.values():
            stream.move(Move.RESET)
        self._events.append(ConnectionFailed(code, message))

    def _take_reset(self) -> None:
        if not self._resets.take(self._clock()):
            raise _Fault(Code.ENHANCE_YOUR_CALM, "too many streams were reset")

    def _take_control(self, what: str) -> None:
        if not self._control.take(self._clock()):
            raise _Fault(Code.ENHANCE_YOUR_CALM, f"too many frames without content, at last {what}")

    # ---------------------------------------------------------------- calls in

    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Send a prepared header block, split into CONTINUATION if long; nothing if the stream is closed.

        The block uses no dynamic table. The Connection puts a table size update of 0 before the first block,
        and before the first after each SETTINGS of the peer.
        """
        if stream.closed:
            return
        assert not stream.send_ended, "HEADERS after END_STREAM"
        if self._size_update_due:
            block = _TABLE_SIZE_0 + block
            self._size_update_due = False
        self._send(frames.header_frames(stream.id, block, end=end))
        self._frames_sent += 1
        if end:
            self._move(stream, Move.SEND_END)

    @property
    def connection_room(self) -> int:
        """How many bytes of data the connection's window has room for, whatever the streams' have."""
        return self._send_left

    def room(self, stream: Stream) -> int:
        """How many bytes of data may be sent on the stream now; 0 or less: none."""
        room = self._stream_send_initial + stream.credit_bytes
        left = self._send_left
        return room if room < left else left

    def send_data(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Send one DATA frame, at most `room(stream)` and `FRAME_BYTES_MAX` bytes; nothing if closed.

        Frames of 16,384 bytes are the least that a peer's MAX_FRAME_SIZE can ask for.
        """
        if stream.closed:
            return
        size = len(data)
        left = self._send_left - size
        credit = stream.credit_bytes - size
        assert not stream.send_ended, "DATA after END_STREAM"
        assert size <= FRAME_BYTES_MAX, "DATA longer than a frame"
        assert not size or (left >= 0 and self._stream_send_initial + credit >= 0), "DATA beyond its window"
        self._send_left = left
        stream.credit_bytes = credit
        self._frames_sent += 1
        output = self._output
        output.append(FRAME_HEADER.pack(size << 8, end, stream.id))  # DATA is kind 0, END_STREAM flag 1
        output.append(data)
        self.output_bytes += FRAME_HEADER_BYTES + size
        if end:
            self._move(stream, Move.SEND_END)

    def give_back(self, stream: Stream, size: int) -> None:
        """Let the peer send so many bytes more on the stream; nothing if it is over.

        The WINDOW_UPDATE leaves once half a window is owed, or at once if the peer has used up its window.
        """
        owed = stream.owed_bytes + size
        stream.owed_bytes = owed
        if owed * 2 < self._stream_window_bytes and stream.held_bytes < self._stream_window_bytes:
            return
        if stream.receive_ended or stream.closed or not owed:
            return
        assert owed <= stream.held_bytes, "more was given back than was received"
        stream.held_bytes -= owed
        stream.owed_bytes = 0
        self._send(frames.window_update(stream.id, owed))

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream with RST_STREAM; nothing if it is closed."""
        if stream.closed:
            return
        self._close_by_reset(stream, Closed.RESET_BY_US)
        self._send(frames.rst_stream(stream.id, code))
        if code != Code.NO_ERROR and not self._resets.take(self._clock()):
            # The peer hears of it if it opens another stream before there are tokens again.
            self._overdrawn = True

    def ping(self, data: bytes) -> None:
        """Send PING with 8 bytes."""
        assert len(data) == frames.PING_BYTES
        self._pings_unanswered += 1
        self._send(frames.ping_frame(data))

    def go_away(self, code: int = 0, debug: bytes = b"", *, last: bool = True) -> None:
        """Send GOAWAY.

        Args:
            code: Why.
            debug: For a person at the other end.
            last: Name the true last stream, and ignore those above it from now on (their blocks are still
                decoded). Otherwise it is the first of a graceful shutdown: it names 2^31-1, and new streams
                are still taken.
        """
        if not last:
            self._send(frames.goaway(STREAM_ID_MAX, code, debug))
            return
        self._last_accepted = self._goaway_stream_id()
        self._send(frames.goaway(self._last_accepted, code, debug))

    def _goaway_stream_id(self) -> int:
        """Return the last stream that we deal with; a GOAWAY never names a higher one than before."""
        return self._last_stream_id if self._last_accepted is None else self._last_accepted

    def _send(self, data: bytes) -> None:
        if not self.failed:
            self._output.append(data)
            self.output_bytes += len(data)

    def take_output(self) -> bytes:
        """Return what is to be written, joined, and forget it."""
        output = b"".join(self._output)
        self._output.clear()
        self.output_bytes = 0
        return output


_NO_EVENTS: list[Any] = []
"""What stands for the events while none are collected; nothing is ever put in."""

_TABLE_SIZE_0 = b"\x20"
"""The dynamic table shall have 0 bytes (RFC 7541, section 6.3)."""


def _depends_on(data: bytes, start: int) -> int:
    """Return the stream that a priority names, without its exclusive bit."""
    return int(frames.NUMBER.unpack_from(data, start)[0]) & STREAM_ID_MAX


_Parser = Callable[[Connection, int, int, bytes, int, int], int]
_KINDS = 256


def _parsers(known: dict[Kind, _Parser], otherwise: _Parser) -> tuple[_Parser, ...]:
    """Return what parses each kind of frame, by its number."""
    return tuple(known.get(kind, otherwise) for kind in range(_KINDS))  # type: ignore[call-overload]


_ANY_FRAME = _parsers(
    {
        Kind.DATA: Connection._on_data,
        Kind.HEADERS: Connection._on_headers,
        Kind.PRIORITY: Connection._on_priority,
        Kind.RST_STREAM: Connection._on_rst_stream,
        Kind.SETTINGS: Connection._on_settings,
        Kind.PUSH_PROMISE: Connection._on_push_promise,
        Kind.PING: Connection._on_ping,
        Kind.GOAWAY: Connection._on_goaway,
        Kind.WINDOW_UPDATE: Connection._on_window_update,
        Kind.CONTINUATION: Connection._on_stray_continuation,
    },
    Connection._on_unknown,
)
_FIRST_FRAME = _parsers({Kind.SETTINGS: Connection._on_first_settings}, Connection._on_not_settings)
_CONTINUATION_ONLY = _parsers(
    {Kind.CONTINUATION: Connection._on_continuation}, Connection._on_not_continuation
)
