"""What Prometheus is told is well formed, bounded, and what prometheus_client's own collectors would say."""

import re
import shutil
import subprocess
from typing import get_type_hints

import numpy as np
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics

from cellstream.metrics import (
    ROWS_BUCKETS,
    SECONDS_BUCKETS,
    SESSION_END_CAUSES,
    TABLE,
    Census,
    Metrics,
    ModelCensus,
    render,
)

CENSUS = Census(
    streams=3,
    draining=True,
    connections=9,
    connections_ended={"calm_down": 2, "preface": 0},
    buffered_bytes=100,
    unsent_bytes=200,
    log_lines_dropped=12,
    models=(
        ModelCensus(
            model="prose",
            version="2",
            sessions=7,
            sessions_held=5,
            slots=6,
            slots_max=64,
            feeds_waiting=4,
            queue_age_seconds=0.25,
            numerics="exact",
            numerics_digest="abc",
            manifest_digest="def",
            is_default=True,
        ),
    ),
)


@pytest.fixture
def registry() -> CollectorRegistry:
    """Each test's own."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """The table's collectors on the test's registry."""
    return Metrics(registry)


def use_everything(metrics: Metrics) -> None:
    """Give every row of the table at least one series."""
    metrics.watch(lambda: CENSUS)
    for row in TABLE:
        if row.kind == "histogram":
            getattr(metrics, row.attribute).of("prose", "2").observe(0.01)
        elif row.kind == "counter" and row.labels == ("model", "version"):
            getattr(metrics, row.attribute).labels("prose", "2").inc()


def test_promtool_finds_nothing_to_say(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Prometheus's own linter knows the conventions that dashboards and alerts of others rely on."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    use_everything(metrics)
    told = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (told.returncode, told.stdout.decode(), told.stderr.decode()) == (0, "", "")


def test_the_table_is_what_is_exported(registry: CollectorRegistry, metrics: Metrics) -> None:
    """A row that is not exported, or the reverse, would make the table a lie and break who draws from it."""
    use_everything(metrics)
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in registry.collect()
        if family.name.startswith("cellstream_")
    }
    assert exported == {row.name: (row.kind, row.help) for row in TABLE}


def test_every_collector_has_its_annotated_attribute(metrics: Metrics) -> None:
    """The type checker sees the annotations, the table makes the attributes: they must be the same names."""
    made = {row.attribute for row in TABLE if row.kind != "gauge" and not row.in_census}
    assert set(get_type_hints(Metrics)) == made
    assert all(hasattr(metrics, attribute) for attribute in made)


def test_labels_are_bounded(registry: CollectorRegistry, metrics: Metrics) -> None:
    """A label that a client chooses, such as a session's id, would let clients fill Prometheus's memory."""
    use_everything(metrics)
    labels = {
        name
        for family in registry.collect()
        for sample in family.samples
        for name in sample.labels
        if family.name.startswith("cellstream_")
    }
    info = {"numerics", "numerics_digest", "manifest_digest", "is_default"}
    assert labels == {"model", "version", "cause", "reason", "le"} | info


def test_at_most_16_buckets_from_50_microseconds_to_10_seconds() -> None:
    """Each bucket is a series for every model, version and server; the bounds are what the issue promises."""
    assert (SECONDS_BUCKETS[0], SECONDS_BUCKETS[-1]) == (50e-6, 10.0)
    for bounds in (SECONDS_BUCKETS, ROWS_BUCKETS):
        assert len(bounds) + 1 <= 16
        assert list(bounds) == sorted(set(bounds))


def histogram_lines(registry: CollectorRegistry, name: str) -> list[str]:
    """What Prometheus reads of one histogram, in order, without what only OpenMetrics has."""
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if re.match(rf"{name}_(bucket|sum|count)", line)]


@pytest.mark.parametrize("batch", [1, 7, 23, 24, 25, 600])
def test_observing_a_batch_is_what_prometheus_client_counts_one_by_one(
    registry: CollectorRegistry, metrics: Metrics, batch: int
) -> None:
    """The shortcut may not change what is told: same buckets, bounds, counts and sum.

    The values are multiples of 2⁻²⁰ s, so their sum is exact in any order of addition.
    """
    random = np.random.default_rng(batch)
    values = np.round(np.exp(random.uniform(-11, 3, size=3 * batch)) * 2**20) / 2**20
    values[:: max(1, batch // 3)] = random.choice([0.0, 1.0, 3.0, 10.0, 11.0])

    for part in np.split(values, 3):
        metrics.feed_seconds.of("prose", "2").observe_many(part)

    theirs_registry = CollectorRegistry()
    theirs = prometheus_client.Histogram(
        "cellstream_feed_seconds",
        "The same.",
        ("model", "version"),
        registry=theirs_registry,
        buckets=SECONDS_BUCKETS,
    )
    for value in values:
        theirs.labels("prose", "2").observe(value)
    ours = histogram_lines(registry, "cellstream_feed_seconds")
    assert sorted(ours) == sorted(histogram_lines(theirs_registry, "cellstream_feed_seconds"))
    assert len(ours) == len(SECONDS_BUCKETS) + 3


def test_a_value_on_a_bound_belongs_to_its_bucket(metrics: Metrics) -> None:
    """`le` means less or equal, for one observation and for many."""
    one, many = metrics.batch_rows.of("prose", "1"), metrics.batch_rows.of("prose", "2")
    for rows in ROWS_BUCKETS * 3:
        one.observe(rows)
    many.observe_many(ROWS_BUCKETS * 3)
    assert one.read() == many.read() == ([3] * 10 + [0], 3 * 1023)


def test_observing_nothing_changes_nothing(metrics: Metrics) -> None:
    """A call that began no feed has no queue time to tell."""
    child = metrics.queue_seconds.of("prose", "2")
    child.observe_many([])
    assert child.read() == ([0] * 16, 0.0)


def test_of_gives_the_same_series_again(metrics: Metrics) -> None:
    """Callers keep what `of` gave; a second look must not lose their counts."""
    assert metrics.feed_seconds.of("prose", "2") is metrics.feed_seconds.of("prose", "2")
    assert metrics.feed_seconds.of("prose", "2") is not metrics.feed_seconds.of("prose", "3")


def test_gauges_are_read_at_the_scrape(registry: CollectorRegistry, metrics: Metrics) -> None:
    """A gauge that is set when something changes goes stale when one place forgets; a census cannot."""
    census = [Census(streams=0, draining=False, models=())]
    metrics.watch(lambda: census[0])
    assert registry.get_sample_value("cellstream_streams") == 0
    assert registry.get_sample_value("cellstream_draining") == 0

    census[0] = CENSUS
    version = {"model": "prose", "version": "2"}
    told = {
        row.attribute: registry.get_sample_value(row.name, version)
        for row in TABLE
        if row.kind == "gauge" and row.labels == ("model", "version")
    }
    assert told == {
        "sessions": 7,
        "sessions_held": 5,
        "slots": 6,
        "slots_max": 64,
        "feeds_waiting": 4,
        "queue_age_seconds": 0.25,
    }
    info = {
        **version,
        "numerics": "exact",
        "numerics_digest": "abc",
        "manifest_digest": "def",
        "is_default": "true",
    }
    assert registry.get_sample_value("cellstream_model_info", info) == 1
    assert registry.get_sample_value("cellstream_streams") == 3
    assert registry.get_sample_value("cellstream_draining") == 1
    assert registry.get_sample_value("cellstream_log_lines_dropped_total") == 12
    assert registry.get_sample_value("cellstream_connections") == 9
    assert registry.get_sample_value("cellstream_connections_ended_total", {"cause": "calm_down"}) == 2
    assert registry.get_sample_value("cellstream_connections_ended_total", {"cause": "preface"}) == 0
    assert registry.get_sample_value("cellstream_buffered_bytes") == 100
    assert registry.get_sample_value("cellstream_unsent_bytes") == 200


def test_causes_and_reasons_begin_at_zero(registry: CollectorRegistry, metrics: Metrics) -> None:
    """An alert on rate() misses the first event of a series that was not there before it."""
    for cause in SESSION_END_CAUSES:
        assert registry.get_sample_value("cellstream_sessions_ended_total", {"cause": cause}) == 0
    for reason in ("FEED_TOO_LONG", "TOO_MANY_SESSIONS", "DRAINING"):
        assert registry.get_sample_value("cellstream_refusals_total", {"reason": reason}) == 0
    for reason in ("POSITION_MISMATCH", "STEP_FAILED", "INTERNAL"):
        assert registry.get_sample_value("cellstream_errors_total", {"reason": reason}) == 0


def test_two_servers_count_apart() -> None:
    """The registry is an argument: a second server in the process starts at 0."""
    registries = CollectorRegistry(), CollectorRegistry()
    first, _ = (Metrics(registry) for registry in registries)
    first.takeovers.inc()
    told = [registry.get_sample_value("cellstream_takeovers_total") for registry in registries]
    assert told == [1, 0]


def test_the_text_is_the_registry(registry: CollectorRegistry, metrics: Metrics) -> None:
    """What Prometheus's own clients would export, and the process beside it."""
    metrics.takeovers.inc(2)
    content_type, body = render(registry, "", {})
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    text = body.decode()
    assert "cellstream_takeovers_total 2.0\n" in text
    assert "\nprocess_resident_memory_bytes " in text


