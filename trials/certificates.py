"""Certificates for trials, as files: an authority, the server's, and a client's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the authority that signed all of them, the server's and a client's."""

    authority: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, a certificate for this machine's server, and one for a client."""
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("client@trials")
    made = Certificates(
        *(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )
    authority.cert_pem.write_to_path(made.authority)
    for issued, cert, key in (
        (server, made.server_cert, made.server_key),
        (client, made.client_cert, made.client_key),
    ):
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
    return made
