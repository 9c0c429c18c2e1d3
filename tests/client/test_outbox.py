import pytest

from cellstream.client.feeds import encode
from cellstream.client.outbox import Outbox
from cellstream.client.settings import ClientSettings
from cellstream.errors import TokenOutOfRange
from cellstream.v1 import prediction_pb2 as pb


def taken(outbox: Outbox) -> list[pb.PredictRequest]:
    """Everything that waits, in the order in which it would be written."""
    messages = []
    while (message := outbox.take()) is not None:
        messages.append(message)
    return messages


def feed(outbox: Outbox, key: object, handle: int, text: str, **options: int) -> None:
    """One feed of text."""
    outbox.feed(key, handle, options.get("feed_id", 0), options.get("position"), encode(text), None)


def test_items_of_many_sessions_share_one_message() -> None:
    """Joined messages are 15 times cheaper a token for the server: what waits together travels together."""
    outbox = Outbox(ClientSettings())
    for handle in range(1, 65):
        outbox.open(f"s{handle}", pb.Open(handle=handle, session_id=f"s{handle}"))
        feed(outbox, f"s{handle}", handle, "a", position=0)
    (message,) = taken(outbox)
    assert [opened.handle for opened in message.opens] == list(range(1, 65))
    assert [fed.handle for fed in message.feeds] == list(range(1, 65))
    assert outbox.size_bytes == 0


def test_a_session_keeps_the_order_that_a_message_would_change() -> None:
    """A message does resets before feeds, whatever the order they were added in: one of them must wait."""
    outbox = Outbox(ClientSettings())
    feed(outbox, "alice", 1, "before")
    outbox.reset("alice", 1)
    feed(outbox, "alice", 1, "after")
    feed(outbox, "bob", 2, "joins the later one")
    first, second = taken(outbox)
    assert [fed.text for fed in first.feeds] == ["before"]
    assert not first.resets
    assert [reset.handle for reset in second.resets] == [1]
    assert [fed.text for fed in second.feeds] == ["after", "joins the later one"]


def test_an_open_waits_for_the_close_of_the_same_name() -> None:
    """In one message the Open would be done first, and take over what the Close is about to end."""
    outbox = Outbox(ClientSettings())
    outbox.close("alice", 1, keep=True)
    outbox.open("alice", pb.Open(handle=2, session_id="alice"))
    outbox.open("bob", pb.Open(handle=3, session_id="bob"))
    first, second = taken(outbox)
    assert first == pb.PredictRequest(closes=[pb.Close(handle=1, keep=True)])
    assert [opened.session_id for opened in second.opens] == ["alice", "bob"]


def test_a_whole_life_fits_one_message() -> None:
    """Open, feed and close of one session are in a message's own order: nothing need wait."""
    outbox = Outbox(ClientSettings())
    outbox.open("alice", pb.Open(handle=1, session_id="alice"))
    outbox.reset("alice", 1)
    feed(outbox, "alice", 1, "a")
    feed(outbox, "alice", 1, "b")
    outbox.close("alice", 1, keep=False)
    assert len(taken(outbox)) == 1


def test_messages_are_split_at_the_bound_of_items() -> None:
    """A message of too many items would be refused, and its stream ended."""
    outbox = Outbox(ClientSettings(joined_items_max=10))
    for handle in range(25):
        feed(outbox, handle, handle, "a")
    assert [len(message.feeds) for message in taken(outbox)] == [10, 10, 5]


def test_messages_are_split_at_the_bound_of_bytes_and_no_item_is_lost() -> None:
    """No joined message is longer than its bound; a longer feed travels alone."""
    outbox = Outbox(ClientSettings(joined_bytes_max=1000))
    texts = ["é" * size for size in (1, 200, 450, 3000, 5, 5, 400, 400)]
    for handle, text in enumerate(texts):
        feed(outbox, handle, handle, text, feed_id=1 << 60, position=1 << 60)
    messages = taken(outbox)
    assert [fed.text for message in messages for fed in message.feeds] == texts
    assert all(message.ByteSize() <= 1000 for message in messages if len(message.feeds) > 1)
    assert any(len(message.feeds) > 1 for message in messages)


def test_a_feed_says_what_it_was_given() -> None:
    """Ids, frames and text each have their field; an absent position is not zero."""
    outbox = Outbox(ClientSettings())
    answer = pb.Answer(top_k=0, want=pb.WANT_NONE)
    outbox.feed(1, 1, 7, None, encode([3, 4]), None)
    outbox.feed(1, 1, 8, 0, encode(b"ab"), answer)
    outbox.feed(1, 1, 9, 5, encode([]), None)
    (message,) = taken(outbox)
    assert list(message.feeds) == [
        pb.Feed(handle=1, id=7, tokens=pb.Tokens(ids=[3, 4])),
        pb.Feed(handle=1, id=8, position=0, tokens=pb.Tokens(ids=[97, 98]), answer=answer),
        pb.Feed(handle=1, id=9, position=5, tokens=pb.Tokens()),
    ]


def test_a_feed_that_cannot_be_written_leaves_nothing_behind() -> None:
    """Half a feed in a shared message would be answered to nobody, or worse, applied."""
    outbox = Outbox(ClientSettings())
    feed(outbox, 1, 1, "good")
    with pytest.raises(TokenOutOfRange):
        outbox.feed(2, 2, 0, None, encode([5, -1]), None)
    with pytest.raises(TypeError):
        outbox.feed(2, 2, 0, None, encode([0.5]), None)  # type: ignore[list-item]
    (message,) = taken(outbox)
    assert [fed.text for fed in message.feeds] == ["good"]
