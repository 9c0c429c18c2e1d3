"""When a peer's frames are too many: a token bucket, and the rule for PINGs.

Both take the time as an argument. They know how many came and when. They know nothing of frames, and do not
end a connection: they only say that it is time to.
"""

from __future__ import annotations


class TokenBucket:
    """So many at once, and so many more each second.

    Args:
        burst: How many at once.
        per_second: How many more each second.
        now: The time in seconds.
    """

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated")

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._tokens = float(burst)
        self._updated = now

    def __repr__(self) -> str:
        return f"<TokenBucket: {self._tokens:.0f} of {self._burst:.0f}>"

    def take(self, now: float) -> bool:
        """Take a token; return whether there was one."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._per_second)
        self._updated = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class PingGuard:
    """Counts PINGs that come too soon on a connection to which nothing was sent meanwhile.

    Clients measure bandwidth by a PING after each message, which is harmless: each has cost us a message of
    our own making. So what was sent forgives all that came before, as gRPC's own servers do.

    Args:
        seconds_min: Least time between two PINGs.
        strikes_max: How many may come too soon.
    """

    __slots__ = ("_frames_sent", "_last", "_seconds_min", "_strikes", "_strikes_max")

    def __init__(self, seconds_min: float, strikes_max: int) -> None:
        self._seconds_min = seconds_min
        self._strikes_max = strikes_max
        self._strikes = 0
        self._last: float | None = None
        self._frames_sent = 0

    def __repr__(self) -> str:
        return f"<PingGuard: {self._strikes} of {self._strikes_max} strikes>"

    def allows(self, now: float, frames_sent: int) -> bool:
        """Count a PING; return whether the connection may live on.

        Args:
            now: The time in seconds.
            frames_sent: How many HEADERS and DATA frames we have ever sent on the connection.
        """
        if frames_sent != self._frames_sent:
            self._strikes = 0
        elif self._last is not None and now - self._last < self._seconds_min:
            self._strikes += 1
        self._frames_sent = frames_sent
        self._last = now
        return self._strikes <= self._strikes_max
