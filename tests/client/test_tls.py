"""TLS on the client's side: who it trusts, what it shows, and that each mistake is told in words.

The server is grpcio's own, with certificates that trustme made: nothing of ours checks what ours does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from tests.certificates import Authority, Identity

from cellstream import BlockingClient, Client, ClientSettings, ConnectionLost, Health, SettingsInvalid
from cellstream.client.tls import PEM_BYTES_MAX


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the certificates of servers and clients here."""
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody here trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture(scope="module")
def localhost(authority: Authority) -> Identity:
    """The server's certificate, for the name that a client here connects by."""
    return authority.issue("localhost")


@pytest.fixture(scope="module")
def me(authority: Authority) -> Identity:
    """A client's certificate."""
    return authority.issue("me@example.org")


class _Healthy(grpc.GenericRpcHandler):
    """Answers every call as a healthy server does: field 1, a varint, is 1 (SERVING)."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            return b"\x08\x01"

        return grpc.unary_unary_rpc_method_handler(answer)


Listen = Callable[..., Any]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Starts servers, with TLS or without; returns the target."""
    async with AsyncExitStack() as stack:

        async def listen(identity: Identity | None = None, clients: Authority | None = None) -> str:
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((_Healthy(),))
            if identity is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                credentials = grpc.ssl_server_credentials(
                    [(identity.key.read_bytes(), identity.cert.read_bytes())],
                    clients and clients.file.read_bytes(),
                    require_client_auth=clients is not None,
                )
                port = server.add_secure_port("127.0.0.1:0", credentials)
            await server.start()
            stack.push_async_callback(server.stop, None)
            return f"localhost:{port}"

        yield listen


async def health(target: str, **tls: Any) -> Health:
    """Ask through a client with these options."""
    async with Client(target, **tls) as client:
        return await client.health()


async def lost(target: str, **tls: Any) -> str:
    """Why the connection fails with these options."""
    with pytest.raises(ConnectionLost) as failed:
        await health(target, **tls)
    return failed.value.message


async def test_a_server_of_a_known_authority_is_trusted(
    listen: Listen, authority: Authority, localhost: Identity
) -> None:
    """The plain case, by path and by text."""
    target = await listen(localhost)
    assert await health(target, tls_ca=authority.file) is Health.SERVING
    assert await health(target, tls_ca=str(authority.file)) is Health.SERVING


async def test_the_server_s_own_certificate_is_enough(listen: Listen, localhost: Identity) -> None:
    """Where there is no authority at hand, as in the container's health check."""
    assert await health(await listen(localhost), tls_ca=localhost.cert) is Health.SERVING


async def test_both_sides_show_a_certificate(
    listen: Listen, authority: Authority, localhost: Identity, me: Identity
) -> None:
    """Mutual TLS."""
    target = await listen(localhost, authority)
    options = {"tls_ca": authority.file, "tls_cert": me.cert, "tls_key": me.key}
    assert await health(target, **options) is Health.SERVING


async def test_the_blocking_client_takes_the_same(
    listen: Listen, authority: Authority, localhost: Identity
) -> None:
    """In a thread, because the server runs on this one."""
    target = await listen(localhost)

    def ask() -> Health:
        with BlockingClient(target, tls_ca=authority.file) as client:
            return client.health()

    assert await asyncio.to_thread(ask) is Health.SERVING


async def test_another_name_is_told_and_can_be_said(listen: Listen, authority: Authority) -> None:
    """A certificate for the public name, reached by a local one."""
    target = await listen(authority.issue("models.example"))
    assert "for another name" in await lost(target, tls_ca=authority.file)
    options = {"tls_ca": authority.file, "tls_server_name": "models.example"}
    assert await health(target, **options) is Health.SERVING
    options["tls_server_name"] = "others.example"
    assert "for another name" in await lost(target, **options)


async def test_a_plaintext_client_is_told_that_the_server_may_speak_tls(
    listen: Listen, localhost: Identity
) -> None:
    """Of itself gRPC says `Socket closed` and no more."""
    assert "it may speak TLS (tls_ca)" in await lost(await listen(localhost))


async def test_a_tls_client_is_told_that_the_server_speaks_none(listen: Listen, authority: Authority) -> None:
    """Of itself gRPC says `WRONG_VERSION_NUMBER`."""
    assert "the server speaks no TLS" in await lost(await listen(), tls_ca=authority.file)


async def test_an_unknown_authority_is_told(listen: Listen, localhost: Identity, stranger: Authority) -> None:
    """With another authority, and with those that gRPC brings along."""
    target = await listen(localhost)
    assert "not signed by an authority of tls_ca" in await lost(target, tls_ca=stranger.file)
    assert "not signed by an authority of tls_ca" in await lost(target, tls=True)


