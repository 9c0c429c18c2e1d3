"""gRPC (PROTOCOL-HTTP2.md) over one HTTP/2 connection: calls in, messages out, without a socket.

It knows how messages lie in DATA frames, when a call begins and ends, and how much of it may be buffered. It
does not know sockets, frames or header compression (`http2.py`), nor what a message means (its handler).

Rules:

1. A handler is made when the first message of its call is whole, or at a half-close without any. Until then
   the call is *unstarted*, which is bounded in time and number.
2. Output is pulled: a call with output stands in a ring, and gets one frame a round. A call without room
   stands aside until its window opens, or the connection's; without progress for `stall_seconds_max` it is
   reset, and its handler hears LOST, because the client gave it up without a word. What a handler has handed
   out and is not sent is counted; beyond the bounds a method with one request is refused before it starts.
3. Bytes of a stream are given back to its window when they are applied (`consumed`); those of an unfinished
   message as they come, within the bounds of `UnfinishedMessages`, or a message larger than the window would
   never be whole. Prefixes and what compression saved are given back at once.
4. Input that cannot be read (too large, badly framed or packed) ends the call, but what came before it is
   answered first: the handler hears a half-close, and the call ends with the error when the handler ends it.
5. A call is closed once, in `_close`: its handler hears why, and nothing of it is called afterwards.

We send gzip only to clients that send it, and only messages of a size where it pays and does not hold the
loop; identity is always legal.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import chain, islice
from math import inf
from typing import Protocol

from cellstream.errors import MessageTooLarge
from cellstream.settings import Settings
from cellstream.transport import frames, grpc_headers, packing
from cellstream.transport.call import Code, Handler, Metadata, Peer, Service, Status, Why
from cellstream.transport.frames import FRAME_BYTES_MAX
from cellstream.transport.grpc_headers import NO_METADATA, Request, read_request
from cellstream.transport.http2 import (
    Connection,
    DataReceived,
    Event,
    RequestReceived,
    Stream,
    StreamReset,
    TrailersReceived,
    WindowOpened,
)

REQUESTS_REMEMBERED_MAX = 32
"""Header lists of a connection that need not be read again; a client has a handful, but for its deadlines."""

REQUEST_REMEMBERED_BYTES_MAX = 1024
"""Bytes of such a list; what clients send by themselves has some 200."""

GZIP_BYTES_MIN = 256
"""Bytes of a message below which gzip saves less than its own 18 bytes and the time are worth."""

GZIP_BYTES_MAX = 64 << 10
"""Bytes of a message beyond which packing would hold the loop: 64 KiB take about a millisecond."""

GIVE_BACK_PART = 8
"""A stream's applied bytes are given back when they are this part of its window: fewer calls, and what is
left of the window is enough to be told."""

UNFINISHED_REFUSED = 2
"""At so many times `buffered_bytes_max`, a call that adds to unfinished messages is refused. Beyond the bound
itself windows are not renewed, but each stream may still fill the one it has."""

UNFINISHED_PART = 2
"""While others wait for buffers, a message has this part of `first_message_seconds` to be whole: less than
all of it, so that a first message that had to wait is still in time."""

ENDS_TURN_MAX = 256
"""Calls that are ended in one go where many end together; the rest follows in later turns, 1 to 2 ms each."""

LOOKS_TURN_MAX = 512
"""Calls without room that one `pull` looks at, about a microsecond each. Against: SETTINGS that open the
windows of all streams by a byte, again and again."""

_PREFIX = struct.Struct(">BI")
_PREFIX_BYTES = 5
_EVENTS_UNTIMED = 8  # after so many cheap events the time is looked at; a power of two
_UNIT_SHIFT = 10  # a unit of a turn's budget is a KiB of what is unpacked


class Timer(Protocol):
    """What a timer can do."""

    def cancel(self) -> None:
        """Forget it."""


CallAt = Callable[[float, Callable[[], None]], Timer]


class UnfinishedMessages:
    """The bytes of messages that are not whole yet, of a connection or of all of them.

    Beyond the bound windows are renewed for the oldest such call alone, which can therefore always finish.
    While others wait, those that may go on have `seconds_max` to finish: else somebody who begins messages
    and leaves them there would keep all others waiting.

    Args:
        bytes_max: The bound.
        seconds_max: The time.
        clock: The event loop's, in seconds.
        call_at: Has something called at a time of that clock.

    Attributes:
        size_bytes: How many bytes there are.
        whole_bytes: Bytes of whole messages that are not applied, beyond their streams' windows; they count
            against the bound too.
    """

    __slots__ = (
        "_bytes_max",
        "_call_at",
        "_calls",
        "_clock",
        "_seconds_max",
        "_timer",
        "_waiting",
        "size_bytes",
        "whole_bytes",
    )

    def __init__(
        self, bytes_max: int, seconds_max: float, clock: Callable[[], float], call_at: CallAt
    ) -> None:
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._clock = clock
        self._call_at = call_at
        self._timer: Timer | None = None
        self._calls: OrderedDict[GrpcCall, None] = OrderedDict()  # whose message began first
        self._waiting: OrderedDict[GrpcCall, None] = OrderedDict()
        self.size_bytes = 0
        self.whole_bytes = 0

    def __repr__(self) -> str:
        return f"<UnfinishedMessages: {self.size_bytes} bytes of {len(self._calls)} calls>"

    def add(self, call: GrpcCall, size: int) -> None:
        """Add so many bytes of a call's message, which begins with them if the call has none yet."""
        if call not in self._calls:
            self._calls[call] = None
            call.message_since = self._clock()
        self.size_bytes += size

    def remove(self, call: GrpcCall, size: int) -> None:
        """Take all bytes of a call's message away; others that waited may go on."""
        self._calls.pop(call, None)
        if call in self._waiting:
            del self._waiting[call]
            call.waits -= 1
        self.size_bytes -= size
        if self._waiting:
            self._let_go_on()

    def change_whole(self, size: int) -> None:
        """Add so many bytes of whole messages, or take them away; then others that waited may go on."""
        self.whole_bytes += size
        if size < 0 and self._waiting:
            self._let_go_on()

    def is_oldest(self, call: GrpcCall) -> bool:
        """Tell whether no other call's message is unfinished for longer."""
        return next(iter(self._calls), None) is call

    def allow(self, call: GrpcCall) -> bool:
        """Tell whether a call's window may be renewed; if not, it is renewed later."""
        if self.size_bytes + self.whole_bytes <= self._bytes_max or self.is_oldest(call):
            return True
        if call not in self._waiting:
            self._waiting[call] = None
            call.waits += 1
        if self._timer is None:
            self._timer = self._call_at(self._clock() + self._seconds_max, self._end_slow)
        return False

    def _let_go_on(self) -> None:
        oldest = next(iter(self._calls), None)
        if oldest is not None and oldest in self._waiting:
            self._resume(oldest)
        granted = 0
        while self._waiting and self.size_bytes + self.whole_bytes + granted <= self._bytes_max:
            granted += self._resume(next(iter(self._waiting)))

    def _resume(self, call: GrpcCall) -> int:
        """Let a call that waited go on, its time beginning anew; return how much more it may send."""
        del self._waiting[call]
        call.waits -= 1
        call.message_since = self._clock()
        return call.renew_window()

    def _end_slow(self) -> None:
        """Refuse the calls that did not finish in time, if others still wait; the rest in later turns."""
        self._timer = None
        if not self._waiting:
            return
        now = self._clock()
        since_max = now - self._seconds_max
        late = (call for call in self._calls if call.message_since <= since_max and not call.waits)
        slow = list(islice(late, ENDS_TURN_MAX))
        for call in slow:
            call.refuse_slow_message()
        if self._waiting and self._timer is None:
            wait_seconds = 0 if len(slow) == ENDS_TURN_MAX else self._seconds_max / 2
            self._timer = self._call_at(now + wait_seconds, self._end_slow)


