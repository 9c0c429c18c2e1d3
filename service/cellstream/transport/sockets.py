"""Addresses that a server binds: TCP over IPv4 and IPv6, and Unix sockets.

It knows how to bind so that a second server is noticed, and what to tell a person whose address cannot be
bound. It does not know what is served there: a transport listens and accepts.

What Linux does, and when a port in use is found:

- Somebody *listens* on the port: `bind` fails, with or without SO_REUSEADDR. This is the usual case, and it
  is found before any model is loaded.
- Somebody has *bound* it and does not listen yet (two servers that start at once): with SO_REUSEADDR on both,
  `bind` succeeds, and `listen` fails for the second that calls it. Without SO_REUSEADDR, a server that is
  started again would wait a minute for its old connections (TIME_WAIT); so we set it.
- Both set SO_REUSEPORT: both serve, each gets a share of the connections. Only with the setting `reuse_port`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from cellstream.errors import PortInUse, SettingsInvalid

UNIX = "unix:"
"""What the host of a Unix socket begins with."""

UNIX_PATH_BYTES_MAX = 107
"""Linux keeps the path and a zero byte in 108 bytes (unix(7), `sun_path`)."""

UNIX_MODE = 0o660
"""Owner and group may connect: who shall, is said by the folder and its group."""

BACKLOG = 4096
"""Connections that the kernel holds until they are accepted; Linux's own bound (`somaxconn`) is the same."""