def test_a_scraper_that_asks_for_openmetrics_gets_it(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Prometheus prefers it; the end mark tells it that nothing is missing."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    content_type, body = render(registry, "", {"accept": accept})
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(body.decode())}
    assert families["cellstream_takeovers"].samples[0].value == 0
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("version", ["abc", '"1.0.0"', "1.x", ""])
def test_a_version_that_is_none_gets_plain_text_or_the_oldest(
    registry: CollectorRegistry, metrics: Metrics, version: str
) -> None:
    """prometheus_client compares it as if it were a number; a scraper's wrong header is no fault of ours."""
    content_type, body = render(registry, "", {"accept": f"application/openmetrics-text;version={version}"})
    assert content_type.startswith("text/plain" if version else "application/openmetrics-text; version=1.0.0")
    assert b"cellstream_takeovers_total 0.0\n" in body


def test_only_the_series_that_are_asked_for(registry: CollectorRegistry, metrics: Metrics) -> None:
    """`name[]` is what prometheus_client's own port understands."""
    query = "name[]=cellstream_takeovers_total&name%5B%5D=cellstream_resets_total&name[]=nothing"
    text = render(registry, query, {})[1].decode()
    assert {line.split()[0] for line in text.splitlines() if line[0] != "#" and "_created" not in line} == {
        "cellstream_takeovers_total",
        "cellstream_resets_total",
    }
