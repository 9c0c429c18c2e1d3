"""Every peer × every ability, tried one after the other against `cellstream serve`; a table, and a page."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trials.certificates import make_certificates
from trials.oracle import TEXT_MODEL, Oracle, write_models
from trials.peers import command_line, golang, grpcio, javascript, proxies
from trials.peers.contract import (
    ABILITIES,
    CONVERSATION,
    GENERATED_TOKENS,
    Ability,
    Endpoint,
    Peer,
    Security,
    Site,
)
from trials.server import ROOT, serving

TOOLS = ROOT / ".make" / "peers"
PEERS: tuple[Peer, ...] = (
    *grpcio.PEERS,
    *javascript.PEERS,
    *golang.PEERS,
    *command_line.PEERS,
    *proxies.PEERS,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell.

    Attributes:
        peer: Whose.
        ability: Which.
        failure: Why it failed; None: it passed, or is lacking.
        lacking: Why the peer cannot do it; None: it can.
    """

    peer: str
    ability: Ability
    failure: str | None = None
    lacking: str | None = None

    @property
    def word(self) -> str:
        """What stands in the table."""
        if self.lacking:
            return "n/a"
        return "FAILED" if self.failure else "yes"


@contextmanager
def open_site(transport: str, tree: Path, scratch: Path) -> Iterator[Site]:
    """Three servers, one for each kind of security, and everything else that a peer needs."""
    models = scratch / "models"
    models.mkdir()
    write_models(models)
    certificates = make_certificates(scratch)
    own = {"tls_cert": certificates.server_cert, "tls_key": certificates.server_key}
    settings: dict[Security, dict[str, Path]] = {
        "plain": {},
        "TLS": own,
        "mutual TLS": own | {"tls_client_ca": certificates.authority},
    }
    oracle = Oracle(models)
    answers = oracle.answers(text.encode() for text in CONVERSATION)
    generated = oracle.greedy(CONVERSATION[0].encode(), GENERATED_TOKENS)
    with ExitStack() as stack:
        endpoints: dict[Security, Endpoint] = {}
        for number, (security, given) in enumerate(settings.items()):
            server = stack.enter_context(
                serving(
                    models,
                    scratch / f"server{number}.log",
                    tree=tree,
                    settings={"transport": transport, "default_model": TEXT_MODEL, **given},
                )
            )
            endpoints[security] = Endpoint(server.port, security, server)
        yield Site(endpoints, certificates, answers, generated, scratch, TOOLS, ROOT / "protos")
        for security, endpoint in endpoints.items():
            assert endpoint.server.is_up(), f"the server for {security} is gone"
            assert not endpoint.server.mistakes(), endpoint.server.mistakes()


def try_all(site: Site, peers: Sequence[Peer], console: Console) -> list[Outcome]:
    """Try every ability of these peers, one after the other."""
    outcomes = []
    for peer in peers:
        for ability in ABILITIES:
            outcome = try_cell(site, peer, ability)
            outcomes.append(outcome)
            if not outcome.lacking:
                console.print(
                    f"{peer.name:18} {ability:13} {outcome.word} {outcome.failure or ''}", markup=False
                )
    return outcomes


def try_cell(site: Site, peer: Peer, ability: Ability) -> Outcome:
    """Try one ability of one peer."""
    if ability in peer.lacks:
        return Outcome(peer.name, ability, lacking=peer.lacks[ability])
    try:
        peer.cells[ability](site)
    except (Exception, subprocess.TimeoutExpired) as error:  # every failure is a cell of the table
        return Outcome(peer.name, ability, failure=f"{type(error).__name__}: {error}")
    return Outcome(peer.name, ability)


def _rows(peers: Sequence[Peer], versions: dict[str, str], outcomes: Sequence[Outcome]) -> list[list[str]]:
    words = {(outcome.peer, outcome.ability): outcome.word for outcome in outcomes}
    return [
        [peer.name, versions[peer.name], *(words[peer.name, ability] for ability in ABILITIES)]
        for peer in peers
    ]


def _page(rows: Sequence[Sequence[str]], outcomes: Sequence[Outcome], transport: str) -> str:
    """The table as Markdown, for the documentation."""
    lines = [
        f'`transport = "{transport}"`:',
        "",
        "| " + " | ".join(["peer", "version", *ABILITIES]) + " |",
        "|---" * (len(ABILITIES) + 2) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.lacking:
            reasons.setdefault(f"{outcome.peer}, {outcome.ability}", []).append(outcome.lacking)
    told = "; ".join(f"{where}: {why[0]}" for where, why in reasons.items())
    return "\n".join([*lines, f"n/a: {told}.", ""])


def run(transport: str, only: Sequence[str], tree: Path, results: Path | None) -> bool:
    """Try the peers, print the table, and write it.

    Args:
        transport: The server's setting.
        only: Parts of peers' names; empty: all peers.
        tree: The source tree whose server it is.
        results: The folder where the table goes; None: nowhere.

    Returns:
        Whether no cell failed.
    """
    console = Console(width=160)
    peers = [peer for peer in PEERS if not only or any(part in peer.name for part in only)]
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="peers-") as folder,
        open_site(transport, tree, Path(folder)) as site,
    ):
        versions = {peer.name: peer.version(site) for peer in peers}
        outcomes = try_all(site, peers, console)
    rows = _rows(peers, versions, outcomes)
    table = Table("peer", "version", *ABILITIES, title=f"transport {transport}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    failed = sum(outcome.failure is not None for outcome in outcomes)
    console.print(f"{len(outcomes)} cells, {failed} failed, {time.monotonic() - began:.0f} s")
    if results is not None and not only:
        results.mkdir(exist_ok=True)
        (results / f"peers-{transport}.md").write_text(_page(rows, outcomes, transport))
    return failed == 0
