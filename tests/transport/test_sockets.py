"""What can be bound, and what a person is told where it cannot."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cellstream.errors import PortInUse, SettingsInvalid
from cellstream.transport.sockets import UNIX_PATH_BYTES_MAX, bind, describe, listen


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a short name, because a Unix socket's path is short."""
    made = tmp_path_factory.mktemp("s")
    monkeypatch.chdir(made)
    return made


def port_of(bound: list[socket.socket]) -> int:
    """Return the port."""
    return int(bound[0].getsockname()[1])


class TestTcp:
    """Addresses and ports."""

    def test_it_binds_and_does_not_listen_yet(self) -> None:
        bound = bind("127.0.0.1", 0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(bound)))
        listen(bound)
        socket.create_connection(("127.0.0.1", port_of(bound))).close()
        for one in bound:
            one.close()

    def test_a_port_on_which_somebody_listens_is_found_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            with pytest.raises(PortInUse) as refused:
                bind("127.0.0.1", other.getsockname()[1], what="metrics_port")
            assert str(other.getsockname()[1]) in refused.value.message
            assert refused.value.values["setting"] == "metrics_port"

    def test_of_two_that_start_at_once_the_second_to_listen_is_refused(self) -> None:
        first = bind("127.0.0.1", 0)
        second = bind("127.0.0.1", port_of(first))
        listen(second)
        with pytest.raises(PortInUse):
            listen(first)
        for one in first + second:
            one.close()

    def test_a_port_can_be_bound_again_at_once(self) -> None:
        """The connections of the server before wait in TIME_WAIT for a minute."""
        bound = bind("127.0.0.1", 0)
        listen(bound)
        port = port_of(bound)
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = bound[0].accept()
        accepted.close()  # first, so that TIME_WAIT is the server's
        client.close()
        bound[0].close()
        bind("127.0.0.1", port)[0].close()

    def test_a_port_is_shared_only_on_purpose(self) -> None:
        first = bind("127.0.0.1", 0, reuse_port=True)
        listen(first)
        with pytest.raises(PortInUse):
            bind("127.0.0.1", port_of(first))
        second = bind("127.0.0.1", port_of(first), reuse_port=True)
        listen(second)
        for one in first + second:
            one.close()

    def test_all_addresses_of_a_name_have_one_port(self) -> None:
        bound = bind("localhost", 0)
        assert len({one.getsockname()[1] for one in bound}) == 1
        assert len({one.family for one in bound}) == len(bound)
        for one in bound:
            one.close()

    @needs_ipv6
    def test_two_colons_are_both_families(self) -> None:
        bound = bind("::", 0)
        listen(bound)
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port_of(bound))).close()
        bound[0].close()

    @needs_ipv6
    def test_another_ipv6_address_is_that_family_alone(self) -> None:
        bound = bind("::1", 0)
        listen(bound)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(bound)))
        bound[0].close()

    @pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid", "", "a b", "x" * 300])
    def test_an_address_that_is_not_ours_names_its_setting(self, host: str) -> None:
        with pytest.raises(SettingsInvalid) as refused:
            bind(host, 0, what="metrics_port")
        assert refused.value.values["setting"] == "metrics_host"
        assert "metrics_host" in refused.value.message


class TestUnix:
    """`unix:/path`."""

    def test_it_is_bound_and_removed_at_the_end(self, folder: Path) -> None:
        (bound,) = bind("unix:s", 0)
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        assert stat.S_IMODE(os.stat("s").st_mode) == 0o660
        listen([bound])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("s")
        bound.close()
        assert not Path("s").exists()

    def test_a_living_server_keeps_its_socket(self, folder: Path) -> None:
        bound = bind("unix:s", 0)
        listen(bound)
        with pytest.raises(PortInUse, match="listens on unix:s"):
            bind("unix:s", 0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("s")
        bound[0].close()

    def test_what_a_dead_one_left_is_removed(self, folder: Path) -> None:
        left = socket.socket(socket.AF_UNIX)
        left.bind("s")
        left.close()
        assert Path("s").exists()
        bound = bind("unix:s", 0)
        listen(bound)
        bound[0].close()

    def test_a_file_that_is_no_socket_is_left_alone(self, folder: Path) -> None:
        Path("s").write_text("precious")
        with pytest.raises(SettingsInvalid, match="no socket"):
            bind("unix:s", 0)
        assert Path("s").read_text() == "precious"

    def test_of_two_that_start_at_once_the_one_whose_file_is_gone_is_refused(self, folder: Path) -> None:
        first, second = bind("unix:s", 0), bind("unix:s", 0)  # the first did not listen, and looked dead
        with pytest.raises(PortInUse):
            listen(first)
        listen(second)
        first[0].close()
        assert Path("s").exists(), "it is the second's"
        second[0].close()

    @pytest.mark.parametrize("path", ["", "x" * (UNIX_PATH_BYTES_MAX + 1), "é" * 60, "a\0b", "nowhere/s"])
    def test_a_path_that_cannot_be_is_explained(self, folder: Path, path: str) -> None:
        with pytest.raises(SettingsInvalid) as refused:
            bind(f"unix:{path}", 0)
        assert refused.value.values["setting"] == "host"

    def test_the_longest_path_is_taken(self, folder: Path) -> None:
        bind("unix:" + "x" * UNIX_PATH_BYTES_MAX, 0)[0].close()

    def test_three_slashes_are_an_absolute_path(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        (bound,) = bind(f"unix://{path}", 0)
        assert path.exists()
        bound.close()


def test_a_peer_is_described() -> None:
    """As `call.Peer` says."""
    assert describe(("127.0.0.1", 5)) == "127.0.0.1:5"
    assert describe(("::1", 5, 0, 0)) == "[::1]:5"
    assert describe("") == "unix:"
