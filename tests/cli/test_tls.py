"""The commands over TLS: by flags, by the environment, and the container's health check without either.

The server that only answers health is grpcio's own; the one that all commands use is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.certificates import Authority, Identity
from typer.testing import CliRunner

from cellstream.cli import app
from cellstream.cli.health import own_server

Run = Callable[..., Any]

COMMANDS = ("stream", "generate", "models", "sessions", "health")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs for servers and clients."""
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which signs for clients only."""
    return Authority(tmp_path_factory.mktemp("tls") / "clients")


@pytest.fixture(scope="module")
def localhost(authority: Authority) -> Identity:
    """The certificate of a server on this machine."""
    return authority.issue("localhost")


@pytest.fixture(scope="module")
def public(authority: Authority) -> Identity:
    """The certificate of a server that is reached from elsewhere, by another name."""
    return authority.issue("models.example")


class _Healthy(grpc.GenericRpcHandler):
    """Answers every call as a healthy server does: field 1, a varint, is 1 (SERVING)."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")


@pytest.fixture
def listen() -> Iterator[Callable[..., int]]:
    """Starts servers that are healthy; returns the port."""
    servers = []

    def listen(identity: Identity | None = None, clients: Authority | None = None) -> int:
        server = grpc.server(ThreadPoolExecutor(1), (_Healthy(),))
        servers.append(server)
        if identity is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials(
                [(identity.key.read_bytes(), identity.cert.read_bytes())],
                clients and clients.file.read_bytes(),
                require_client_auth=clients is not None,
            )
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return port

    yield listen
    for server in servers:
        server.stop(None).wait()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_client_command_takes_the_options(command: str) -> None:
    """Each also by the environment, under a name that the server does not read."""
    helped = CliRunner().invoke(
        app, [command, "--help"], prog_name="cellstream", env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    )
    for option in ("--tls", "--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name"):
        assert f" {option} " in helped.output
        assert f"[env var: CELLSTREAM_CLIENT{option[1:].replace('-', '_').upper()}]" in helped.output


@pytest.mark.parametrize("by", ["flags", "environment"])
def test_mutual_tls_by_flags_and_by_the_environment(
    run: Run,
    listen: Callable[..., int],
    localhost: Identity,
    authority: Authority,
    clients: Authority,
    by: str,
) -> None:
    """All three files, once in each way."""
    me = clients.issue("me@example.org")
    port = listen(localhost, clients)
    files = {"ca": authority.file, "cert": me.cert, "key": me.key}
    flags = [word for name, path in files.items() for word in (f"--tls-{name}", str(path))]
    variables = {f"CELLSTREAM_CLIENT_TLS_{name.upper()}": str(path) for name, path in files.items()}
    variables["CELLSTREAM_CLIENT_TARGET"] = f"localhost:{port}"
    asked = run("health", f"localhost:{port}", *flags) if by == "flags" else run("health", env=variables)
    assert (asked.code, asked.out, asked.err) == (0, "SERVING\n", "")


def test_a_failed_handshake_is_told_and_nothing_else(
    run: Run, listen: Callable[..., int], localhost: Identity
) -> None:
    """Whether a server is there is not the question."""
    asked = run("health", f"localhost:{listen(localhost)}")
    assert asked.code == 1
    assert "it may speak TLS (tls_ca)" in asked.err
    assert "Is a server there?" not in asked.err


def test_a_wrong_file_is_code_2(run: Run, tmp_path: Path) -> None:
    """As every other wrong setting."""
    asked = run("models", "--tls-ca", str(tmp_path / "none.pem"))
    assert asked.code == 2
    assert asked.err.startswith(f"Error: tls_ca {tmp_path / 'none.pem'}: it cannot be read")
    assert asked.err.endswith("(SETTINGS_INVALID)\n")


# ---------------------------------------------------------------- the container's health check


def own(identity: Identity | None, port: int, **more: str) -> dict[str, str]:
    """The environment of a server, as its container has it."""
    files = {} if identity is None else {"TLS_CERT": str(identity.cert), "TLS_KEY": str(identity.key)}
    given = {"HOST": "0.0.0.0", "PORT": str(port), **files, **more}
    return {f"CELLSTREAM_{name}": value for name, value in given.items()}


def test_without_a_target_the_server_of_this_environment_is_asked(
    run: Run, listen: Callable[..., int]
) -> None:
    """A server on another port is healthy too."""
    assert run("health", env=own(None, listen())).out == "SERVING\n"


def test_a_server_of_this_environment_is_trusted_by_its_own_certificate(
    run: Run, listen: Callable[..., int], authority: Authority
) -> None:
    """No authority is named, and none is at hand."""
    identity = authority.issue("127.0.0.1")
    assert run("health", env=own(identity, listen(identity))).out == "SERVING\n"