class Totals:
    """What all connections of a listener share: the service, the clock, and bounds over all of them.

    Args:
        settings: The bounds.
        service: What is served.
        clock: The event loop's, in seconds.
        call_at: Has something called at a time of that clock.
        stopwatch: Seconds that go on while the loop is held, as uvloop's clock does not; None: that clock.

    Attributes:
        calls: How many calls are open.
        unsent_bytes: Of messages that handlers handed out, or a part of each, and that are not sent.
        unfinished: The bytes of unfinished messages.
        unstarted: The calls without a first message and when their time is over, the oldest first.
        on_idle: Called when the last call is over.
    """

    def __init__(
        self,
        settings: Settings,
        service: Service,
        clock: Callable[[], float],
        call_at: CallAt,
        stopwatch: Callable[[], float] | None = None,
    ) -> None:
        self.settings = settings
        self.service = service
        self.clock = clock
        self.stopwatch = stopwatch or clock
        self.call_at = call_at
        self.methods = {path.encode(): method for path, method in service.methods.items()}
        self.calls = 0
        self.unsent_bytes = 0
        self.unfinished = UnfinishedMessages(
            settings.buffered_bytes_max, settings.first_message_seconds / UNFINISHED_PART, clock, call_at
        )
        self.unfinished_refused_bytes = UNFINISHED_REFUSED * settings.buffered_bytes_max
        self.unstarted: OrderedDict[GrpcCall, float] = OrderedDict()
        self.on_idle: Callable[[], None] = _do_nothing
        self._timer: Timer | None = None

    def wait_for_message(self, call: GrpcCall) -> None:
        """Give a call its time for a first message."""
        when = self.clock() + self.settings.first_message_seconds
        self.unstarted[call] = when
        if self._timer is None:
            self._timer = self.call_at(when, self._end_unstarted)

    def make_room(self) -> None:
        """At the bound, end the call that has waited longest for its first message.

        Clients that open calls and say nothing never keep out one that says it at once.
        """
        if len(self.unstarted) >= self.settings.unstarted_calls_max:
            call = next(iter(self.unstarted))
            text = f"the call waited longest of {len(self.unstarted)} for a first message. Send it sooner."
            call.connection.end_unstarted(call, Status(Code.RESOURCE_EXHAUSTED, text))

    def _end_unstarted(self) -> None:
        self._timer = None
        now = self.clock()
        seconds = self.settings.first_message_seconds
        for _ in range(ENDS_TURN_MAX):
            if not self.unstarted:
                return
            call, when = next(iter(self.unstarted.items()))
            if when > now:
                self._timer = self.call_at(when, self._end_unstarted)
                return
            missing = "no message came" if call.first is None else "the client did not half-close"
            text = f"{missing} within {seconds:g} seconds of the call's headers."
            call.connection.end_unstarted(call, Status(Code.DEADLINE_EXCEEDED, text))
        self._timer = self.call_at(now, self._end_unstarted)


