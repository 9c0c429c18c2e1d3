"""`make compose-test`: the real Dockerfile and docker-compose.yml, up, used, watched, stopped, down.

What is shown, each with its figure: the image builds and becomes healthy; it has no torch, no right to write
and no privilege; named sessions go on through the published port, and a model generates; Prometheus scrapes
every token, has the p99 that the dashboard plots and data for every query of every panel, and has loaded the
alerts; SIGTERM with an open stream ends in a clean exit within the drain; an alert notices that it is gone.

Ports are any free ones, and the project has a name of its own, so a deployment beside it is not touched.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from docker_engine import compose_command, ensure_images, run, running_engine, until

from cellstream import Client

ROOT = Path(__file__).parents[1]
SCRATCH = ROOT / ".make"
PROJECT = "cellstream-compose-test"
ANY_FREE_PORT = "127.0.0.1:0"
UP_SECONDS_MAX = 300
PANELS_SECONDS_MAX = 90.0
SCRAPE_SECONDS_MAX = 20.0
ALERT_SECONDS_MAX = 45.0
PLOTTED_P99 = ("Feed latency", "p99")

ALICE, BOB = "To be, or not to be, that is the question. ", "Now is the winter of our discontent. "
PROMPT, GENERATED_TOKENS = "ROMEO:\n", 40

COUNT_WITHOUT_BYTECODE = """
from pathlib import Path
modules = Path("/opt/cellstream/lib").rglob("*.py")
print(sum(not list(module.parent.glob(f"__pycache__/{module.stem}.*.pyc")) for module in modules))
"""


class Compose:
    """The compose file under test, as commands."""

    def __init__(self, command: list[str]) -> None:
        self._command = [*command, "--project-name", PROJECT]
        published = ("CELLSTREAM_PUBLISH", "PROMETHEUS_PUBLISH", "GRAFANA_PUBLISH")
        self._environment = os.environ | dict.fromkeys(published, ANY_FREE_PORT)

    def __call__(self, *words: str) -> str:
        """Run a command of compose and return what it said."""
        return run(*self._command, *words, cwd=ROOT, env=self._environment).stdout.strip()

    def address(self, service: str, port: int) -> str:
        """Where a port of a service is published."""
        return self("port", service, str(port))

    def inspect(self, service: str, template: str) -> str:
        """A fact about a service's container, running or not."""
        container = self("ps", "--all", "--quiet", service)
        return run("docker", "inspect", "--format", template, container).stdout.strip()

    def inside(self, *words: str) -> str | None:
        """What a command in the server's container says, or None if it fails."""
        container = self("ps", "--quiet", "cellstream")
        done = run("docker", "exec", container, *words, check=False)
        return done.stdout.strip() if done.returncode == 0 else None


class Prometheus:
    """Prometheus's API."""

    def __init__(self, address: str) -> None:
        self._root = f"http://{address}/api/v1/"

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer."""
        url = f"{self._root}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """A query's first value now; None if it has none."""
        result = self.ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def plots(self, query: str) -> bool:
        """Whether a panel with this query would show anything of the last minute."""
        now = time.time()
        series = self.ask("query_range", query=query, start=now - 60, end=now, step=5)["result"]
        return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


def panel_queries() -> dict[tuple[str, str], str]:
    """Every query of the dashboard by its panel's title and its legend, as Grafana would send it."""
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/cellstream.json").read_text())
    filled = {"$__rate_interval": "20s", "$model": ".*", "$version": ".*"}
    queries = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for variable, value in filled.items():
                query = query.replace(variable, value)
            queries[panel["title"], target["legendFormat"]] = query
    return queries


def passed(text: str) -> None:
    """Say that something holds."""
    print(f"  ok  {text}", flush=True)


def require(holds: object, text: str) -> None:
    """Say that something holds, or end the test.

    Raises:
        SystemExit: It does not.
    """
    if not holds:
        raise SystemExit(f"  FAILED  {text}")
    passed(text)


def look_inside(compose: Compose) -> None:
    """The image and the container keep to what they may have."""
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", _server_image()).stdout)
    base = int(run("docker", "image", "inspect", "--format", "{{.Size}}", _base_image()).stdout)
    passed(f"image {size / 1e6:.0f} MB, of which {(size - base) / 1e6:.0f} MB above its base")
    require(compose.inside("id", "-u") == "10001", "runs as user 10001")
    require(compose.inside("touch", "/opt/cellstream/x") is None, "cannot write to its root")
    find = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'pip') if u.find_spec(n)])"
    require(compose.inside("/opt/cellstream/bin/python", "-c", find) == "[]", "has no torch, onnx or pip")
    status = compose.inside("cat", "/proc/1/status") or ""
    require(re.search(r"CapEff:\s+0+\n", status), "has no capability")
    require(re.search(r"NoNewPrivs:\s+1\n", status), "can gain no privilege")
    require(compose.inside("python", "-c", COUNT_WITHOUT_BYTECODE) == "0", "every module has its bytecode")
    before = time.monotonic()
    require(compose.inside("cellstream", "health") is not None, "`cellstream health` says SERVING")
    passed(f"which took {time.monotonic() - before:.2f} s, docker exec included")