def test_a_certificate_for_another_name_needs_the_name(
    run: Run, listen: Callable[..., int], public: Identity
) -> None:
    """The usual case: no public certificate has 127.0.0.1 in it."""
    environ = own(public, listen(public))
    asked = run("health", env=environ)
    assert asked.code == 1
    assert "say by tls_server_name which one it has" in asked.err
    assert run("health", env=environ | {"CELLSTREAM_CLIENT_TLS_SERVER_NAME": "models.example"}).code == 0


def test_under_mutual_tls_the_server_s_own_certificate_is_shown(
    run: Run, listen: Callable[..., int], authority: Authority
) -> None:
    """Enough where one authority signs for both sides."""
    identity = authority.issue("127.0.0.1")
    port = listen(identity, authority)
    assert run("health", env=own(identity, port, TLS_CLIENT_CA=str(authority.file))).out == "SERVING\n"


def test_under_mutual_tls_with_two_authorities_a_client_s_certificate_is_needed(
    run: Run, listen: Callable[..., int], public: Identity, clients: Authority
) -> None:
    """Told in words, and given by the client's variables."""
    environ = own(public, listen(public, clients), TLS_CLIENT_CA=str(clients.file))
    environ["CELLSTREAM_CLIENT_TLS_SERVER_NAME"] = "models.example"
    asked = run("health", env=environ)
    assert asked.code == 1
    assert "want a client's certificate" in asked.err
    checker = clients.issue("health@example.org")
    environ["CELLSTREAM_CLIENT_TLS_CERT"] = str(checker.cert)
    environ["CELLSTREAM_CLIENT_TLS_KEY"] = str(checker.key)
    assert run("health", env=environ).out == "SERVING\n"


@pytest.mark.parametrize(
    ("environ", "target"),
    [
        ({}, "localhost:50051"),
        ({"CELLSTREAM_HOST": "", "CELLSTREAM_PORT": ""}, "localhost:50051"),
        ({"CELLSTREAM_HOST": "0.0.0.0", "CELLSTREAM_PORT": "6"}, "127.0.0.1:6"),
        ({"CELLSTREAM_HOST": "::"}, "[::1]:50051"),
        ({"CELLSTREAM_HOST": "10.1.2.3"}, "10.1.2.3:50051"),
        (
            {"CELLSTREAM_HOST": "unix:/run/cellstream.sock", "CELLSTREAM_PORT": "6"},
            "unix:/run/cellstream.sock",
        ),
    ],
)
def test_where_a_server_of_an_environment_is(environ: dict[str, str], target: str) -> None:
    """What is bound is not always what is connected to."""
    assert own_server(environ, {}) == (target, {})


def test_the_client_s_own_options_come_first() -> None:
    """Who names an authority, or a certificate, means it."""
    environ = {
        "CELLSTREAM_TLS_CERT": "s.pem",
        "CELLSTREAM_TLS_KEY": "s.key",
        "CELLSTREAM_TLS_CLIENT_CA": "c.pem",
    }
    given = {"tls_ca": "ca.pem", "tls_cert": "me.pem", "tls_key": "me.key"}
    assert own_server(environ, given)[1] == given
    assert own_server(environ, {})[1] == {"tls_ca": "s.pem", "tls_cert": "s.pem", "tls_key": "s.key"}
    assert "tls_ca" not in own_server(environ, {"tls": True})[1]


# ---------------------------------------------------------------- a server of ours


def test_every_command_speaks_mutual_tls_with_our_server(
    run: Run, serve: Callable[..., Any], localhost: Identity, authority: Authority, clients: Authority
) -> None:
    """From the files to the token and back."""
    me = clients.issue("me@example.org")
    files = ("--tls-cert", str(localhost.cert), "--tls-key", str(localhost.key))
    server = serve(*files, "--tls-client-ca", str(clients.file), "--transport", "native")
    tls = ("--tls-ca", str(authority.file), "--tls-cert", str(me.cert), "--tls-key", str(me.key))
    target = f"localhost:{server.target.rpartition(':')[2]}"
    assert run("health", target, *tls).out == "SERVING\n"
    options = ("--target", target, *tls)
    assert run("stream", "--session", "alice", *options, given="To be\n").code == 0
    assert run("generate", "To be", "--max-tokens", "3", *options).code == 0
    assert [model["name"] for model in run("models", "--json", *options).json()][-1] == "tiny"
    assert [session["position"] for session in run("sessions", "--json", *options).json()] == [6]
    refused = run("health", target, "--tls-ca", str(authority.file))
    assert refused.code == 1
    assert "the server wants a client's certificate" in refused.err.splitlines()[-1]
    assert server.stop()[0] == 0
