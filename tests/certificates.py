"""Certificates for tests, as files: an authority, and what it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme


@dataclass(frozen=True)
class Identity:
    """A certificate with its chain, and its key, as files.

    Attributes:
        cert: The chain, the certificate first.
        key: The key, unencrypted.
    """

    cert: Path
    key: Path


class Authority:
    """A certificate authority, and the files it makes.

    Attributes:
        file: Its own certificate.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, **options: Any) -> Identity:
        """Make a certificate for this name."""
        issued = self._ca.issue_cert(name, **options)
        identity = Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        identity.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(identity.key))
        return identity
