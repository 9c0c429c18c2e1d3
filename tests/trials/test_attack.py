"""`make attack` in short: each attack for a moment, beside honest sessions in ping-pong.

Nothing here is timed. An attack goes on until every honest session was answered so many times and the server
has answered the attack as it should. Every honest answer must be, bit for bit, what the oracle computed, and
the server's memory must stay within a bound. The server is `cellstream serve` in a process, over sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from trials.attack.attackers import ATTACKS, under_way
from trials.attack.honest import write_reference
from trials.attack.report import Honest, under_attack
from trials.oracle import Oracle
from trials.server import Server

SESSIONS = 6
ANSWERS = 40
SECONDS = 30.0
"""Longer than any attack takes here; a hang fails."""
MEBIBYTE = 1 << 20

CALM = "GOAWAY ENHANCE_YOUR_CALM"
ANSWERED = {
    "gzip_bomb": "grpc-status 3",
    "gzip_bombs": "grpc-status 3",
    "headers_only": "grpc-status 8",
    "watches": "grpc-status 8",
    "rapid_reset": CALM,
    "made_you_reset": CALM,
    "continuations": CALM,
    "empty_continuations": CALM,
    "hpack_bomb": CALM,
    "large_headers": "grpc-status 8",
    "settings_flood": "reset",
    "window_settings": CALM,
    "pings": "reset",
    "empty_data": CALM,
    "window_updates": CALM,
    "priorities": CALM,
    "tiny_feeds": "grpc-status 3",
    "oversized": "grpc-status 3",
}
"""How the server must answer. To the others it need not say anything."""

MEBIBYTES_MAX = {"half_messages": 400}
"""What an attack may add to the server's memory; unfinished messages have `buffered_bytes_max`, 256 MiB."""
MEBIBYTES = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Honest]]:
    """A server and its honest sessions, for all attacks: what one leaves behind, the next one meets."""
    folder: Path = tmp_path_factory.mktemp("attack")
    with under_attack(folder, "native", sessions=SESSIONS, tokens=200) as running:
        yield running


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "tls_hellos"])
async def test_honest_sessions_are_served_beside(name: str, server: tuple[Server, Honest]) -> None:
    """No attack changes an honest answer, ends an honest stream, or takes more memory than its bound."""
    attacked, honest = server
    before, mistakes = attacked.resident_bytes(), len(attacked.mistakes())
    attacked.reset_peak()
    async with asyncio.timeout(SECONDS), under_way(name, attacked.port, attacked.metrics_port) as attack:
        told = await asyncio.to_thread(honest.answered, ANSWERS)
        while attack.sent == 0 or not any(  # noqa: ASYNC110 - an attack has no event for what it hears
            heard.startswith(ANSWERED.get(name, "")) for heard in attack.heard or [""]
        ):
            await asyncio.sleep(0.01)
    assert not told["wrong"]
    assert attacked.is_up()
    assert attacked.mistakes()[mistakes:] == []
    grown = attacked.resident_bytes_peak() - before
    assert grown < MEBIBYTES_MAX.get(name, MEBIBYTES) * MEBIBYTE


def test_a_wrong_answer_is_noticed(server: tuple[Server, Honest], tmp_path: Path) -> None:
    """Honest sessions that say yes to anything would prove nothing: one expected bit is turned."""
    attacked, _ = server
    write_reference(tmp_path / "right.npz", Oracle(attacked.models), sessions=2, tokens=20)
    with np.load(tmp_path / "right.npz") as given:
        expected = dict(given)
    expected["log_probabilities"].view(np.int32)[1, 7] ^= 1
    np.savez(tmp_path / "wrong.npz", **expected)
    with Honest(attacked, tmp_path / "wrong.npz") as honest:
        told = honest.answered(30)
    assert told["wrong"]
    assert all(line.startswith("step 7: (8, ") for line in told["wrong"])
