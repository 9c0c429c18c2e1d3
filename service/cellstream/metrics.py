"""What the server tells Prometheus: one table, its collectors, and the text that Prometheus reads.

The table below is the whole list; nothing is named at the place where it is counted. Three kinds of row:

    counter     prometheus_client's own; the caller adds
    histogram   ours: a whole batch of observations is one search and one count, not a loop in Python
    gauge       read from the server's `Census` at the moment of a scrape, so it is never out of date

Labels are bounded: model and version by what is on disk, reason and cause by the lists here. No label
names a session. This module knows nothing of what it measures; times are seconds, sizes are counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cellstream.errors import (
    BY_REASON,
    CapacityError,
    CellstreamError,
    RequestError,
    ServerError,
    SessionError,
)

SECONDS_BUCKETS = (
    *(50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3),
    *(300e-3, 1.0, 3.0, 10.0),
)
"""Upper bounds in seconds, 16 buckets with the one to infinity: three a decade where a step, a batch and a
feed live, two where only a queue or a long feed does."""

ROWS_BUCKETS = tuple(float(1 << power) for power in range(10))
"""Upper bounds in rows: 1, 2, 4 … 512, the default of `batch_rows_max`."""

SESSION_END_CAUSES = ("closed", "expired", "stream_ended", "drained")
"""How a session can end."""

_VERSION = ("model", "version")
_INFO = (*_VERSION, "numerics", "numerics_digest", "manifest_digest", "is_default")
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    Attributes:
        attribute: Where `Metrics` has it; of what the census holds, the field of `Census` or `ModelCensus`.
        kind: Who adds to it, and how; see the module.
        labels: Names of its labels.
        help: What it tells, for a person who has only the dashboard.
        buckets: Upper bounds of a histogram.
        in_census: Whether a counter is counted elsewhere, and read from the census like a gauge.
    """

    attribute: str
    kind: Literal["counter", "histogram", "gauge"]
    labels: Labels
    help: str
    buckets: tuple[float, ...] = ()
    in_census: bool = False

    @property
    def name(self) -> str:
        """Its name in Prometheus."""
        return f"cellstream_{self.attribute}{'_total' if self.kind == 'counter' else ''}"


# fmt: off
TABLE = (
    Row("feed_seconds", "histogram", _VERSION,
        "From the arrival of a feed's message to the write of its last result.", SECONDS_BUCKETS),
    Row("queue_seconds", "histogram", _VERSION,
        "From the arrival of a feed's message to the start of the call that took its first token.",
        SECONDS_BUCKETS),
    Row("call_seconds", "histogram", _VERSION,
        "One call: scheduling, one run of the graph of one or more steps, settling.", SECONDS_BUCKETS),
    Row("generate_first_piece_seconds", "histogram", _VERSION,
        "From the arrival of a Generate request to the write of its first piece.", SECONDS_BUCKETS),
    Row("generate_piece_seconds", "histogram", _VERSION,
        "Between two pieces of one generation.", SECONDS_BUCKETS),
    Row("batch_rows", "histogram", _VERSION, "Sessions that shared one call.", ROWS_BUCKETS),

    Row("tokens", "counter", _VERSION, "Tokens or frames absorbed by sessions."),
    Row("steps", "counter", _VERSION, "Steps run: one token for every row of a batch."),
    Row("calls", "counter", _VERSION, "Runs of the model's graph."),
    Row("sessions_opened", "counter", _VERSION, "Sessions created."),
    Row("sessions_ended", "counter", ("cause",), "Sessions ended, by cause."),
    Row("takeovers", "counter", (), "Sessions taken by another stream or handle from the one that wrote."),
    Row("resets", "counter", (), "Sessions put back to their initial state."),
    Row("streams_opened", "counter", (), "Streams opened: calls of Predict and Generate."),
    Row("refusals", "counter", ("reason",), "What was refused as wrong, or for want of capacity, by reason."),
    Row("errors", "counter", ("reason",), "What failed after it was taken, by reason."),
    Row("waiter_errors", "counter", (), "Callbacks of a waiter that raised; a fault of the server."),
    Row("connections_ended", "counter", ("cause",),
        "Connections, and calls that were not read, that the native transport ended, by cause.",
        in_census=True),
    Row("log_lines_dropped", "counter", (),
        "Log lines that standard error did not take: it was closed, full, or not read.", in_census=True),

    Row("sessions", "gauge", _VERSION, "Sessions that exist."),
    Row("sessions_held", "gauge", _VERSION, "Sessions that a stream holds."),
    Row("slots", "gauge", _VERSION, "Slots taken by a session's state."),
    Row("slots_max", "gauge", _VERSION, "Slots that there are."),
    Row("feeds_waiting", "gauge", _VERSION, "Feeds with tokens that were not applied yet."),
    Row("queue_age_seconds", "gauge", _VERSION, "Age of the oldest waiting feed; 0 if none waits."),
    Row("model_info", "gauge", _INFO,
        "1 for each version served. Equal numerics digests: equal answers, bit for bit if exact."),
    Row("streams", "gauge", (), "Streams open: calls of Predict and Generate."),
    Row("connections", "gauge", (), "Connections open, of the native transport."),
    Row("buffered_bytes", "gauge", (),
        "Bytes of messages that are not whole, or not applied beyond their streams' windows."),
    Row("unsent_bytes", "gauge", (), "About how many bytes of responses wait for their clients to read."),
    Row("draining", "gauge", (), "1 while the server is going away."),
)
# fmt: on
"""Every metric of ours; beside them stands process_* of prometheus_client."""


