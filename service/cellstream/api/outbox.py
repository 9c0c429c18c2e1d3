"""What a stream's client has not been sent yet; encoded when there is room to send it.

Results wait as the engine made them. A response is made of as many as may travel together, in the order of
things: within a response a client applies what was opened, then results, then events.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from cellstream.api import convert
from cellstream.engine import Progress
from cellstream.sessions import QueuedFeed, Served
from cellstream.v1 import prediction_pb2 as pb

FAILURE_BYTES = 1100
"""About what a failure takes while it waits: its error, and what names the feed. The message of protobuf,
which takes twice as much, is made when there is room."""

NOTICE_BYTES = 500
"""The same of what was opened, and of an event."""


class Part(IntEnum):
    """A response's lists, in the order in which a client applies them."""

    OPENED = 0
    RESULTS = 1
    EVENTS = 2


# Names of the module: an enum's member costs 30 ns to look up, and these are compared for every row.
_OPENED, _RESULTS = Part.OPENED, Part.RESULTS


Write = Callable[[pb.PredictResponse], None]
"""Adds one thing to a response."""


class Outbox:
    """The items that wait, in order.

    An item is a tuple, because a class costs three times as much to make and one is made for every row:
    (part, bytes, write); or, for steps that answered, (part, bytes, handle, queued, progress, first step,
    step behind the last, served).

    Args:
        response_bytes_max: Bytes of one response, unless one item has more.
    """

    __slots__ = ("_items", "_response_bytes_max")

    def __init__(self, response_bytes_max: int) -> None:
        self._response_bytes_max = response_bytes_max
        self._items: list[tuple[Any, ...]] = []  # not a deque: an empty one takes 600 bytes of an idle stream

    def __repr__(self) -> str:
        return f"<Outbox: {len(self._items)} items>"

    def add(self, part: Part, size: int, write: Write) -> None:
        """Add something that takes about so many bytes, and is written when there is room."""
        self._items.append((part, size, write))

    def add_progress(self, handle: int, queued: QueuedFeed, progress: Progress, served: Served) -> int:
        """Add what a call did for a feed, cut where it is too long for one response.

        Returns:
            About how many bytes it takes.
        """
        apart, step_bytes = convert.sizes_of(progress)
        steps = progress.steps
        whole = apart + step_bytes * steps
        if whole <= self._response_bytes_max or steps <= 1:
            self._items.append((_RESULTS, whole, handle, queued, progress, 0, steps, served))
            return whole
        each = max(1, (self._response_bytes_max - apart) // step_bytes)
        total = 0
        for first in range(0, steps, each):
            last = min(first + each, steps)
            size = apart + step_bytes * (last - first)
            self._items.append((_RESULTS, size, handle, queued, progress, first, last, served))
            total += size
        return total

    def take(self, answered: list[tuple[Served, float]]) -> tuple[bytes, int] | None:
        """Encode the next response.

        Args:
            answered: Takes, for each feed that the response answers to its end, its model and when it was
                read, in seconds of the server's clock.

        Returns:
            The response, and the bytes that its items were said to take; None: nothing waits.

        Raises:
            Unencodable: A feed's answer cannot be written; what waits is as before.
        """
        items = self._items
        if not items:
            return None
        response = pb.PredictResponse()
        results = response.results  # protobuf makes the list anew each time it is asked for
        part, size, count = _OPENED, 0, 0
        bytes_max = self._response_bytes_max
        for item in items:
            if item[0] < part or (size and size + item[1] > bytes_max):
                break
            part = item[0]
            size += item[1]
            count += 1
            if len(item) == 3:
                item[2](response)
                continue
            _, _, handle, queued, progress, first, last, served = item
            # Set one by one: by keyword they cost twice as much, and this runs for every token.
            result = results.add()
            result.handle = handle
            result.feed_id = queued.id
            # A run of steps ends at the progress's position; where it is split, its parts end before.
            result.position = progress.position - (progress.steps - last)
            if last > first:
                try:
                    convert.write_predictions(result.predictions, progress, first, last)
                except Exception as error:
                    answered.clear()
                    raise Unencodable(handle, queued, progress.position) from error
            if last == progress.steps and progress.done:
                result.done = True
                answered.append((served, queued.received_at))
        if count == len(items):
            items.clear()
        else:
            del items[:count]
        return response.SerializeToString(), size

    def drop(self, queued: QueuedFeed) -> int:
        """Forget all that waits of a feed; return the bytes that it was said to take."""
        dropped: int = sum(item[1] for item in self._items if len(item) > 3 and item[3] is queued)
        self._items = [item for item in self._items if len(item) == 3 or item[3] is not queued]
        return dropped


class Unencodable(Exception):
    """A feed's answer cannot be written, which is a mistake of ours."""

    def __init__(self, handle: int, queued: QueuedFeed, position: int) -> None:
        super().__init__(handle, queued, position)
        self.handle = handle
        self.queued = queued
        self.position = position
