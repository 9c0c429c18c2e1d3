"""`make peers` in short: the cells of peers that every environment has, so that the harness stays sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from trials.oracle import Expected
from trials.peers import grpcio
from trials.peers.contract import Ability, Peer, Site
from trials.peers.table import open_site, try_cell
from trials.server import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Servers without TLS, with TLS and with mutual TLS."""
    with open_site("native", ROOT, tmp_path_factory.mktemp("peers")) as made:
        yield made


@pytest.mark.parametrize(
    ("peer", "ability"),
    [(peer, ability) for peer in grpcio.PEERS for ability in peer.cells],
    ids=lambda value: value.name if isinstance(value, Peer) else value,
)
def test_grpcio_is_served(peer: Peer, ability: Ability, site: Site) -> None:
    """The client of gRPC's C core can do everything that it knows of."""
    assert try_cell(site, peer, ability).failure is None


def test_a_wrong_answer_is_a_failure(site: Site) -> None:
    """A table that says yes to anything proves nothing."""
    first, *others = site.answers
    wrong = Expected(first.position, first.top_id ^ 1, first.log_probability)
    told = try_cell(replace(site, answers=[wrong, *others]), grpcio.PEERS[0], "stream")
    assert told.failure is not None
    assert told.word == "FAILED"