async def test_an_expired_certificate_is_told(listen: Listen, tmp_path: Path) -> None:
    """The most usual way in which a deployment that ran for a year stops."""
    authority = Authority(tmp_path / "past")
    expired = authority.issue("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    assert "has expired" in await lost(await listen(expired), tls_ca=authority.file)


async def test_a_missing_and_a_strange_client_s_certificate_are_told(
    listen: Listen, authority: Authority, localhost: Identity, stranger: Authority
) -> None:
    """The server ends the connection and does not say why."""
    target = await listen(localhost, authority)
    assert "want a client's certificate" in await lost(target, tls_ca=authority.file)
    other = stranger.issue("other@example.org")
    options = {"tls_ca": authority.file, "tls_cert": other.cert, "tls_key": other.key}
    assert "want a client's certificate" in await lost(target, **options)


async def test_a_server_that_is_not_there_has_nothing_to_do_with_tls(authority: Authority) -> None:
    """A hint that is always given is none."""
    for options in ({}, {"tls_ca": authority.file}):
        assert "TLS" not in await lost("localhost:1", **options)


async def test_a_call_that_waits_for_a_connection_is_told_too(listen: Listen, localhost: Identity) -> None:
    """`localhost` has an address where nobody listens, of which gRPC tells when it has tried again."""
    target = await listen(localhost)
    async with Client(target, settings=ClientSettings(connect_timeout_seconds=0.3)) as client:
        with pytest.raises(ConnectionLost, match="it may speak TLS"):
            await client.models()
        with pytest.raises(ConnectionLost, match="it may speak TLS"):
            await client.session("alice").open()


async def test_an_error_says_that_its_cause_is_tls(listen: Listen, localhost: Identity) -> None:
    """The command line asks it, so as not to ask whether a server is there."""
    with pytest.raises(ConnectionLost) as failed:
        await health(await listen(localhost))
    assert "tls" in failed.value.values


# ---------------------------------------------------------------- files that are not what they should be


def refusal(**tls: Any) -> SettingsInvalid:
    """How a client with these options is refused, before it connects to anything."""
    with pytest.raises(SettingsInvalid) as refused:
        Client("localhost:1", **tls)
    return refused.value


@pytest.mark.parametrize("setting", ["tls_ca", "tls_cert", "tls_key"])
def test_a_file_that_cannot_be_read_is_named(setting: str, me: Identity, tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path, problem in ((tmp_path / "none.pem", "No such file"), (tmp_path, "Is a directory")):
        options = {"tls_ca": me.cert, "tls_cert": me.cert, "tls_key": me.key, setting: path}
        error = refusal(**options)
        assert error.message.startswith(f"{setting} {path}: it cannot be read: {problem}")
        assert error.values["setting"] == setting


@pytest.mark.parametrize("setting", ["tls_ca", "tls_cert", "tls_key"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x30\x82\x03\x00 binary (DER)",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
    ids=["empty", "DER", "broken certificate", "broken key"],
)
def test_a_file_that_is_no_pem_is_named(setting: str, content: bytes, me: Identity, tmp_path: Path) -> None:
    """Of itself gRPC says `Failed to create security handshaker`, at the first call."""
    file = tmp_path / "file.pem"
    file.write_bytes(content)
    options = {"tls_ca": me.cert, "tls_cert": me.cert, "tls_key": me.key, setting: file}
    error = refusal(**options)
    assert error.message.startswith(f"{setting} {file}: expected")
    assert "PEM" in error.message


def test_files_in_each_other_s_place_are_told(me: Identity) -> None:
    """Two paths side by side are easily swapped."""
    error = refusal(tls_cert=me.key, tls_key=me.cert)
    assert error.message.startswith(f"tls_cert {me.key}: expected certificates")


def test_the_key_of_another_certificate_is_told(me: Identity, localhost: Identity) -> None:
    """After a renewal of which half was copied."""
    error = refusal(tls_cert=me.cert, tls_key=localhost.key)
    assert error.message == f"tls_key {localhost.key}: it is not the key of the certificate in {me.cert}."


def test_an_encrypted_key_is_told_and_no_password_asked(me: Identity, tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, which a service has not."""
    key = serialization.load_pem_private_key(me.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "it is encrypted" in refusal(tls_cert=me.cert, tls_key=encrypted).message


@pytest.mark.parametrize(("given", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_one_of_a_pair_is_not_enough(given: str, missing: str, me: Identity) -> None:
    """Left out by mistake, it would be a client without a certificate."""
    error = refusal(**{given: me.cert if given == "tls_cert" else me.key})
    assert error.message.startswith(f"{given} is given without {missing}")


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    """A wrong path may be a disk image."""
    file = tmp_path / "huge.pem"
    with file.open("wb") as sparse:
        sparse.truncate(PEM_BYTES_MAX + 1)
    assert "has more than" in refusal(tls_ca=file).message


def test_credentials_and_files_together_are_refused(authority: Authority) -> None:
    """One of them would be ignored."""
    error = refusal(credentials=grpc.ssl_channel_credentials(), tls_ca=authority.file)
    assert "one of them" in error.message


def test_a_blocking_client_that_is_refused_leaves_no_thread(tmp_path: Path) -> None:
    """The files are looked at before anything is started."""
    before = threading.active_count()
    with pytest.raises(SettingsInvalid):
        BlockingClient("localhost:1", tls_ca=tmp_path / "none.pem")
    assert threading.active_count() == before
