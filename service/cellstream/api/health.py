"""`grpc.health.v1.Health`: whether this server, and each of its services, takes calls now.

The name "" means the whole server. This module knows no session and no model; `set` and `shutdown` tell it.
A Watch is told the newest status and none before it, so a client that reads slowly costs nothing.
"""

from __future__ import annotations

from typing import Any

from cellstream.api.parsing import parse
from cellstream.api.standard_protos import HEALTH, message_class
from cellstream.api.unary import unary
from cellstream.errors import TooManyStreams
from cellstream.settings import Settings
from cellstream.transport.call import Call, Code, Method, Status, Why

CheckRequest = message_class("grpc.health.v1.HealthCheckRequest")
CheckResponse = message_class("grpc.health.v1.HealthCheckResponse")
ListRequest = message_class("grpc.health.v1.HealthListRequest")
ListResponse = message_class("grpc.health.v1.HealthListResponse")

SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    CheckResponse.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_name[name].number
    for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)

REQUEST_BYTES_MAX = 1024
"""Bytes of a request, which is one name; a Watch keeps the name for as long as it lasts."""

LISTED_MAX = 100
"""Services of one answer to List; beyond it health.proto has it refused. The number is grpc-proto's."""

_GOING = Status(Code.UNAVAILABLE, "the server is going away; watch another.")


class Health:
    """What is served, and who watches it.

    Args:
        settings: Bounds the watches.

    Attributes:
        going: Whether `shutdown` was called.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._statuses: dict[str, int] = {}
        self._watches: set[_Watch] = set()
        self.going = False

    def __repr__(self) -> str:
        serving = sum(status == SERVING for status in self._statuses.values())
        return f"<Health: {serving} of {len(self._statuses)} services serving, {len(self._watches)} watches>"

    def methods(self) -> dict[str, Method]:
        """The methods by path."""
        return {
            f"/{HEALTH}/Check": unary(CheckRequest, self._check, REQUEST_BYTES_MAX),
            f"/{HEALTH}/List": unary(ListRequest, self._list, REQUEST_BYTES_MAX),
            f"/{HEALTH}/Watch": Method(lambda call: _Watch(call, self), one_request=True),
        }

    def set(self, service: str, *, serving: bool) -> None:
        """Say whether a service is served, and tell all who watch it. After `shutdown` it does nothing."""
        if not self.going:
            self._statuses[service] = SERVING if serving else NOT_SERVING
            for watch in self._watches:
                watch.changed(service)

    def shutdown(self) -> None:
        """Stop serving: every Watch hears NOT_SERVING, then ends; one that is opened later does too.

        A Watch never ends by itself, so one that went on would hold up the drain to its last second.
        """
        for service in self._statuses:
            self.set(service, serving=False)
        self.going = True
        for watch in tuple(self._watches):  # a transport may close a call while it is told to end
            watch.end()

    def status(self, service: str) -> int | None:
        """Return the status of a service; None if there is no such service."""
        return self._statuses.get(service)

    def add_watch(self, watch: _Watch) -> None:
        """Begin to tell a Watch of changes.

        Raises:
            TooManyStreams: There are `watches_max` already.
        """
        if len(self._watches) >= self._settings.watches_max:
            raise TooManyStreams(
                f"{self._settings.watches_max} calls of Watch are open, and more are not taken; use Check.",
                watches_max=self._settings.watches_max,
                retry_after_seconds=self._settings.retry_after_seconds,
            )
        self._watches.add(watch)

    def remove_watch(self, watch: _Watch) -> None:
        """Stop telling a Watch of changes. Again: nothing."""
        self._watches.discard(watch)

    def _check(self, request: Any) -> Any:
        status = self.status(request.service)
        if status is None:
            return Status(Code.NOT_FOUND, "no service of this name is served here; List names all that are.")
        return CheckResponse(status=status)

    def _list(self, _request: Any) -> Any:
        if len(self._statuses) > LISTED_MAX:
            return Status(Code.RESOURCE_EXHAUSTED, f"there are more than {LISTED_MAX} services; use Check.")
        statuses = {service: CheckResponse(status=status) for service, status in self._statuses.items()}
        return ListResponse(statuses=statuses)


class _Watch:
    """A call of Watch: the status now, and then each time that it is another."""

    __slots__ = ("_call", "_health", "_sent", "_service")

    def __init__(self, call: Call, health: Health) -> None:
        self._call = call
        self._health = health
        self._service: str | None = None  # until its request is accepted
        self._sent: int | None = None

    def received(self, message: bytes) -> None:
        """Begin to watch what the one request names."""
        service = parse(CheckRequest, message, REQUEST_BYTES_MAX).service
        self._health.add_watch(self)
        self._service = service
        self._call.consumed(len(message))
        self._call.ready()
        if self._health.going:
            self.end()

    def half_closed(self) -> None:
        """Do nothing: who watches has nothing more to say."""

    def next_message(self) -> bytes | None:
        """Return the newest status, unless it is the one that was sent last."""
        if self._service is None:
            return None
        status = self._health.status(self._service)
        newest: int = SERVICE_UNKNOWN if status is None else status
        if newest == self._sent:
            return None
        self._sent = newest
        response: bytes = CheckResponse(status=newest).SerializeToString()
        return response

    def closed(self, why: Why) -> None:
        """Leave no trace."""
        self._health.remove_watch(self)

    def changed(self, service: str) -> None:
        """Hear that a service's status was set."""
        if service == self._service:
            self._call.ready()

    def end(self) -> None:
        """End the call, once its newest status has left."""
        self._call.end(_GOING)