@dataclass(frozen=True, slots=True)
class ModelCensus:
    """One served version at the moment of a scrape; the fields are the table's gauges."""

    model: str
    version: str
    sessions: int
    sessions_held: int
    slots: int
    slots_max: int
    feeds_waiting: int
    queue_age_seconds: float
    numerics: str
    numerics_digest: str
    manifest_digest: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class Census:
    """The server at the moment of a scrape; the fields are the rows of the table that it holds.

    A row with the label `cause` is a number for each cause.
    """

    streams: int
    draining: bool
    models: Sequence[ModelCensus]
    connections: int = 0
    connections_ended: Mapping[str, int] = field(default_factory=dict)
    buffered_bytes: int = 0
    unsent_bytes: int = 0
    log_lines_dropped: int = 0


class Metrics:
    """The table's collectors, one attribute for each counter and histogram.

    Args:
        registry: Where they are registered; each server, and so each test, has its own.
    """

    feed_seconds: Histogram
    queue_seconds: Histogram
    call_seconds: Histogram
    generate_first_piece_seconds: Histogram
    generate_piece_seconds: Histogram
    batch_rows: Histogram

    tokens: Counter
    steps: Counter
    calls: Counter
    sessions_opened: Counter
    sessions_ended: Counter
    takeovers: Counter
    resets: Counter
    streams_opened: Counter
    refusals: Counter
    errors: Counter
    waiter_errors: Counter

    def __init__(self, registry: CollectorRegistry) -> None:
        for row in TABLE:
            if row.kind == "histogram":
                histogram = Histogram(row)
                registry.register(histogram)
                setattr(self, row.attribute, histogram)
            elif row.kind == "counter" and not row.in_census:
                setattr(self, row.attribute, Counter(row.name, row.help, row.labels, registry=registry))
        # As `begin` does for each version.
        for cause in SESSION_END_CAUSES:
            self.sessions_ended.labels(cause)
        for reason in _reasons(RequestError, CapacityError):
            self.refusals.labels(reason)
        for reason in _reasons(SessionError, ServerError):
            self.errors.labels(reason)
        self._census = _CensusCollector()
        registry.register(self._census)
        ProcessCollector(registry=registry)

    def begin(self, model: str, version: str) -> None:
        """Begin every series of a version at 0: a first event that makes its own series has no rate."""
        for row in TABLE:
            if row.labels == _VERSION and row.kind == "histogram":
                getattr(self, row.attribute).of(model, version)
            elif row.labels == _VERSION and row.kind == "counter":
                getattr(self, row.attribute).labels(model, version)

    def watch(self, source: Callable[[], Census]) -> None:
        """Read what the census holds from `source` at each scrape, from now on.

        Args:
            source: Called on the event loop at each scrape; it must not raise.
        """
        self._census.source = source


