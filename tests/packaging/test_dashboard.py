"""The dashboard is one that Grafana reads, and draws what the server exports, all of it."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from cellstream.metrics import TABLE


@pytest.fixture(scope="module")
def grafana(root: Path) -> Path:
    """The directory of Grafana's files."""
    return root / "deploy" / "grafana"


@pytest.fixture(scope="module")
def dashboard(grafana: Path) -> Any:
    """The dashboard as written."""
    return json.loads((grafana / "dashboards" / "cellstream.json").read_text())


@pytest.fixture(scope="module")
def expressions(dashboard: Any) -> list[str]:
    """The query of every panel."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_grafana_knows_every_field(dashboard: Any) -> None:
    """Grafana drops what it does not know without a word; through its own types nothing is lost."""
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert list(lost(dashboard, read)) == []


def lost(written: Any, read: Any, at: str = "dashboard") -> Iterator[str]:
    """Where `read` lacks, or has otherwise, what was `written`; defaults that `read` adds are no loss."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            if key in read:
                yield from lost(value, read[key], f"{at}.{key}")
            else:
                yield f"{at}.{key} is unknown"
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, (value, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(value, other, f"{at}[{index}]")
    elif written != read:
        yield f"{at} is {written!r}, read as {read!r}"


def test_a_misspelt_field_is_noticed(dashboard: Any) -> None:
    """The test above must be able to fail."""
    register_default_plugins()
    wrong = json.loads(json.dumps(dashboard))
    wrong["panels"][1]["options"]["cellValue"] = {"unit": "s"}
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))
    assert list(lost(wrong, read)) == ["dashboard.panels[1].options.cellValue is unknown"]


def test_panels_name_only_what_is_exported(
    check_names: Callable[[Iterable[str]], set[str]], expressions: list[str]
) -> None:
    """A panel on a metric or label that does not exist is empty, and looks like a quiet server."""
    assert check_names(expressions)


def test_every_metric_is_drawn(
    check_names: Callable[[Iterable[str]], set[str]], expressions: list[str]
) -> None:
    """What is measured and never seen might as well not be measured."""
    drawn = {re.sub("_(bucket|sum|count)$", "", name) for name in check_names(expressions)}
    assert {row.name for row in TABLE} <= drawn


def test_prometheus_parses_every_query(
    promtool: Callable[..., str], expressions: list[str], tmp_path: Path
) -> None:
    """Promtool checks a query as it checks a rule; `make compose-test` also runs them all."""
    filled = [expression.replace("$__rate_interval", "20s") for expression in expressions]
    rules = [{"record": f"panel:query:{index}", "expr": query} for index, query in enumerate(filled)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    told = promtool("check", "rules", "panels.yml", directory=tmp_path)
    assert f"{len(expressions)} rules found" in told


def test_panels_do_not_overlap(dashboard: Any) -> None:
    """Grafana would push an overlapping panel to where nobody looks for it."""
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"]
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_the_data_source_is_the_one_that_is_provisioned(grafana: Path, root: Path, dashboard: Any) -> None:
    """Names meet in four files: the dashboard, two files of provisioning and the compose file."""
    provisioning = grafana / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    providers = yaml.safe_load((provisioning / "dashboards" / "cellstream.yml").read_text())["providers"]
    compose = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    scraping = yaml.safe_load((root / "deploy" / "prometheus" / "prometheus.yml").read_text())

    chosen = dashboard["templating"]["list"][0]
    assert (chosen["name"], chosen["current"]["value"]) == ("datasource", sources[0]["uid"])
    assert sources[0]["url"] == "http://prometheus:9090"
    assert sources[0]["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    mounted = {volume.split(":")[1] for volume in compose["grafana"]["volumes"]}
    assert {providers[0]["options"]["path"], "/etc/grafana/provisioning"} <= mounted
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == providers[0]["options"]["path"] + "/cellstream.json"