def _do_nothing() -> None:
    pass


class GrpcCall:
    """One call; what `call.Call` promises its handler.

    Attributes:
        stream: Its HTTP/2 stream.
        connection: Its connection.
        request: What its headers said.
        handler: What serves it; None before it starts and when it is closed.
        status: How it ends, once its output is sent; None: it goes on.
        input_status: Why its input could not be read, which its end then says; None: all could be read.
        is_over: Whether it is closed.
        is_queued: Whether it stands in its connection's ring, or aside without room.
        has_ended: Whether the client has half-closed, and messages before that are still to be read.
        is_input_over: Whether no further message is taken.
        has_headers_sent: Whether its answer has begun.
        pending: A message of which a part is sent; None: there is none.
        pending_start: How much of it is sent.
        partial: What has come of messages that are not whole, or are not read yet; None: nothing.
        first: The message of a method with one request, until the client half-closes.
        held_bytes: How many bytes of both count as unfinished.
        message_since: Since when the message that these begin may come.
        waits: In how many of `UnfinishedMessages` the call waits for room.
        unreturned_bytes: Received on the stream and not given back to its window.
        unconsumed_bytes: Of whole messages, not applied yet.
        beyond_bytes: How many of these are beyond the stream's window.
        stalled_since: Since when there is output and no room; None: that is not so.
    """

    __slots__ = (
        "beyond_bytes",
        "connection",
        "deadline",
        "first",
        "handler",
        "has_ended",
        "has_headers_sent",
        "held_bytes",
        "input_status",
        "is_input_over",
        "is_over",
        "is_queued",
        "message_since",
        "metadata",
        "partial",
        "peer",
        "pending",
        "pending_start",
        "request",
        "stalled_since",
        "status",
        "stream",
        "timer",
        "unconsumed_bytes",
        "unreturned_bytes",
        "waits",
    )

    def __init__(self, connection: GrpcConnection, stream: Stream, request: Request) -> None:
        self.connection = connection
        self.stream = stream
        self.request = request
        self.metadata: Metadata = request.metadata
        self.deadline: float | None = None
        self.peer = connection.peer
        self.handler: Handler | None = None
        self.status: Status | None = None
        self.input_status: Status | None = None
        self.is_over = False
        self.is_queued = False
        self.has_ended = False
        self.is_input_over = False
        self.has_headers_sent = False
        self.pending: bytes | None = None
        self.pending_start = 0
        self.partial: bytearray | None = None
        self.first: bytes | None = None
        self.held_bytes = 0
        self.message_since = 0.0
        self.waits = 0
        self.unreturned_bytes = 0
        self.unconsumed_bytes = 0
        self.beyond_bytes = 0
        self.stalled_since: float | None = None
        self.timer: Timer | None = None

    def __repr__(self) -> str:
        state = "over" if self.is_over else "unstarted" if self.handler is None else "open"
        return f"<GrpcCall on stream {self.stream.id}: {state}>"

    def ready(self) -> None:
        """See `call.Call`."""
        if not (self.is_queued or self.is_over):
            self.is_queued = True
            self.connection.queue(self)

    def consumed(self, size: int) -> None:
        """See `call.Call`."""
        unconsumed = self.unconsumed_bytes = max(0, self.unconsumed_bytes - size)
        if self.beyond_bytes:
            self.connection.count_beyond(self)
        if self.unreturned_bytes - unconsumed >= self.connection.give_back_bytes and not self.is_over:
            self.connection.renew_window(self)

    def end(self, status: Status) -> None:
        """See `call.Call`."""
        if self.status is None and not self.is_over:
            self.status = status
            self.connection.end_input(self)
            self.connection.requeue(self)

    def renew_window(self) -> int:
        """Give back what may be; return how many bytes that was."""
        return self.connection.renew_window(self)

    def refuse_slow_message(self) -> None:
        """End the call, because its unfinished message keeps others waiting."""
        self.connection.refuse_slow_message(self)

    def pass_deadline(self) -> None:
        """End the call, because its time is over."""
        self.connection.pass_deadline(self)


