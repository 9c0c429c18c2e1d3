"""TLS for a listener: certificates that are read again when their files change, and a session without I/O.

It knows OpenSSL's contexts and what can be wrong with their files. It does not know sockets: ciphertext comes
in and goes out as bytes, so that the listener can pace handshakes, which hold the loop for about a
millisecond each, and join what it writes into few records.

TLS 1.2 and 1.3; no renegotiation, no compression; ALPN must choose `h2` (RFC 9113, section 3.2). Under mutual
TLS there are no session tickets: a client is let in by its certificate each time, and not by what it once
had.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from cellstream.errors import SettingsInvalid
from cellstream.settings import Settings

log = structlog.get_logger(__name__)

ALPN = "h2"

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those that HTTP/2 does not forbid (RFC 9113, appendix A). TLS 1.3 has none that it does."""

CHECK_SECONDS = 1.0
"""How often, at most, files are looked at; only when a connection arrives."""

PLAINTEXT_BYTES = 256 << 10
"""Bytes read from OpenSSL at once; a record has 16 KiB."""

# RFC 4514's short names (section 3) by OpenSSL's long ones; others, as emailAddress, keep theirs.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
_ESCAPED = frozenset('"+,;<>\\')


class TlsFailed(Exception):
    """A connection that cannot go on; the message never quotes what the peer sent."""


def is_wanted(settings: Settings) -> bool:
    """Return whether a file of TLS is set; one alone is a mistake that `Certificates` tells of."""
    return any((settings.tls_cert, settings.tls_key, settings.tls_client_ca))


class Certificates:
    """The server's certificate, its key, and the authorities of its clients, kept as their files are.

    Args:
        settings: Name the files.
        clock: Seconds, monotonic: how often files are looked at.

    Raises:
        SettingsInvalid: A file is missing, unreadable, or not what it should be.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        if settings.tls_cert is None:
            name = "tls_key" if settings.tls_key is not None else "tls_client_ca"
            raise SettingsInvalid(
                f"{name} is set, and tls_cert is not: set it to the file of the server's certificate.",
                setting="tls_cert",
            )
        self._cert = settings.tls_cert
        self._key = settings.tls_key
        self._client_ca = settings.tls_client_ca
        self._clock = clock
        self._looked_at = clock()
        self._seen = self._look()
        self._context = self._load()

    def __repr__(self) -> str:
        return f"<Certificates {self._cert}>"

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection; files that changed are read again.

        If a new file is not right, that is logged once and the old ones serve on.
        """
        now = self._clock()
        if now - self._looked_at >= CHECK_SECONDS:
            self._looked_at = now
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                try:
                    self._context = self._load()
                except SettingsInvalid as error:
                    log.error("tls_files_not_taken", why=error.message)  # noqa: TRY400 - the message says it all
                else:
                    log.info("tls_files_taken", cert=str(self._cert))
        return self._context

    def _look(self) -> list[tuple[int, int, int]]:
        """Return what changes when a file does: also one that a symbolic link leads to (Kubernetes)."""
        found = []
        for path in (self._cert, self._key, self._client_ca):
            try:
                told = path.stat() if path is not None else None
            except OSError:
                told = None
            found.append((told.st_mtime_ns, told.st_size, told.st_ino) if told is not None else (0, 0, 0))
        return found

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols([ALPN])
        self._load_own(context)
        if self._client_ca is not None:
            pem = _read_pem(self._client_ca, "tls_client_ca", "CERTIFICATE")
            with _explained(self._client_ca, "tls_client_ca", "a PEM file of certificates"):
                context.load_verify_locations(cadata=pem)
            context.verify_mode = ssl.CERT_REQUIRED
            context.options |= ssl.OP_NO_TICKET  # of TLS 1.2
            context.num_tickets = 0  # of TLS 1.3
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        pem = _read_pem(self._cert, "tls_cert", "CERTIFICATE")
        key, key_setting = (self._cert, "tls_cert") if self._key is None else (self._key, "tls_key")
        hint = " Or set tls_key to the file of the key." if self._key is None else ""
        key_pem = _read_pem(key, key_setting, "PRIVATE KEY", hint)
        if "ENCRYPTED" in key_pem:
            raise SettingsInvalid(
                f"{key_setting} = {key} is encrypted. `openssl pkey -in {key} -out plain.pem` makes one that "
                "is not; let only this user read it.",
                setting=key_setting,
                file=key,
            )
        _warn_if_expired(self._cert, pem)
        with _explained(key, key_setting, f"the key of the certificate in {self._cert}"):
            context.load_cert_chain(self._cert, key, password=_no_password)


def _no_password() -> str:
    return ""  # or OpenSSL would ask for one at the terminal


