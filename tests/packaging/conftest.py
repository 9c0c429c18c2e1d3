"""What the packaging tests share: the root, the settings, promtool, and what a server exports."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cellstream.errors import BY_REASON
from cellstream.metrics import SESSION_END_CAUSES, TABLE, Census, Metrics, ModelCensus
from cellstream.settings import Settings

ROOT = Path(__file__).parents[2]

# What Prometheus, not the server, puts on a series.
OF_PROMETHEUS = {"job", "instance", "le"}

NAME = re.compile(r"\b(?:cellstream|process)_[a-z_]+\b")
MATCHERS = re.compile(r"(\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def settings() -> Settings:
    """The defaults, whatever the environment of whoever runs the tests says."""
    return Settings.model_construct()


@pytest.fixture(scope="session")
def promtool() -> Callable[..., str]:
    """Runs promtool in a directory, asserts that it is content, and returns what it said."""
    tool = shutil.which("promtool")
    if tool is None:
        missing = "promtool is not installed (Debian: prometheus)"
        if os.environ.get("CI"):
            pytest.fail(missing + "; in CI the alerts must not go untested")
        pytest.skip(missing)

    def run(*arguments: str, directory: Path) -> str:
        told = subprocess.run([tool, *arguments], cwd=directory, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    return run


@pytest.fixture(scope="session")
def exported() -> dict[str, set[str]]:
    """The labels of each series that a server exports, by its full name, read from a real registry."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    version = ModelCensus(
        **dict.fromkeys(("sessions", "sessions_held", "slots", "slots_max", "feeds_waiting"), 0),
        model="prose",
        version="1",
        queue_age_seconds=0.0,
        numerics="exact",
        numerics_digest="",
        manifest_digest="",
        is_default=True,
    )
    census = Census(streams=0, draining=False, models=[version], connections_ended={"calm_down": 0})
    metrics.watch(lambda: census)
    for row in TABLE:  # what has no label for the model is there from the start
        if row.kind == "histogram":
            getattr(metrics, row.attribute).of("prose", "1").observe(1.0)
        elif row.kind == "counter" and "model" in row.labels:
            getattr(metrics, row.attribute).labels("prose", "1").inc()
    labels: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.fixture(scope="session")
def check_names(exported: dict[str, set[str]]) -> Callable[[Iterable[str]], set[str]]:
    """Asserts that PromQL expressions name only series, labels and values that exist; returns the series."""

    def check(expressions: Iterable[str]) -> set[str]:
        named: set[str] = set()
        for expression in expressions:
            for name in NAME.findall(expression):
                assert name in exported, f"{name} is not exported: {expression}"
                named.add(name)
            for name, matchers in MATCHERS.findall(expression):
                known = OF_PROMETHEUS | exported.get(name, set())
                for label, value in MATCHER.findall(matchers):
                    assert label in known, f"{name} has no label {label}: {expression}"
                    if label in ("reason", "cause"):
                        unknown = set(value.split("|")) - {*BY_REASON, *SESSION_END_CAUSES}
                        assert not unknown, f"no {label} is called {unknown}: {expression}"
        return named

    return check