class GrpcConnection:
    """The calls of one connection.

    Args:
        http2: Its frames.
        totals: What it shares with the others.
        peer: Who is at the other end.
        wake: Called when there is output to pull, outside of `process`.
        notice: Called with the events of HTTP/2 that concern the whole connection.

    Attributes:
        calls: Those that are open.
        has_output: Whether `pull` would find anything.
        has_input: Whether `process` would find anything.
    """

    __slots__ = (
        "_blocked",
        "_budget",
        "_http2",
        "_interrupted",
        "_is_lost",
        "_later",
        "_message_bytes_max",
        "_notice",
        "_packed_bytes",
        "_requests",
        "_ring",
        "_starved",
        "_totals",
        "_unfinished",
        "_units",
        "_unsent_bytes",
        "_until",
        "_wake",
        "_window_bytes",
        "_window_opened",
        "calls",
        "give_back_bytes",
        "peer",
    )

    def __init__(
        self,
        http2: Connection,
        totals: Totals,
        peer: Peer,
        wake: Callable[[], None],
        notice: Callable[[Event], None],
    ) -> None:
        settings = totals.settings
        self._http2 = http2
        self._totals = totals
        self.peer = peer
        self._wake = wake
        self._notice = notice
        self.calls: set[GrpcCall] = set()
        self._ring: deque[GrpcCall] = deque()
        self._blocked: dict[GrpcCall, None] = {}  # for want of their streams' windows
        self._starved: OrderedDict[GrpcCall, None] = OrderedDict()  # for want of the connection's
        self._window_opened = False  # those of all streams, by SETTINGS
        self._unsent_bytes = 0
        self._requests: dict[tuple[tuple[bytes, bytes], ...], Request] = {}
        self._unfinished = UnfinishedMessages(
            settings.connection_bytes_max,
            settings.first_message_seconds / UNFINISHED_PART,
            totals.clock,
            totals.call_at,
        )
        self._message_bytes_max = settings.message_bytes_max
        self._window_bytes = settings.stream_window_bytes
        self.give_back_bytes = max(1, settings.stream_window_bytes // GIVE_BACK_PART)
        self._later: list[Event] = []  # parsed, and not dispatched within the turn's budget
        self._interrupted: GrpcCall | None = None  # whole messages of it are left for the next turn
        self._units = 0  # of the turn's budget, beyond frames and header bytes
        self._budget = 0
        self._until = inf  # when the turn's time is over
        self._packed_bytes = 0  # of messages, since `pull` began: packing takes time
        self._is_lost = False

    def __repr__(self) -> str:
        return f"<GrpcConnection with {self.peer.address}: {len(self.calls)} calls>"

    @property
    def has_output(self) -> bool:
        """Whether a call waits for its turn to send."""
        if self._ring or (self._window_opened and self._blocked):
            return True
        return bool(self._starved) and self._http2.connection_room > 0

    @property
    def has_input(self) -> bool:
        """Whether something was received that the last turn's budget left over."""
        return self._http2.has_input or bool(self._later) or self._interrupted is not None

    # ------------------------------------------------------------ what the handlers' calls ask for

    def queue(self, call: GrpcCall) -> None:
        """Have a call's output pulled."""
        self._ring.append(call)
        self._wake()

    def requeue(self, call: GrpcCall) -> None:
        """Have a call looked at again, also one that stands aside."""
        if call in self._blocked or call in self._starved:
            self._step_in(call)
            self.queue(call)
        else:
            call.ready()

    def renew_window(self, call: GrpcCall) -> int:
        """Give a stream's window back what is neither unapplied nor, beyond the bounds, unfinished."""
        size = call.unreturned_bytes - call.unconsumed_bytes
        if call.held_bytes and not self._may_renew(call):
            size -= call.held_bytes
        if size <= 0:
            return 0
        call.unreturned_bytes -= size
        self._http2.give_back(call.stream, size)
        self._wake()
        return size

    def count_beyond(self, call: GrpcCall) -> None:
        """Count what a call has unapplied beyond its window, which is one large message at most."""
        beyond = 0 if call.is_over else max(0, call.unconsumed_bytes - self._window_bytes)
        change = beyond - call.beyond_bytes
        call.beyond_bytes = beyond
        if change:
            self._totals.unfinished.change_whole(change)

    def _may_renew(self, call: GrpcCall) -> bool:
        return self._unfinished.allow(call) and self._totals.unfinished.allow(call)

    def _has_unsent_answers(self) -> bool:
        """Tell whether a further answer might have no room.

        A connection without any may always have one, so that nobody keeps the others' out.
        """
        if not self._unsent_bytes:
            return False
        settings = self._totals.settings
        return (
            self._unsent_bytes >= settings.connection_bytes_max
            or self._totals.unsent_bytes >= settings.buffered_bytes_max
        )

    def _is_late(self) -> bool:
        return self._totals.stopwatch() >= self._until

    # ------------------------------------------------------------ input

    def process(self, budget: int, until: float = inf) -> int:
        """Dispatch what was received, until it, the budget or the time is spent; a part of it in any case.

        Args:
            budget: In units: a frame, 64 bytes of headers, a KiB unpacked, a further message of one frame.
            until: When the time is over, by the stopwatch. What a handler does has no price beforehand.

        Returns:
            How many units it took.
        """
        self._budget, self._units, self._until = budget, 0, until
        if self._interrupted is not None:
            call, self._interrupted = self._interrupted, None
            self._read_messages(call)
            if self._units >= budget or self._is_late():
                return self._units
        if self._later:
            events, self._later = self._later, []
        else:
            events = self._http2.events(budget - self._units)
            self._units += self._http2.spent
        paid = self._units  # beyond this, messages have cost too
        left = len(events)
        for event in events:
            left -= 1
            if type(event) is DataReceived:
                self._take_data(event)
                if not left:
                    break
                is_timed = event.ended or not left % _EVENTS_UNTIMED
            else:
                self._take(event)
                is_timed = True
            is_spent = self._units > paid and self._units >= budget
            if left and (is_spent or (is_timed and self._is_late())):
                self._later = events[-left:]
                break
        return self._units

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, WindowOpened):
            self._open_window(event)
        elif isinstance(event, TrailersReceived):
            call = event.stream.owner
            if call is not None:
                call.has_ended = True
                self._half_close(call)
        elif isinstance(event, StreamReset):
            call = event.stream.owner
            if call is not None:
                self._close(call, Why.CANCELLED)
        else:
            self._notice(event)

    def _begin(self, event: RequestReceived) -> None:
        totals, stream = self._totals, event.stream
        if event.too_large:
            bytes_max = totals.settings.header_list_bytes_max
            text = f"the call's headers have more than {bytes_max} bytes."
            self._refuse(stream, Status(Code.RESOURCE_EXHAUSTED, text))
            return
        request = self._read_request(event.headers)
        if request.http_refusal:
            self._send_last(stream, request.http_refusal)
        elif request.refusal is not None:
            self._refuse(stream, request.refusal)
        elif request.timeout_seconds is not None and request.timeout_seconds <= 0:
            self._refuse(stream, Status(Code.DEADLINE_EXCEEDED, "the call came without any time left."))
        elif totals.calls >= totals.settings.calls_max and self.calls:  # a connection may always have one
            text = f"{totals.settings.calls_max} calls are open. Try again later."
            self._refuse(stream, Status(Code.RESOURCE_EXHAUSTED, text))
        else:
            totals.make_room()
            self._open(GrpcCall(self, stream, request), event.ended)

    def _open(self, call: GrpcCall, ended: bool) -> None:
        totals = self._totals
        call.stream.owner = call
        self.calls.add(call)
        totals.calls += 1
        if (seconds := call.request.timeout_seconds) is not None:
            call.deadline = totals.clock() + seconds
            call.timer = totals.call_at(call.deadline, call.pass_deadline)
        totals.wait_for_message(call)
        if ended:
            self._half_close(call)

    def _read_request(self, headers: list[tuple[bytes, bytes]]) -> Request:
        key = tuple(headers)
        request = self._requests.get(key)
        if request is None:
            request = read_request(headers, self._totals.methods)
            if sum(len(name) + len(value) for name, value in headers) <= REQUEST_REMEMBERED_BYTES_MAX:
                if len(self._requests) >= REQUESTS_REMEMBERED_MAX:
                    self._requests.clear()
                self._requests[key] = request
        return request

    def _take_data(self, event: DataReceived) -> None:
        call, data = event.stream.owner, event.data
        if call is None or call.is_input_over:
            return  # behind what ended the call
        size = len(data)
        call.unreturned_bytes += size
        handler = call.handler
        if call.partial is None and size >= _PREFIX_BYTES and handler is not None:
            packed, length = _PREFIX.unpack_from(data)
            if not packed and length == size - _PREFIX_BYTES and length <= self._message_bytes_max:
                call.unconsumed_bytes += length  # one whole message, as nearly all frames are
                try:
                    handler.received(data[_PREFIX_BYTES:])
                except Exception as error:
                    self._fail(call, error)
                else:
                    if call.unreturned_bytes - call.unconsumed_bytes >= self.give_back_bytes:
                        self.renew_window(call)
                    if event.ended:
                        self._half_close(call)
                return
        if call.partial is None:
            call.partial = bytearray(data)
        else:
            call.partial += data
        call.has_ended = event.ended
        self._read_messages(call)

    def _read_messages(self, call: GrpcCall) -> None:
        """Take the whole messages of what has come; the rest waits, and is accounted for."""
        partial, start = call.partial, 0
        if partial is None or call.is_over:
            return
        while len(partial) - start >= _PREFIX_BYTES and not call.is_input_over:
            packed, length = _PREFIX.unpack_from(partial, start)
            if packed > 1 or length > self._message_bytes_max:
                self._refuse_message(call, packed, length)
                break
            end = start + _PREFIX_BYTES + length
            if end > len(partial):
                break
            if start:  # the first message of a frame is paid for with the frame
                self._units += 1
                is_timed = not self._units % _EVENTS_UNTIMED
                if self._units > self._budget or (is_timed and self._is_late()):
                    self._interrupted = call
                    break
            with memoryview(partial) as view:
                message = bytes(view[start + _PREFIX_BYTES : end])
            start = end
            self._take_message(call, packed, message)
        if call.is_over or call.is_input_over:
            return
        if start:
            del partial[:start]
        if not partial:
            call.partial = None
        if call.has_ended and self._interrupted is not call:
            self._half_close(call)
        else:
            self._account(call, is_another=start > 0)

    def _account(self, call: GrpcCall, *, is_another: bool) -> None:
        """Count what is unfinished, which may be of another message than before; give back what may be."""
        held = len(call.partial or b"") + len(call.first or b"")
        before, call.held_bytes = call.held_bytes, held
        if before and (is_another or not held):
            self._release(call, before)
            before = 0
        if held:
            self._unfinished.add(call, held - before)
            unfinished = self._totals.unfinished
            unfinished.add(call, held - before)
            if unfinished.size_bytes > self._totals.unfinished_refused_bytes and not unfinished.is_oldest(
                call
            ):
                text = "unfinished messages fill the server's buffers. Try again later."
                self._refuse_input(call, Status(Code.RESOURCE_EXHAUSTED, text))
                return
        self.renew_window(call)

    def _release(self, call: GrpcCall, size: int) -> None:
        self._unfinished.remove(call, size)
        self._totals.unfinished.remove(call, size)

    def _take_message(self, call: GrpcCall, packed: int, message: bytes) -> None:
        if packed:
            unpacked = self._unpack(call, message)
            if unpacked is None:
                return
            message = unpacked
        method = call.request.method
        assert method is not None, "a call that is open has its method"
        if method.one_request:
            if call.first is not None:
                text = "the method takes one request message, and there are two."
                self._refuse_input(call, Status(Code.INTERNAL, text))
            else:
                call.first = message
            return
        if self._start(call):
            self._deliver(call, message)

    def _unpack(self, call: GrpcCall, message: bytes) -> bytes | None:
        """Return the message unpacked; None: it cannot be, and the call was told so."""
        if not call.request.is_gzip:
            text = "a message is marked as compressed, and the call names no grpc-encoding."
            self._refuse_input(call, Status(Code.INTERNAL, text))
            return None
        try:
            unpacked = packing.unpack(message, self._message_bytes_max)
        except MessageTooLarge as error:
            self._units += self._message_bytes_max >> _UNIT_SHIFT
            self._refuse_input(call, self._totals.service.explain(error))
            return None
        except packing.BadPacking as bad:
            self._units += len(message) >> _UNIT_SHIFT
            self._refuse_input(call, Status(Code.INTERNAL, str(bad)))
            return None
        self._units += len(unpacked) >> _UNIT_SHIFT
        return unpacked

    def _refuse_message(self, call: GrpcCall, packed: int, size: int) -> None:
        bytes_max = self._message_bytes_max
        if packed > 1:
            self._refuse_input(call, Status(Code.INTERNAL, "a message's first byte is neither 0 nor 1."))
            return
        self._refuse_input(
            call,
            self._totals.service.explain(
                MessageTooLarge(
                    f"the message has {size} bytes; at most {bytes_max} are taken. Send it in parts.",
                    message_bytes_max=bytes_max,
                )
            ),
        )

    def _refuse_input(self, call: GrpcCall, status: Status) -> None:
        """Read no more of a call; it ends with this status when what came before is answered."""
        self.end_input(call)
        if call.handler is None:
            self._finish(call, status)
            return
        call.input_status = status
        self._tell_half_closed(call)

    def end_input(self, call: GrpcCall) -> None:
        """Let go of what is buffered, and take nothing more."""
        call.is_input_over = True
        call.partial = call.first = None
        if call.held_bytes:
            held, call.held_bytes = call.held_bytes, 0
            self._release(call, held)

    def _half_close(self, call: GrpcCall) -> None:
        if call.is_over or call.is_input_over:
            return
        if call.partial is not None:
            if self._interrupted is not call:  # else its messages come first
                self._refuse_input(call, Status(Code.INTERNAL, "the client ended the call inside a message."))
            return
        first = call.first
        self.end_input(call)
        method = call.request.method
        assert method is not None, "a call that is open has its method"
        if method.one_request and first is None:
            text = "the method takes one request message, and there is none."
            self._finish(call, Status(Code.INTERNAL, text))
            return
        if method.one_request and self._has_unsent_answers():
            text = "answers that are not read fill the server's buffers. Read them, and try again."
            self._finish(call, Status(Code.RESOURCE_EXHAUSTED, text))
            return
        if not self._start(call):
            return
        if first is not None:
            self._deliver(call, first)
        self._tell_half_closed(call)
        if method.one_request and call.status is not None and not call.is_over:
            self._take_answer(call)

    def _start(self, call: GrpcCall) -> bool:
        """Make the handler, if there is none yet; tell whether there is one."""
        if call.handler is not None:
            return True
        if call.is_over:
            return False
        self._totals.unstarted.pop(call, None)
        method = call.request.method
        assert method is not None, "a call that is open has its method"
        try:
            call.handler = method.start(call)
        except Exception as error:
            self._fail(call, error)
            return False
        return True

    def _deliver(self, call: GrpcCall, message: bytes) -> None:
        assert call.handler is not None, "it was made before"
        call.unconsumed_bytes += len(message)
        try:
            call.handler.received(message)
        except Exception as error:
            self._fail(call, error)
        if call.unconsumed_bytes > self._window_bytes:
            self.count_beyond(call)

    def _tell_half_closed(self, call: GrpcCall) -> None:
        if call.handler is not None:
            try:
                call.handler.half_closed()
            except Exception as error:
                self._fail(call, error)

    # ------------------------------------------------------------ output

    def _open_window(self, event: WindowOpened) -> None:
        """Note that there may be room: at most once a turn are all streams looked at, however often."""
        if event.is_initial:
            self._window_opened = True
        elif event.stream is not None:
            call = event.stream.owner
            if call is not None and call in self._blocked:
                del self._blocked[call]
                self._ring.append(call)
        # The connection's own window is asked by `pull`, one call after the other.

    def _take_answer(self, call: GrpcCall) -> None:
        """Take the answer of a call that is done out of its handler, so that it counts until it is sent."""
        data = self._next_framed(call)
        if data is not None:
            self._hold(call, data)

    def _hold(self, call: GrpcCall, data: bytes) -> None:
        call.pending, call.pending_start = data, 0
        self._count_unsent(len(data))

    def _count_unsent(self, size: int) -> None:
        self._unsent_bytes += size
        self._totals.unsent_bytes += size

    def pull(self, bytes_max: int) -> None:
        """Ask the calls for output in turns, until HTTP/2 holds so many bytes or nobody has anything to send.

        Args:
            bytes_max: Of `output_bytes`, and of what is packed; a frame more may be there at the end.
        """
        http2, ring, starved = self._http2, self._ring, self._starved
        self._packed_bytes = 0
        if self._is_lost:
            ring.clear()  # nothing can be sent, and a handler may have something without end
            return
        if self._window_opened:
            self._window_opened = False
            ring.extend(self._blocked)
            self._blocked.clear()
        looks_left = LOOKS_TURN_MAX
        while (ring or starved) and http2.output_bytes + self._packed_bytes < bytes_max:
            if starved and http2.connection_room > 0:
                call, _ = starved.popitem(last=False)
            elif ring:
                call = ring.popleft()
            else:
                break
            if call.is_over:
                continue
            stream = call.stream
            room = http2.room(stream)
            data = call.pending
            if data is None:
                if room <= 0 and call.status is None:
                    self._stand_aside(call)
                    looks_left -= 1
                    if not looks_left:
                        break
                    continue
                data = self._next_framed(call)
                if data is None:
                    continue
                if len(data) <= room and len(data) <= FRAME_BYTES_MAX:
                    if not call.has_headers_sent:
                        self._send_headers(call)
                    http2.send_data(stream, data)
                    call.stalled_since = None
                    ring.append(call)
                    continue
                self._hold(call, data)
            if not call.has_headers_sent:
                self._send_headers(call)
            if room <= 0:
                self._stand_aside(call)
                looks_left -= 1
                if not looks_left:
                    break
            else:
                self._send_part(call, data, min(room, FRAME_BYTES_MAX))
                ring.append(call)

    def _next_framed(self, call: GrpcCall) -> bytes | None:
        """Return the next message with its prefix; None: there is none, and an ended call was finished."""
        message = None
        if call.handler is not None:
            try:
                message = call.handler.next_message()
            except Exception as error:
                self._fail(call, error)
        if call.is_over:
            return None
        if message is not None:
            if call.request.is_gzip and call.request.accepts_gzip:
                self._packed_bytes += len(message)
                return _pack(message)
            return _PREFIX.pack(0, len(message)) + message
        call.is_queued = False
        if call.status is not None:
            self._finish(call, call.input_status or call.status)
        return None

    def _send_headers(self, call: GrpcCall) -> None:
        gzip = call.request.is_gzip and call.request.accepts_gzip
        block = grpc_headers.RESPONSE_HEADERS_GZIP if gzip else grpc_headers.RESPONSE_HEADERS
        self._http2.send_headers(call.stream, block)
        call.has_headers_sent = True

    def _send_part(self, call: GrpcCall, data: bytes, size: int) -> None:
        start = call.pending_start
        end = min(start + size, len(data))
        self._http2.send_data(call.stream, data[start:end])
        self._count_unsent(start - end)
        call.stalled_since = None
        if end >= len(data):
            call.pending = None
        else:
            call.pending_start = end

    def _step_in(self, call: GrpcCall) -> None:
        self._blocked.pop(call, None)
        self._starved.pop(call, None)

    def _stand_aside(self, call: GrpcCall) -> None:
        if self._http2.connection_room > 0:
            self._blocked[call] = None
        else:
            self._starved[call] = None
        if call.stalled_since is None:
            call.stalled_since = self._totals.clock()

    # ------------------------------------------------------------ ends

    def pass_deadline(self, call: GrpcCall) -> None:
        """End a call whose time is over; what of its output is unsent is dropped."""
        if not call.is_over:
            self._finish(call, Status(Code.DEADLINE_EXCEEDED, "the call's time is over."), Why.DEADLINE)
            self._wake()

    def refuse_slow_message(self, call: GrpcCall) -> None:
        """End a call whose unfinished message keeps others waiting."""
        if not (call.is_over or call.is_input_over):
            text = "the message took too long to come while the server's buffers were full. Try again later."
            self._refuse_input(call, Status(Code.RESOURCE_EXHAUSTED, text))
            self._wake()

    def end_unstarted(self, call: GrpcCall, status: Status) -> None:
        """End a call whose first message did not come."""
        self._finish(call, status)
        self._wake()

    def end_stalled(self, now: float, count: int = ENDS_TURN_MAX) -> int:
        """Reset so many calls whose output made no progress for too long; return how many there were."""
        since_min = now - self._totals.settings.stall_seconds_max
        aside = chain(self._blocked, self._starved)
        late = (call for call in aside if (call.stalled_since or now) <= since_min)
        stalled = list(islice(late, count))
        for call in stalled:
            self._http2.reset(call.stream, frames.Code.CANCEL)
            self._close(call, Why.LOST)
        if stalled:
            self._wake()
        return len(stalled)

    def end_all(self, status: Status, count: int) -> int:
        """End so many calls with this status, whose handlers hear LOST; return how many there were."""
        ending = list(islice(self.calls, count))
        for call in ending:
            self._finish(call, status, Why.LOST)
        return len(ending)

    def lose(self) -> None:
        """Note that the connection is gone; `close_lost` tells the handlers."""
        self._is_lost = True
        self._ring.clear()
        self._blocked.clear()
        self._starved.clear()
        self._later.clear()
        self._interrupted = None

    def close_lost(self, count: int) -> bool:
        """Tell so many handlers that their connection is gone; return whether there are more."""
        while self.calls and count > 0:
            self._close(next(iter(self.calls)), Why.LOST)
            count -= 1
        return bool(self.calls)

    def _fail(self, call: GrpcCall, error: Exception) -> None:
        """End a call whose handler raised, once a message of which a part is sent is whole."""
        status = self._totals.service.explain(error)
        if call.is_over:
            return
        call.status, call.input_status = status, None
        self.end_input(call)
        self._tell_closed(call, Why.ENDED)
        if call.pending is None:
            self._finish(call, status)
        else:
            self.requeue(call)

    def _finish(self, call: GrpcCall, status: Status, why: Why = Why.ENDED) -> None:
        """Send a call's status and close it."""
        if not (self._is_lost or call.stream.closed):
            list_bytes_max = self._http2.peer_header_list_bytes_max
            make = grpc_headers.trailers if call.has_headers_sent else grpc_headers.trailers_only
            self._send_last(call.stream, make(status, list_bytes_max))
        self._close(call, why)

    def _refuse(self, stream: Stream, status: Status) -> None:
        """Answer a request that becomes no call."""
        self._send_last(stream, grpc_headers.trailers_only(status, self._http2.peer_header_list_bytes_max))

    def _send_last(self, stream: Stream, block: bytes) -> None:
        """Send a block that ends the stream; a client that was not done hears that it need not go on."""
        self._http2.send_headers(stream, block, end=True)
        if not stream.receive_ended:
            self._http2.reset(stream, frames.Code.NO_ERROR)

    def _close(self, call: GrpcCall, why: Why) -> None:
        if call.is_over:
            return
        self.end_input(call)
        call.is_over = True
        if call.beyond_bytes:
            self.count_beyond(call)
        if call.pending is not None:
            self._count_unsent(call.pending_start - len(call.pending))
            call.pending = None
        call.stream.owner = None
        call.metadata = NO_METADATA
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        totals = self._totals
        totals.unstarted.pop(call, None)
        self._step_in(call)
        self.calls.discard(call)
        self._tell_closed(call, why)
        totals.calls -= 1
        if not totals.calls:
            totals.on_idle()

    def _tell_closed(self, call: GrpcCall, why: Why) -> None:
        handler, call.handler = call.handler, None
        if handler is not None:
            try:
                handler.closed(why)
            except Exception as error:
                self._totals.service.explain(error)  # which logs it; there is nobody left to tell


def _pack(message: bytes) -> bytes:
    """Return the message with its prefix, as gzip where that pays."""
    if GZIP_BYTES_MIN <= len(message) <= GZIP_BYTES_MAX:
        packed = packing.pack(message)
        if len(packed) < len(message):
            return _PREFIX.pack(1, len(packed)) + packed
    return _PREFIX.pack(0, len(message)) + message