def _read_pem(path: Path, setting: str, what: str, hint: str = "") -> str:
    """Return the text of a PEM file that has a block of this kind; `hint` says what else to do if not."""
    try:
        text = path.read_text("ascii")
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise SettingsInvalid(
            f"{setting} = {path} cannot be read: {error.strerror}.", setting=setting, file=path
        ) from error
    if f"{what}-----" not in text:
        raise SettingsInvalid(
            f"{setting} = {path} has no `{what}`. Expected a PEM file, which is text between lines such as "
            f"-----BEGIN {what}-----.{hint}",
            setting=setting,
            file=path,
        )
    return text


@contextmanager
def _explained(path: Path, setting: str, expected: str) -> Iterator[None]:
    try:
        yield
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise SettingsInvalid(
            f"{setting} = {path} is not taken as {expected} ({reason}).", setting=setting, file=path
        ) from error


def _warn_if_expired(path: Path, pem: str) -> None:
    try:
        not_after = _not_after(ssl.PEM_cert_to_DER_cert(_first_certificate(pem)))
    except (ValueError, IndexError):
        return  # OpenSSL says what is wrong with it
    if not_after < datetime.now(UTC):
        log.warning("tls_cert_expired", cert=str(path), expired=not_after.isoformat())


def _first_certificate(pem: str) -> str:
    end = "-----END CERTIFICATE-----"
    start = pem.index("-----BEGIN CERTIFICATE-----")
    return pem[start : pem.index(end, start) + len(end)]


def _not_after(der: bytes) -> datetime:
    """Return when a certificate expires: the second time of its `validity` (RFC 5280, section 4.1)."""
    inside = _der_items(_der_items(der)[0][1])[0][1]  # Certificate, tbsCertificate
    items = _der_items(inside)
    validity = items[4 if items[0][0] == 0xA0 else 3]  # version [0], serial, algorithm, issuer, validity
    tag, text = _der_items(validity[1])[1]
    return datetime.strptime(
        text.decode("ascii"), "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    ).replace(tzinfo=UTC)


def _der_items(der: bytes) -> list[tuple[int, bytes]]:
    """Return the tag and the content of each item of a sequence's content."""
    items, start = [], 0
    while start < len(der):
        tag, size = der[start], der[start + 1]
        start += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(der[start : start + count], "big")
            start += count
        items.append((tag, der[start : start + size]))
        start += size
    return items


# ---------------------------------------------------------------- one connection


class TlsSession:
    """The server's side of one TLS connection, without I/O.

    Args:
        context: Of `Certificates`.

    Attributes:
        is_ready: Whether the handshake is done.
        is_ended: Whether the peer said that nothing more comes.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "is_ended", "is_ready")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_ready = False
        self.is_ended = False

    def receive(self, ciphertext: bytes) -> None:
        """Take what the peer sent. Nothing is computed."""
        self._incoming.write(ciphertext)

    @property
    def received_bytes(self) -> int:
        """Bytes that were taken and not read."""
        return self._incoming.pending

    def shake_hands(self) -> bool:
        """Go on with the handshake; return whether it is done. This takes the time of a signature.

        Raises:
            TlsFailed: It cannot succeed.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or "the handshake failed") from None
        if self._tls.selected_alpn_protocol() != ALPN:
            raise TlsFailed("the client does not offer ALPN h2")
        self.is_ready = True
        return True

    def read(self) -> bytes:
        """Return what came, in the clear.

        Raises:
            TlsFailed: It was not sent by the peer, or breaks the protocol.
        """
        pieces = []
        try:
            while piece := self._tls.read(PLAINTEXT_BYTES):
                pieces.append(piece)
            self.is_ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.is_ended = True
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or "TLS failed") from None
        return b"".join(pieces)

    def write(self, data: bytes) -> bytes:
        """Return data as it goes to the peer, with what else OpenSSL has to say.

        Raises:
            TlsFailed: The connection is broken.
        """
        try:
            if data:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or "TLS failed") from None
        return self._outgoing.read()

    def close(self) -> bytes:
        """Return what tells the peer that nothing more comes (`close_notify`)."""
        with suppress(ssl.SSLError):  # its own `close_notify` has not come, and nobody waits for it
            self._tls.unwrap()
        return self._outgoing.read()

    def identity(self) -> str | None:
        """Return the subject of the client's certificate as RFC 4514 writes it; None: it showed none."""
        certificate = self._tls.getpeercert()
        if not certificate:
            return None
        subject: Sequence[Sequence[tuple[str, str]]] = certificate.get("subject", ())  # type: ignore[assignment]
        return write_name(subject)


def write_name(subject: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Return a distinguished name as RFC 4514 writes it: the last part first."""
    parts = (
        "+".join(f"{_SHORT_NAMES.get(name, name)}={_escape(text)}" for name, text in part) for part in subject
    )
    return ",".join(reversed(list(parts)))


def _escape(text: str) -> str:
    """Escape a value (RFC 4514, section 2.4)."""
    out = "".join("\\00" if one == "\0" else "\\" + one if one in _ESCAPED else one for one in text)
    if out[:1] in (" ", "#"):
        out = "\\" + out
    if len(text) > 1 and text.endswith(" "):
        out = out[:-1] + "\\ "
    return out
