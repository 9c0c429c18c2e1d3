"""TLS and mutual TLS with certificates of `trustme`; names are held against `cryptography`."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.x509.oid import NameOID
from tests.transport.grpc_memory import framed
from tests.transport.grpc_server import LOOPS, Client, Server

from cellstream.errors import SettingsInvalid
from cellstream.settings import Settings
from cellstream.transport.call import Why
from cellstream.transport.tls import Certificates, write_name


@dataclass
class Files:
    """Certificates of one authority, on disk."""

    authority: trustme.CA
    folder: Path

    def __post_init__(self) -> None:
        self.ca = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = self.issue("localhost", "127.0.0.1")

    def issue(self, *names: str, file: str = "server", **options: Any) -> tuple[Path, Path]:
        """Write a certificate and its key."""
        made = self.authority.issue_cert(*names, **options)
        cert, key = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return cert, key

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a server with TLS."""
        return {"tls_cert": self.cert, "tls_key": self.key}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Certificates that no test changes."""
    return Files(trustme.CA(), tmp_path_factory.mktemp("tls"))


@pytest.fixture
def own_files(tmp_path: Path) -> Files:
    """Certificates that a test may change."""
    return Files(trustme.CA(), tmp_path)


def credentials(files: Files, client: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    """Return grpcio's credentials."""
    cert, key = (None, None) if client is None else (client[0].read_bytes(), client[1].read_bytes())
    return grpc.ssl_channel_credentials(files.ca.read_bytes(), key, cert)


def unary(server: Server, with_credentials: grpc.ChannelCredentials, message: bytes = b"x") -> bytes:
    """Make one call on a channel of its own."""
    target = f"localhost:{server.listener.port}"
    with grpc.secure_channel(target, with_credentials) as channel:
        answer: bytes = channel.unary_unary("/test.Test/Unary")(message)
        return answer


def context(files: Files, alpn: str | None = "h2") -> ssl.SSLContext:
    """Return a client's context."""
    made = ssl.create_default_context(cafile=str(files.ca))
    if alpn is not None:
        made.set_alpn_protocols([alpn])
    return made


