"""TLS on the client's side: credentials from PEM files, and what a failed handshake means in plain words.

The files are read and checked when the client is made, so a wrong one is told of before anything connects.
This module knows gRPC's words for failures, and nothing of calls.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import grpc

from cellstream.errors import SettingsInvalid

PEM_BYTES_MAX = 4 << 20
"""Bytes of one file; all authorities that browsers trust together have 0.2 MiB."""


class TlsOptions(TypedDict, total=False):
    """How a client speaks TLS; any of these turns it on.

    Attributes:
        tls: True: with the authorities that gRPC brings along, unless `tls_ca` names others.
        tls_ca: PEM file of the authorities that sign the server's certificate, or that certificate itself.
        tls_cert: PEM file of the client's own certificate and its chain, for mutual TLS.
        tls_key: PEM file of its key, unencrypted.
        tls_server_name: The name that the server's certificate must have; without it, the target's host.
    """

    tls: bool
    tls_ca: str | os.PathLike[str] | None
    tls_cert: str | os.PathLike[str] | None
    tls_key: str | os.PathLike[str] | None
    tls_server_name: str


def load_credentials(options: TlsOptions) -> grpc.ChannelCredentials | None:
    """Return the credentials of a channel; None: without TLS.

    Raises:
        SettingsInvalid: A file is missing or not what it should be, or one of `tls_cert` and `tls_key` is.
    """
    if not any(options.values()):
        return None
    ca, cert, key = options.get("tls_ca"), options.get("tls_cert"), options.get("tls_key")
    authorities = chain = private_key = None
    if ca:
        authorities = _read("tls_ca", ca)
        _check_certificates("tls_ca", ca)
    if cert and key:
        chain, private_key = _read("tls_cert", cert), _read("tls_key", key)
        _check_certificates("tls_cert", cert)
        _check_key(key, cert)
    elif cert or key:
        given, missing = ("tls_cert", "tls_key") if cert else ("tls_key", "tls_cert")
        raise SettingsInvalid(
            f"{given} is given without {missing}: a client that shows a certificate needs both.",
            setting=missing,
        )
    return grpc.ssl_channel_credentials(authorities, private_key, chain)


def channel_options(server_name: str) -> list[tuple[str, Any]]:
    """Return the options of a channel that checks the server's certificate for another name."""
    return [("grpc.ssl_target_name_override", server_name)] if server_name else []


_HANDSHAKES = (
    (
        "WRONG_VERSION_NUMBER",
        "the server speaks no TLS: leave out tls, tls_ca and the others, or turn on TLS there",
    ),
    (
        "certificate has expired",
        "the server's certificate has expired",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is not signed by an authority of tls_ca (without it, by one of gRPC's own)",
    ),
    (
        "Unwrap failed",  # the server's alert, which in TLS 1.3 comes behind the handshake
        "the server wants a client's certificate that it trusts (tls_cert, tls_key)",
    ),
    (
        "Hostname Verification Check failed",
        "the server's certificate is for another name than the target's: connect by a name that it has, or "
        "say by tls_server_name which one it has",
    ),
)
"""What gRPC's text contains when a handshake failed, and what it means. The first that fits is taken."""

_ENDED_AT_ONCE = ("Socket closed", "Connection reset by peer")
"""What gRPC's text contains when the server ended the connection before gRPC began on it."""

ATTEMPT_SECONDS = 1.0
"""How long the attempt may take that is made only to be told what is wrong."""


def explain_handshake(text: str) -> str:
    """Return what gRPC's text of a failed connection tells about TLS; empty: nothing."""
    if "failed to connect to all addresses" not in text:
        return ""
    for sign, meaning in _HANDSHAKES:
        if sign in text:
            return meaning
    if any(sign in text for sign in _ENDED_AT_ONCE):
        return (
            "the server ended the connection at once: it may speak TLS (tls_ca), or want a client's "
            "certificate that it trusts (tls_cert, tls_key)"
        )
    return ""


def _read(setting: str, path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        _refuse(setting, path, f"it cannot be read: {error.strerror}", error)
    if len(content) > PEM_BYTES_MAX:
        _refuse(setting, path, f"it has more than {PEM_BYTES_MAX} bytes, and is no PEM file of certificates")
    return content


def _check_certificates(setting: str, path: str | os.PathLike[str]) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        _refuse(setting, path, "expected certificates in PEM form (-----BEGIN CERTIFICATE-----)", error)


def _check_key(key: str | os.PathLike[str], cert: str | os.PathLike[str]) -> None:
    encrypted = False

    def asked_for_password() -> str:
        nonlocal encrypted
        encrypted = True
        return ""

    try:
        # Without a function for the password, OpenSSL would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=asked_for_password)
    except ssl.SSLError as error:
        if encrypted:
            _refuse("tls_key", key, "it is encrypted; expected a key without a password", error)
        if error.reason == "KEY_VALUES_MISMATCH":
            _refuse("tls_key", key, f"it is not the key of the certificate in {os.fspath(cert)}", error)
        _refuse("tls_key", key, "expected a private key in PEM form (-----BEGIN PRIVATE KEY-----)", error)


def _refuse(
    setting: str, path: str | os.PathLike[str], problem: str, cause: Exception | None = None
) -> NoReturn:
    raise SettingsInvalid(f"{setting} {os.fspath(path)}: {problem}.", setting=setting) from cause
