"""Joins what many sessions want sent in the same moment into few messages. Plain code, without await.

A message is done in the order opens, resets, feeds, closes (protos/cellstream/v1/prediction.proto). So an
item joins the message being filled unless the same session has something later in it already: a reset never
goes into the message that carries a feed before it. Between sessions no order is promised, and none is kept.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable

from cellstream.client.feeds import Encoded, fill_ids
from cellstream.client.settings import ClientSettings
from cellstream.errors import CellstreamError
from cellstream.v1 import prediction_pb2 as pb

# Tags, handle, feed id, position and an answer, all at their longest.
_ITEM_BYTES = 64


class _Phase(enum.IntEnum):
    OPEN = 0
    RESET = 1
    FEED = 2
    CLOSE = 3


class _Draft:
    """A message being filled."""

    __slots__ = ("items", "phases", "request", "size_bytes")

    def __init__(self) -> None:
        self.request = pb.PredictRequest()
        self.phases: dict[Hashable, _Phase] = {}
        self.items = 0
        self.size_bytes = 0


class Outbox:
    """Messages that wait to be written, oldest first.

    Args:
        settings: Its bounds.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._items_max = settings.joined_items_max
        self._bytes_max = settings.joined_bytes_max
        self._drafts: deque[_Draft] = deque()
        self.size_bytes = 0
        """Bytes that wait, estimated from above."""

    def open(self, key: Hashable, message: pb.Open) -> None:
        """Adds an Open.

        Args:
            key: Whose it is: equal for all items that must keep their order.
            message: The whole Open.
        """
        self._draft(key, _Phase.OPEN, message.ByteSize()).opens.append(message)

    def reset(self, key: Hashable, handle: int) -> None:
        """Adds a Reset."""
        self._draft(key, _Phase.RESET).resets.add(handle=handle)

    def feed(
        self,
        key: Hashable,
        handle: int,
        feed_id: int,
        position: int | None,
        encoded: Encoded,
        answer: pb.Answer | None,
    ) -> None:
        """Adds a Feed.

        Args:
            key: Whose it is.
            handle: Of this stream.
            feed_id: Comes back in its results.
            position: How many tokens the caller holds to be applied before; None: its order alone says.
            encoded: What comes.
            answer: What to answer with; None: as the Open said.

        Raises:
            TokenOutOfRange: An id is negative or beyond 32 bits; nothing is added.
        """
        feeds = self._draft(key, _Phase.FEED, encoded.size_bytes).feeds
        # Filled in place: appending a ready Feed would copy it, at twice the cost.
        feed = feeds.add()
        feed.handle = handle
        feed.id = feed_id
        if position is not None:
            feed.position = position
        if encoded.text is not None:
            feed.text = encoded.text
        elif encoded.ids is not None:
            try:
                fill_ids(feed.tokens, encoded.ids)
            except (CellstreamError, TypeError):
                del feeds[-1]
                raise
        elif encoded.values is not None:
            feed.values.data = encoded.values
        if answer is not None:
            feed.answer.CopyFrom(answer)

    def close(self, key: Hashable, handle: int, *, keep: bool) -> None:
        """Adds a Close."""
        self._draft(key, _Phase.CLOSE).closes.add(handle=handle, keep=keep)

    def take(self) -> pb.PredictRequest | None:
        """Takes the oldest message, whole; None when nothing waits."""
        if not self._drafts:
            return None
        draft = self._drafts.popleft()
        self.size_bytes -= draft.size_bytes
        return draft.request

    def _draft(self, key: Hashable, phase: _Phase, size_bytes: int = 0) -> pb.PredictRequest:
        """Finds the message that an item joins, and counts it there."""
        size_bytes += _ITEM_BYTES
        draft = self._drafts[-1] if self._drafts else None
        if (
            draft is None
            or draft.items >= self._items_max
            or draft.size_bytes + size_bytes > self._bytes_max
            or draft.phases.get(key, phase) > phase
        ):
            draft = _Draft()
            self._drafts.append(draft)
        draft.phases[key] = phase
        draft.items += 1
        draft.size_bytes += size_bytes
        self.size_bytes += size_bytes
        return draft.request
