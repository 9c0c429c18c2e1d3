"""`make attack` in short: each attack for a moment, beside honest sessions in ping-pong.

Nothing here is timed. What is asserted: every honest answer is, bit for bit, what the oracle computed; each
session is answered meanwhile; the server's memory stays within a bound; and the server answers as it should.
The server is `cellstream serve` in a process, over sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from trials.attack.attackers import ATTACKS
from trials.attack.report import Honest, attack, under_attack
from trials.server import Server

SESSIONS = 6
SECONDS = 0.4
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.xdist_group("attack")  # one server for all, whoever runs them


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Honest]]:
    """A server and its honest sessions, for all attacks: what one leaves behind, the next one would meet."""
    folder = tmp_path_factory.mktemp("attack")
    with under_attack(folder, "native", sessions=SESSIONS, tokens=200) as running:
        yield running


ANSWERED = {
    "gzip_bomb": "grpc-status 3",
    "gzip_bombs": "grpc-status 3",
    "headers_only": "grpc-status 8",
    "watches": "grpc-status 8",
    "rapid_reset": "GOAWAY ENHANCE_YOUR_CALM",
    "made_you_reset": "GOAWAY ENHANCE_YOUR_CALM",
    "continuations": "GOAWAY ENHANCE_YOUR_CALM",
    "empty_continuations": "GOAWAY ENHANCE_YOUR_CALM",
    "hpack_bomb": "GOAWAY ENHANCE_YOUR_CALM",
    "large_headers": "grpc-status 8",
    "empty_data": "GOAWAY ENHANCE_YOUR_CALM",
    "window_settings": "GOAWAY ENHANCE_YOUR_CALM",
    "window_updates": "GOAWAY ENHANCE_YOUR_CALM",
    "priorities": "GOAWAY ENHANCE_YOUR_CALM",
    "tiny_feeds": "grpc-status 3",
    "oversized": "grpc-status 3",
}
"""How the server must have answered at least once; of the others nothing is read, or nothing is refused."""

MEMORY_MEBIBYTES_MAX = {"half_messages": 400}
"""What an attack may add to the server's memory; half a message of 4 MB each is what `buffered_bytes_max` allows."""
MEMORY_MEBIBYTES = 64


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "tls_hellos"])
def test_honest_sessions_are_served_beside(name: str, server: tuple[Server, Honest]) -> None:
    """No attack changes an honest answer, ends an honest stream, or takes more memory than its bound."""
    outcome = attack(*server, name, SECONDS)
    assert not outcome.problems
    assert outcome.during["answers_least"] > 0, "a session was starved"
    assert outcome.sent > 0
    before, peak, _ = outcome.memory
    assert peak - before < MEMORY_MEBIBYTES_MAX.get(name, MEMORY_MEBIBYTES) * MEBIBYTE
    if name in ANSWERED:
        assert any(heard.startswith(ANSWERED[name]) for heard in outcome.heard), outcome.heard