class Histogram(Collector):
    """A histogram by model and version, whose children take a batch of observations at once."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._upper_bounds = (*(str(bound) for bound in row.buckets), "+Inf")
        self._children: dict[Labels, HistogramChild] = {}

    def __repr__(self) -> str:
        return f"<Histogram {self._row.name}: {len(self._children)} series>"

    def of(self, model: str, version: str) -> HistogramChild:
        """The series of one version, at 0 if nothing was observed yet; keep it, it never changes."""
        child = self._children.get((model, version))
        if child is None:
            child = self._children[model, version] = HistogramChild(self._row.buckets)
        return child

    def describe(self) -> Iterable[Family]:
        """The family without samples, for the registry's check of names."""
        yield HistogramMetricFamily(self._row.name, self._row.help, labels=self._row.labels)

    def collect(self) -> Iterable[Family]:
        """The family with all its series."""
        family = HistogramMetricFamily(self._row.name, self._row.help, labels=self._row.labels)
        for labels, child in self._children.items():
            counts, total = child.read()
            cumulative = [float(count) for count in accumulate(counts)]
            family.add_metric(labels, list(zip(self._upper_bounds, cumulative, strict=True)), total)
        yield family


class HistogramChild:
    """One series of a histogram: how many observations fell into each bucket, and their sum."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self._buckets = buckets
        self._bounds: NDArray[np.float64] = np.asarray(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def observe_many(self, values: Sequence[float] | NDArray[np.float64]) -> None:
        """Add a batch of observations, float64 [count], in one search and one count."""
        if len(values) < _VECTOR_PAYS:
            for value in values:
                self.observe(float(value))
            return
        array = np.asarray(values, dtype=np.float64)
        added = np.bincount(self._bounds.searchsorted(array), minlength=len(self._counts))
        self._counts = [count + more for count, more in zip(self._counts, added.tolist(), strict=True)]
        self._sum += float(array.sum())

    def read(self) -> tuple[list[int], float]:
        """The count of each bucket, the last one to infinity, and the sum of all observations."""
        return self._counts.copy(), self._sum


_VECTOR_PAYS = 24
"""Observations from which numpy's fixed cost is below that of a loop."""


class _CensusCollector(Collector):
    """The table's gauges and what else the census holds, as one collector: a scrape takes one census."""

    def __init__(self) -> None:
        self.source: Callable[[], Census] | None = None

    def describe(self) -> Iterable[Family]:
        return [_family(row) for row in TABLE if _is_in_census(row)]

    def collect(self) -> Iterable[Family]:
        if self.source is None:
            return
        census = self.source()
        for row in filter(_is_in_census, TABLE):
            family = _family(row)
            if row.labels == ("cause",):
                for cause, count in getattr(census, row.attribute).items():
                    family.add_metric([cause], count)
                yield family
                continue
            for counted in census.models if row.labels else (census,):
                labels = [_label(getattr(counted, name)) for name in row.labels]
                family.add_metric(labels, 1.0 if row.labels == _INFO else getattr(counted, row.attribute))
            yield family


def _is_in_census(row: Row) -> bool:
    return row.kind == "gauge" or row.in_census


def _family(row: Row) -> GaugeMetricFamily | CounterMetricFamily:
    family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    return family(row.name, row.help, labels=row.labels)


def _label(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _reasons(*bases: type[CellstreamError]) -> list[str]:
    return [reason for reason, kind in BY_REASON.items() if issubclass(kind, bases)]


def render(registry: CollectorRegistry, query: str, headers: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the content type and the body of `/metrics`.

    Args:
        registry: What is shown.
        query: The query string; `name[]=` asks for the families of these series only, as often as it comes.
        headers: The request's, by lower-case name; Accept chooses between Prometheus's text and OpenMetrics.
    """
    names = parse_qs(query).get("name[]")
    shown: Collector = registry.restricted_registry(names) if names else registry
    try:
        encode, content_type = choose_encoder(headers.get("accept", ""))
    except (ValueError, TypeError):  # prometheus_client raises them for a version that is no number
        encode, content_type = choose_encoder("")
    return content_type, encode(shown)
