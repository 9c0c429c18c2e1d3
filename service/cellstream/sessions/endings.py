"""How sessions of a name ended, remembered for the next client that asks for one."""

from __future__ import annotations

from dataclasses import dataclass

from cellstream.errors import CellstreamError, SessionClosed, SessionExpired, SessionUnknown
from cellstream.sessions.life import Cause


@dataclass(frozen=True, slots=True)
class Ending:
    """How a named session ended.

    Attributes:
        cause: CLOSED or EXPIRED.
        position: How many tokens it had absorbed.
        at: When, in seconds of the server's clock.
        time: When, in seconds since the epoch.
    """

    cause: Cause
    position: int
    at: float
    time: float


class Endings:
    """A bounded memory; the oldest is forgotten first.

    Args:
        endings_max: How many are remembered.
        seconds: For how long.
    """

    def __init__(self, endings_max: int, seconds: float) -> None:
        self._endings_max = endings_max
        self._seconds = seconds
        self._by_id: dict[str, Ending] = {}  # the oldest first

    def __repr__(self) -> str:
        return f"<Endings: {len(self._by_id)} of at most {self._endings_max}>"

    def remember(self, session_id: str, ending: Ending) -> None:
        """Remember how the session of this id ended."""
        self._by_id.pop(session_id, None)
        if len(self._by_id) >= self._endings_max:
            del self._by_id[next(iter(self._by_id))]
        self._by_id[session_id] = ending

    def take(self, session_id: str) -> Ending | None:
        """How the session ended, if that is remembered; it is not any more."""
        return self._by_id.pop(session_id, None)

    def forget(self, now: float) -> None:
        """Forget what is older than it may be."""
        old = [session_id for session_id, ending in self._by_id.items() if ending.at <= now - self._seconds]
        for session_id in old:
            del self._by_id[session_id]

    def missing(self, session_id: str) -> CellstreamError:
        """Why there is no session of this id."""
        ending = self._by_id.get(session_id)
        if ending is None:
            return SessionUnknown(
                "no session of this id exists, and none is remembered; check the id, or create it."
            )
        expired = ending.cause is Cause.EXPIRED
        kind = SessionExpired if expired else SessionClosed
        return kind(
            f"the session {'was idle too long' if expired else 'was closed'} and is gone, at position "
            f"{ending.position}; create a new one.",
            position=ending.position,
        )