class TestTls:
    """The server shows a certificate."""

    @pytest.fixture(params=LOOPS)
    def server(self, request: pytest.FixtureRequest, files: Files) -> Iterator[Server]:
        """A server with TLS, on each event loop."""
        with Server(request.param, **files.settings) as server:
            yield server

    def test_grpcio_is_served(self, server: Server, files: Files) -> None:
        assert unary(server, credentials(files)) == b"x"
        assert server.log.calls[0].peer.identity is None

    def test_large_messages_pass_both_ways(self, server: Server, files: Files) -> None:
        message = os.urandom(3 << 20)
        assert unary(server, credentials(files), message) == message

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_both_versions_are_spoken(self, server: Server, files: Files, version: ssl.TLSVersion) -> None:
        made = context(files)
        made.minimum_version = made.maximum_version = version
        with made.wrap_socket(server.connect(), server_hostname="localhost") as connected:
            assert connected.selected_alpn_protocol() == "h2"
            client = Client(connected)
            stream = client.open(data=framed(b"x"), end=True)
            client.until(lambda: client.answers[stream].is_ended)
            assert client.answers[stream].messages == [b"x"]

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
    def test_older_ones_are_not(self, server: Server, files: Files) -> None:
        made = context(files)
        made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_1
        made.set_ciphers("ALL:@SECLEVEL=0")
        with server.connect() as connected, pytest.raises(ssl.SSLError):
            made.wrap_socket(connected, server_hostname="localhost")

    @pytest.mark.parametrize("alpn", [None, "http/1.1"])
    def test_a_client_without_h2_is_ended(self, server: Server, files: Files, alpn: str | None) -> None:
        with (
            server.connect() as connected,
            suppress(ssl.SSLError, ConnectionResetError),
            context(files, alpn).wrap_socket(connected, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.recv(1) == b""
        assert server.ended == {"handshake": 1}

    def test_what_is_no_tls_is_ended(self, server: Server) -> None:
        with server.connect() as connected:
            connected.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * 4)
            while connected.recv(65_536):
                pass
        assert server.ended == {"handshake": 1}

    def test_a_drain_ends_with_close_notify(self, server: Server, files: Files) -> None:
        """Without it the client cannot tell the end from an attacker's cut (RFC 8446, section 6.1)."""
        with context(files).wrap_socket(
            server.connect(), server_hostname="localhost", suppress_ragged_eofs=False
        ) as connected:
            client = Client(connected)
            stream = client.open(data=framed(b"x"), end=True)
            client.until(lambda: client.answers[stream].is_ended)
            drained = server.start_drain(20)
            client.until_closed()  # a ragged end would raise
            assert len(client.goaways) == 2
        drained.result(20)

    def test_a_lost_connection_is_lost(self, server: Server, files: Files) -> None:
        with context(files).wrap_socket(server.connect(), server_hostname="localhost") as connected:
            Client(connected).open("/test.Test/Silent", framed(b"x"))
            server.heard(lambda log: log.handlers)
        server.heard(lambda log: log.closed == [Why.LOST])

    def test_many_handshakes_at_once_are_all_done(self, server: Server, files: Files) -> None:
        """More than a turn's; they come in one burst, because their first bytes are sent together."""
        sessions = []
        for _ in range(20):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = context(files).wrap_bio(incoming, outgoing, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                session.do_handshake()
            sessions.append((server.connect(), session, incoming, outgoing))
        for connected, _, _, outgoing in sessions:
            connected.sendall(outgoing.read())
        for connected, session, incoming, _ in sessions:
            while session.version() is None or session.selected_alpn_protocol() is None:
                incoming.write(connected.recv(65_536))
                try:
                    session.do_handshake()
                except ssl.SSLWantReadError:
                    continue
            assert session.selected_alpn_protocol() == "h2"
            connected.close()

    @pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\0\x01"])
    def test_a_slow_handshake_ends_the_connection(self, files: Files, said: bytes) -> None:
        with Server(handshake_seconds=0.1, **files.settings) as server, server.connect() as connected:
            connected.sendall(said)
            while connected.recv(65_536):
                pass
            assert server.ended == {"handshake": 1}

    def test_after_it_the_preface_has_its_time(self, files: Files) -> None:
        with Server(handshake_seconds=1, **files.settings) as server:
            with (
                context(files).wrap_socket(server.connect(), server_hostname="localhost") as connected,
                suppress(ssl.SSLError, ConnectionResetError),
            ):
                while connected.recv(65_536):
                    pass
            assert server.ended == {"preface": 1}

    def test_tls_on_a_unix_socket(self, files: Files, tmp_path: Path) -> None:
        with Server(host=f"unix:{tmp_path}/s", **files.settings) as server:
            options = [("grpc.ssl_target_name_override", "localhost")]
            with grpc.secure_channel(server.target, credentials(files), options) as channel:
                assert channel.unary_unary("/test.Test/Unary")(b"x") == b"x"


class TestMutualTls:
    """The client shows one too."""

    @pytest.fixture
    def server(self, files: Files) -> Iterator[Server]:
        """A server with mutual TLS."""
        with Server(tls_client_ca=files.ca, **files.settings) as server:
            yield server

    def test_its_subject_is_the_peers_identity(self, server: Server, files: Files) -> None:
        cert, key = files.issue("client.test", file="client", common_name="a, b+c")
        assert unary(server, credentials(files, (cert, key))) == b"x"
        subject = x509.load_pem_x509_certificate(cert.read_bytes()).subject
        assert server.log.calls[0].peer.identity == subject.rfc4514_string()

    def test_a_client_without_a_certificate_is_not_let_in(self, server: Server, files: Files) -> None:
        with pytest.raises(grpc.RpcError) as failed:
            unary(server, credentials(files))
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not server.log.handlers

    def test_nor_is_one_of_another_authority(self, server: Server, files: Files, own_files: Files) -> None:
        stranger = own_files.issue("client.test", file="client")
        with pytest.raises(grpc.RpcError):
            unary(server, credentials(files, stranger))
        assert not server.log.handlers

    def test_there_are_no_session_tickets(self, server: Server, files: Files) -> None:
        """A ticket would let a client in whose certificate is not accepted any more."""
        made = context(files)
        made.load_cert_chain(*files.issue("client.test", file="ticket"))
        with server.client_tls(made) as client:
            stream = client.open(data=framed(b"x"), end=True)
            client.until(lambda: client.answers[stream].is_ended)
            assert not self._has_ticket(client)
        with Server(**files.settings) as other, other.client_tls(context(files)) as control:
            stream = control.open(data=framed(b"x"), end=True)
            control.until(lambda: control.answers[stream].is_ended)
            assert self._has_ticket(control)

    def _has_ticket(self, client: Client) -> bool:
        assert isinstance(client.socket, ssl.SSLSocket)
        return client.socket.session is not None and client.socket.session.has_ticket


class TestFiles:
    """What stands on disk."""

    def test_new_files_are_taken_by_new_connections(self, own_files: Files) -> None:
        """And open ones go on."""
        clock = [0.0]
        certificates = Certificates(Settings(**own_files.settings), lambda: clock[0])
        before = certificates.context()
        own_files.issue("localhost", file="server")
        assert certificates.context() is before, "files are not looked at each time"
        clock[0] += 1.1
        after = certificates.context()
        assert after is not before
        clock[0] += 1.1
        assert certificates.context() is after

    def test_a_running_server_shows_the_new_certificate(self, own_files: Files) -> None:
        with Server(**own_files.settings) as server:
            certificates = server.listener.certificates
            assert certificates is not None
            certificates._clock = iter(range(100)).__next__  # files are looked at each time
            certificates._looked_at = -1

            def shown() -> bytes:
                with context(own_files).wrap_socket(server.connect(), server_hostname="localhost") as seen:
                    found = seen.getpeercert(binary_form=True)
                    assert found is not None
                    return found

            with server.client_tls(context(own_files)) as old:
                first = shown()
                own_files.issue("localhost", file="server")
                assert shown() != first
                stream = old.open(data=framed(b"x"), end=True)
                old.until(lambda: old.answers[stream].is_ended)

    @pytest.mark.parametrize("spoiled", ["cert", "key"])
    def test_bad_new_files_are_logged_and_the_old_ones_serve_on(self, own_files: Files, spoiled: str) -> None:
        clock = [0.0]
        certificates = Certificates(Settings(**own_files.settings), lambda: clock[0])
        before = certificates.context()
        getattr(own_files, spoiled).write_text("no PEM")
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                clock[0] += 1.1
                assert certificates.context() is before
        assert [event["event"] for event in logs] == ["tls_files_not_taken"]
        own_files.issue("localhost", file="server")
        clock[0] += 1.1
        assert certificates.context() is not before

    def test_key_and_certificate_may_be_one_file(self, own_files: Files) -> None:
        both = own_files.folder / "both.pem"
        both.write_bytes(own_files.cert.read_bytes() + own_files.key.read_bytes())
        with Server(tls_cert=both) as server:
            assert unary(server, credentials(own_files)) == b"x"

    def _refused(self, match: str, setting: str, **settings: Any) -> None:
        with pytest.raises(SettingsInvalid, match=match) as refused:
            Certificates(Settings(**settings))
        assert refused.value.values["setting"] == setting

    def test_each_bad_file_is_explained(self, own_files: Files) -> None:
        cert, key, ca, folder = own_files.cert, own_files.key, own_files.ca, own_files.folder
        _, other_key = own_files.issue("other", file="other")
        text = folder / "text"
        text.write_text("no PEM")
        binary = folder / "binary"
        binary.write_bytes(b"\xff\x00")
        broken = folder / "broken.pem"
        broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        broken_key = folder / "broken.key"
        broken_key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        missing = folder / "missing"
        self._refused("No such file", "tls_cert", tls_cert=missing, tls_key=key)
        self._refused("No such file", "tls_key", tls_cert=cert, tls_key=missing)
        self._refused("No such file", "tls_client_ca", tls_cert=cert, tls_key=key, tls_client_ca=missing)
        self._refused("directory", "tls_cert", tls_cert=folder, tls_key=key)
        self._refused("BEGIN CERTIFICATE", "tls_cert", tls_cert=text, tls_key=key)
        self._refused("BEGIN CERTIFICATE", "tls_cert", tls_cert=binary, tls_key=key)
        self._refused("BEGIN PRIVATE KEY", "tls_key", tls_cert=cert, tls_key=text)
        self._refused("no `PRIVATE KEY`", "tls_cert", tls_cert=cert)
        self._refused("BEGIN CERTIFICATE", "tls_client_ca", tls_cert=cert, tls_key=key, tls_client_ca=text)
        self._refused("is not", "tls_client_ca", tls_cert=cert, tls_key=key, tls_client_ca=broken)
        self._refused("is not taken as the key of", "tls_key", tls_cert=cert, tls_key=other_key)
        self._refused("is not taken as the key of", "tls_key", tls_cert=cert, tls_key=broken_key)
        self._refused("tls_cert is not", "tls_cert", tls_key=key)
        self._refused("tls_cert is not", "tls_cert", tls_client_ca=ca)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_key_is_explained(self, own_files: Files) -> None:
        own_files.key.chmod(0)
        self._refused("Permission denied", "tls_key", **own_files.settings)

    def test_an_encrypted_key_is_explained_and_nobody_is_asked(self, own_files: Files) -> None:
        encrypted = own_files.folder / "encrypted.key"
        command = ["openssl", "pkey", "-in", str(own_files.key), "-aes256", "-passout", "pass:x"]
        subprocess.run([*command, "-out", str(encrypted)], check=True)
        self._refused("is encrypted", "tls_key", tls_cert=own_files.cert, tls_key=encrypted)

    def test_an_expired_certificate_is_a_warning(self, own_files: Files) -> None:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        own_files.issue("localhost", file="server", not_after=yesterday)
        with structlog.testing.capture_logs() as logs:
            Certificates(Settings(**own_files.settings))
        (told,) = logs
        assert told["event"] == "tls_cert_expired"
        assert told["expired"] == yesterday.replace(microsecond=0).isoformat()


class TestNames:
    """RFC 4514, with `cryptography` beside."""

    @pytest.mark.parametrize(
        "text", ["plain", "a,b", "#a", " a ", 'a"b', "a\\b", "a;b<c>", "Jürgen", "a=b", "a\0b", " "]
    )
    def test_values_are_escaped(self, text: str) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        assert write_name([[("commonName", text)]]) == name.rfc4514_string()

    def test_the_last_part_comes_first(self) -> None:
        parts = [("C", "countryName", "DE"), ("O", "organizationName", "x"), ("CN", "commonName", "y")]
        assert write_name([[(name, text)] for _, name, text in parts]) == "CN=y,O=x,C=DE"
