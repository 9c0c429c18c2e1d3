"""The token bucket and the rule for PINGs, on a clock that the tests move."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cellstream.transport.floods import PingGuard, TokenBucket


@given(
    burst=st.integers(1, 20),
    per_second=st.integers(1, 8),
    waits=st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0, 60.0]), max_size=60),
)
def test_a_bucket_gives_no_more_than_its_burst_and_its_rate(
    burst: int, per_second: int, waits: list[float]
) -> None:
    """Whenever it is asked, it has given at most `burst`, and `per_second` more for each second."""
    bucket = TokenBucket(burst, per_second, now=5.0)
    now, tokens = 5.0, float(burst)
    for wait in waits:
        now += wait
        tokens = min(burst, tokens + wait * per_second)
        assert bucket.take(now) == (tokens >= 1)
        tokens -= tokens >= 1


def test_a_bucket_is_full_at_first_and_never_fuller() -> None:
    """Long silence saves up no more than the burst."""
    bucket = TokenBucket(3, 1, now=0.0)
    assert [bucket.take(1e9) for _ in range(4)] == [True, True, True, False]
    assert repr(bucket) == "<TokenBucket: 0 of 3>"


def test_the_first_ping_is_no_strike() -> None:
    """There is nothing that it could come too soon after."""
    guard = PingGuard(5.0, strikes_max=0)
    assert guard.allows(0.0, frames_sent=0)
    assert not guard.allows(4.9, frames_sent=0)


def test_an_interval_that_is_kept_does_not_forgive() -> None:
    """Strikes stay: a client whose interval is now and then too short is ended in time, as gRPC does."""
    guard = PingGuard(5.0, strikes_max=1)
    assert [guard.allows(now, 0) for now in (0.0, 1.0, 7.0, 8.0)] == [True, True, True, False]


def test_what_was_sent_forgives() -> None:
    """After a frame of ours the count begins anew."""
    guard = PingGuard(5.0, strikes_max=1)
    assert [guard.allows(float(sent), sent) for sent in range(50)] == [True] * 50
    assert repr(guard) == "<PingGuard: 0 of 1 strikes>"
