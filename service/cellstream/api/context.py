"""What the handlers of one server share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cellstream.api.flow import UnsentBytes
from cellstream.api.status import ErrorReporter
from cellstream.metrics import Metrics
from cellstream.sessions import Registry
from cellstream.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler needs beside its call.

    Attributes:
        registry: Who holds which state.
        settings: The bounds.
        errors: By whom errors leave.
        metrics: Where latency is counted.
        unsent: What all streams have not sent.
        clock: Seconds, monotonic.
        wall_clock: Seconds since the epoch.
    """

    registry: Registry
    settings: Settings
    errors: ErrorReporter
    metrics: Metrics
    unsent: UnsentBytes
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
