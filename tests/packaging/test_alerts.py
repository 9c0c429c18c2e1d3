"""The alerts fire when they should, and look at what the server exports."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cellstream.metrics import SECONDS_BUCKETS


@pytest.fixture(scope="module")
def prometheus(root: Path) -> Path:
    """The directory of Prometheus's files."""
    return root / "deploy" / "prometheus"


@pytest.fixture(scope="module")
def rules(prometheus: Path) -> list[dict[str, Any]]:
    """The alert rules as written."""
    groups = yaml.safe_load((prometheus / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_prometheus_takes_the_configuration(promtool: Callable[..., str], prometheus: Path) -> None:
    """A file that Prometheus refuses leaves nobody watching."""
    promtool("check", "config", "prometheus.yml", directory=prometheus)


def test_every_alert_fires_when_it_should(promtool: Callable[..., str], prometheus: Path) -> None:
    """An alert that never fired in a test may never fire: promtool plays time before each rule."""
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml", directory=prometheus)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("> 0.3", "> 3"),
        (' or absent(up{job="cellstream"})', ""),
        ("INTERNAL|", ""),
        ("TOO_MANY_SESSIONS|", ""),
        ("for: 5m", "for: 15m"),
    ],
)
def test_the_tests_of_the_alerts_notice_a_wrong_rule(
    promtool: Callable[..., str], prometheus: Path, tmp_path: Path, was: str, becomes: str
) -> None:
    """A test that passes whatever the rule says would prove nothing."""
    text = (prometheus / "alerts.yml").read_text()
    assert was in text
    (tmp_path / "alerts.yml").write_text(text.replace(was, becomes))
    shutil.copy(prometheus / "alerts_test.yml", tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", "alerts_test.yml", directory=tmp_path)


def test_alerts_name_only_what_is_exported(
    check_names: Callable[[Iterable[str]], set[str]], rules: list[dict[str, Any]]
) -> None:
    """An alert on a metric, label or reason that does not exist is silent for ever."""
    named = check_names(rule["expr"] for rule in rules)
    assert named == {"cellstream_feed_seconds_bucket", "cellstream_errors_total", "cellstream_refusals_total"}


def test_every_alert_has_a_test(prometheus: Path, rules: list[dict[str, Any]]) -> None:
    """A new rule without a test is noticed here."""
    tested = (prometheus / "alerts_test.yml").read_text()
    for rule in rules:
        assert re.search(rf"alertname: {rule['alert']}\n\s+exp_alerts", tested), rule["alert"]


def test_the_bound_on_latency_is_one_of_the_histogram(rules: list[dict[str, Any]]) -> None:
    """Between two bounds a quantile is interpolated, and the alert would depend on where inside."""
    expression = next(rule["expr"] for rule in rules if rule["alert"] == "CellstreamFeedsSlow")
    assert float(expression.rpartition(">")[2]) in SECONDS_BUCKETS