async def use(target: str, prometheus: Prometheus) -> None:
    """Feed and generate until every panel has data; Prometheus has counted every token."""
    queries = panel_queries()
    tokens, rounds, empty = 0, 0, dict(queries)
    deadline = time.monotonic() + PANELS_SECONDS_MAX
    async with Client(target) as client:
        while empty and time.monotonic() < deadline:
            # Opened anew each round: a named session goes on after it was let go of.
            async with client.session("alice") as alice, client.session("bob") as bob:
                replies = await asyncio.gather(alice.predict(ALICE), bob.predict(BOB))
            rounds += 1
            positions = [reply.position for reply in replies]
            if positions != [rounds * len(ALICE), rounds * len(BOB)]:
                raise SystemExit(f"Round {rounds}: the sessions stand at {positions}.")
            text, position = "", 0
            async for piece in client.generate(PROMPT, max_tokens=GENERATED_TOKENS):
                text, position = text + piece.text, piece.position
            tokens += len(ALICE) + len(BOB) + position
            empty = {name: query for name, query in queries.items() if not prometheus.plots(query)}
            await asyncio.sleep(0.5)
        require(not empty, f"all {len(queries)} queries of the dashboard return data; without: {list(empty)}")
        passed(f"two named sessions went on through {rounds} streams, positions {positions}")
        passed(f"generated {text!r}")
    total = "sum(cellstream_tokens_total)"
    until(f"{total} is {tokens}", SCRAPE_SECONDS_MAX, lambda: prometheus.value(total) == tokens)
    passed(f"Prometheus counts {tokens} tokens, as the positions do")


def watch(prometheus: Prometheus) -> None:
    """Prometheus has the p99, the target and the alerts."""
    (query,) = (
        query
        for (title, legend), query in panel_queries().items()
        if title == PLOTTED_P99[0] and legend.startswith(PLOTTED_P99[1])
    )
    p99 = prometheus.value(query)
    require(
        p99 is not None and 0 < p99 < 1,
        f"p99 of a feed as the dashboard plots it: {1000 * (p99 or 0):.2f} ms",
    )
    targets = prometheus.ask("targets")["activeTargets"]
    require([target["health"] for target in targets] == ["up"], "the one target is up")
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    states = {rule["name"]: (rule["health"], rule["state"]) for rule in rules}
    require(
        len(states) == 3 and set(states.values()) == {("ok", "inactive")},
        f"alerts, all quiet: {list(states)}",
    )


async def stop(compose: Compose, target: str, prometheus: Prometheus) -> None:
    """SIGTERM with an open stream: a clean exit within the drain, and an alert."""
    async with Client(target) as client:
        session = client.session("alice", mode="attach")
        await session.predict(ALICE)
        before = time.monotonic()
        await asyncio.to_thread(compose, "stop", "cellstream")
        seconds = time.monotonic() - before
    code = compose.inspect("cellstream", "{{.State.ExitCode}}")
    require(code == "0" and seconds < 12, f"SIGTERM with an open stream: exit {code} after {seconds:.1f} s")
    query = 'ALERTS{alertname="CellstreamDown"}'
    until("CellstreamDown notices", ALERT_SECONDS_MAX, lambda: prometheus.value(query) is not None)
    passed("the alert CellstreamDown notices")


def _server_image() -> str:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return str(services["cellstream"]["image"])


def _base_image() -> str:
    return str(re.findall(r"(?m)^FROM (\S+)", (ROOT / "Dockerfile").read_text())[-1])


def main() -> None:
    """Run it all; the first thing that does not hold ends it, with the containers' logs."""
    SCRATCH.mkdir(exist_ok=True)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    with running_engine(SCRATCH / "dockerd.log"):
        before = time.monotonic()
        compose = Compose(compose_command(SCRATCH / "compose"))
        others = [service["image"] for service in services.values() if "build" not in service]
        stand_ins = ensure_images([_base_image(), *others])
        passed(f"images after {time.monotonic() - before:.0f} s; stand-ins: {stand_ins or 'none'}")
        try:
            before = time.monotonic()
            compose("up", "--build", "--detach", "--wait", "--wait-timeout", str(UP_SECONDS_MAX))
            passed(f"built, up and healthy after {time.monotonic() - before:.0f} s")
            target = compose.address("cellstream", 50051)
            prometheus = Prometheus(compose.address("prometheus", 9090))
            look_inside(compose)
            asyncio.run(use(target, prometheus))
            watch(prometheus)
            asyncio.run(stop(compose, target, prometheus))
        except BaseException:
            print(compose("ps", "--all"), compose("logs", "--tail", "40"), sep="\n", flush=True)
            raise
        finally:
            compose("down", "--volumes", "--timeout", "5")
        passed("down")


if __name__ == "__main__":
    main()