_SAME_PORT_TRIES = 16
"""How often a free port is drawn until all addresses of a name have it free; one nearly always does."""

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""The address, or its whole family, is not one of this machine."""


class UnixSocket(socket.socket):
    """A bound Unix socket, which removes its file when it is closed, if the file is still its own.

    Args:
        path: Where it is bound.
    """

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = path
        self._file: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<UnixSocket {self.path}>"

    @property
    def is_ours(self) -> bool:
        """Whether the file at the path is the one that was bound here."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def bind_file(self) -> None:
        """Bind; the file is never open to more than `UNIX_MODE` says."""
        umask = os.umask(0o777 & ~UNIX_MODE)
        try:
            self.bind(self.path)
        finally:
            os.umask(umask)
        found = os.stat(self.path)
        self._file = (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Close, and remove the file."""
        if self._file is not None and self.is_ours:
            with suppress(OSError):
                os.unlink(self.path)
        self._file = None
        super().close()


def bind(host: str, port: int, *, reuse_port: bool = False, what: str = "port") -> list[socket.socket]:
    """Bind, without listening: one socket for each address of the host, all with the same port.

    Args:
        host: An address, a name, `::` for IPv6 and IPv4, or `unix:/path`.
        port: 0: any free one. A Unix socket has none.
        reuse_port: Share the port with others that do the same.
        what: The setting that names the port, for messages: `port` beside `host`, `metrics_port` beside
            `metrics_host`.

    Raises:
        PortInUse: Somebody listens there already.
        SettingsInvalid: The address is not one of this machine, or not one that this user may bind.
    """
    if host.startswith(UNIX):
        return [_bind_unix(host, what)]
    addresses = _resolve(host, port, what)
    for _ in range(_SAME_PORT_TRIES - 1):
        try:
            return _bind_all(addresses, host, port, reuse_port, what)
        except PortInUse:
            if port:
                raise
    return _bind_all(addresses, host, port, reuse_port, what)


def listen(sockets: Sequence[socket.socket], what: str = "port") -> None:
    """Listen on sockets of `bind`; connections wait in the kernel until they are accepted.

    Raises:
        PortInUse: Another server that was started at the same time listens already.
    """
    for bound in sockets:
        if isinstance(bound, UnixSocket) and not bound.is_ours:
            raise PortInUse(
                f"Another server took {UNIX}{bound.path} while this one started. Run one of them only.",
                host=UNIX + bound.path,
                setting=_host_setting(what),
            )
        try:
            bound.listen(BACKLOG)
        except OSError as error:
            host, port = bound.getsockname()[:2] if bound.family != socket.AF_UNIX else (what, 0)
            _refuse(error, host, port, what)


def describe(address: object) -> str:
    """Return a peer's address as `127.0.0.1:40112`, `[::1]:40112`, or `unix:`."""
    if not isinstance(address, tuple):
        return UNIX
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_setting(what: str) -> str:
    return what.removesuffix("port") + "host"


def _resolve(host: str, port: int, what: str) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    setting = _host_setting(what)
    if not host:
        raise SettingsInvalid(
            f"{setting} is empty. Expected an address, a name, or unix:/path; `::` is every address.",
            setting=setting,
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no name"
        raise SettingsInvalid(
            f"{setting} = {host!r} cannot be resolved: {said}. Choose an address of this machine.",
            setting=setting,
            host=host,
        ) from error
    # A name may be listed twice in /etc/hosts.
    return list(dict.fromkeys((socket.AddressFamily(family), address) for family, *_, address in found))


def _bind_all(
    addresses: Sequence[tuple[socket.AddressFamily, tuple[object, ...]]],
    host: str,
    port: int,
    reuse_port: bool,
    what: str,
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    not_here: OSError | None = None
    try:
        for family, (ip, _, *rest) in addresses:
            try:
                bound.append(_bind_tcp(family, (ip, port, *rest), reuse_port))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    _refuse(error, host, port, what)
                not_here = error  # `localhost` is often ::1 too, on machines without IPv6
            else:
                port = bound[-1].getsockname()[1]
        if not_here is not None and not bound:
            _refuse(not_here, host, port, what)
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


def _bind_tcp(family: socket.AddressFamily, address: tuple[object, ...], reuse_port: bool) -> socket.socket:
    # The protocol is named, or asyncio does not take it for TCP and leaves out TCP_NODELAY.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Only `::` means both families; said aloud, because the machine's default may be either.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _bind_unix(host: str, what: str) -> socket.socket:
    path = host.removeprefix(UNIX)
    if path.startswith("//"):  # unix:///path, as gRPC's names also have it
        path = path[2:]
    setting = _host_setting(what)
    size = len(os.fsencode(path))
    if not 0 < size <= UNIX_PATH_BYTES_MAX or "\0" in path:
        raise SettingsInvalid(
            f"The path of {setting} = {host!r} has {size} bytes. Expected 1 to {UNIX_PATH_BYTES_MAX}, the "
            "most that the system takes, and no zero byte.",
            setting=setting,
        )
    _remove_dead(path, host, setting)
    made = UnixSocket(path)
    try:
        made.setblocking(False)
        made.bind_file()
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise _living(host, setting) from error
        raise SettingsInvalid(
            f"{setting} = {host!r} cannot be bound: {error.strerror}. Choose a path in an existing folder "
            "that this user may write to.",
            setting=setting,
        ) from error
    return made


def _remove_dead(path: str, host: str, setting: str) -> None:
    """Remove the socket that a server left which did not end in order.

    It is asked first: uvloop, asyncio and gRPC remove the file of a living server too.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SettingsInvalid(
                f"{setting} = {host!r}: there is a file at {path} that is no socket. Choose another path.",
                setting=setting,
            )
    except OSError:
        return  # there is none, or binding will say what is wrong
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server whose backlog is full answers EAGAIN instead of holding us up
        code = probe.connect_ex(path)
    if code not in (errno.ECONNREFUSED, errno.ENOENT):
        raise _living(host, setting)
    with suppress(OSError):
        os.unlink(path)


def _living(host: str, setting: str) -> PortInUse:
    return PortInUse(
        f"Another server listens on {host}. Stop it, or choose another path.", host=host, setting=setting
    )


def _refuse(error: OSError, host: str, port: int, what: str) -> NoReturn:
    """Raise what a person can act on."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        raise PortInUse(
            f"Port {port} of {host} is taken: another program listens there. Choose another {what}, or 0 for "
            "any free one.",
            host=host,
            port=port,
            setting=what,
        ) from error
    host_setting = _host_setting(what)
    raise SettingsInvalid(
        f"{address} cannot be bound: {error.strerror}. Choose a {host_setting} of this machine and a {what} "
        "that this user may bind.",
        host=host,
        port=port,
        setting=what if error.errno in (errno.EACCES, errno.EPERM) else host_setting,
    ) from error
