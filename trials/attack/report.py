"""Runs attacks one after the other beside honest sessions, and tells what each cost those.

The server has one core to itself; honest clients and the attacker share the other one, the attacker at the
lowest priority. On this division the attacker's own work takes nothing from the server, and little from the
honest clients. Each attack is measured against the windows right before and after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from trials.attack.attackers import ATTACKS
from trials.attack.honest import write_reference
from trials.certificates import make_certificates
from trials.oracle import TEXT_MODEL, Oracle, write_models
from trials.server import ROOT, Server, serving

SESSIONS = 20
REFERENCE_TOKENS = 2000
WINDOW_SECONDS = 4.0
SETTLE_SECONDS = 1.5
"""From an attack's end to the look at what stays of it."""
AFTERWARDS_SECONDS = 0.5
"""So much longer than the window an attack lasts."""
RATE_LEAST = 0.5
P99_MOST = 5.0
P99_FLOOR_MS = 10.0
"""A p99 below it passes whatever its ratio: one call may hold the loop as long (`step_milliseconds_max`)."""
CALM_P99_MS = 15.0
"""Three times what the honest sessions have on a calm machine."""
TRIES_MAX = 3
OVER_TLS = ("tls_hellos",)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack did.

    Attributes:
        name: The attack.
        without: What the honest sessions had before and after it, the mean; `honest` tells the keys.
        during: What they had meanwhile.
        memory: The server's resident bytes before it, their peak, and a moment after it.
        sent: What was sent.
        heard: What was answered.
        problems: What must not be: wrong answers, a server that is gone, its mistakes in the log.
    """

    name: str
    without: dict[str, Any]
    during: dict[str, Any]
    memory: tuple[int, int, int]
    sent: int
    heard: dict[str, int]
    problems: tuple[str, ...]

    @property
    def rate_ratio(self) -> float:
        """The honest rate, relative to before."""
        return float(self.during["rate"] / self.without["rate"])

    @property
    def p99_ratio(self) -> float:
        """The honest p99, relative to before."""
        return float(self.during["p99_ms"] / self.without["p99_ms"])

    @property
    def was_calm(self) -> bool:
        """Whether the machine had time for the honest sessions when nobody attacked."""
        return float(self.without["p99_ms"]) <= CALM_P99_MS

    @property
    def is_within_goals(self) -> bool:
        """Half the rate, and five times the p99."""
        late = self.p99_ratio > P99_MOST and self.during["p99_ms"] > P99_FLOOR_MS
        return self.rate_ratio >= RATE_LEAST and not late


class Honest:
    """The process of the honest sessions.

    Args:
        server: Where they go.
        reference: The file of `write_reference`.
        authority: Whom they trust under TLS; None: no TLS.
        cores: Where they run; None: anywhere.
    """

    def __init__(
        self, server: Server, reference: Path, authority: Path | None = None, cores: set[int] | None = None
    ) -> None:
        self._process = _python(
            "trials.attack.honest", server.port, reference, authority or "", cores=cores, reads=True
        )
        _line(self._process)

    def measure(self, seconds: float) -> dict[str, Any]:
        """Look at them for so long."""
        return self._ask(f"seconds {seconds}")

    def answered(self, times: int) -> dict[str, Any]:
        """Look at them until each was answered so often, or one of them wrongly."""
        return self._ask(f"answers {times}")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return _line(self._process)

    def __enter__(self) -> Self:
        """They are open since they were made."""
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self._process.communicate()


def _python(
    module: str, *arguments: object, cores: set[int] | None, reads: bool = False
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE if reads else None,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def attack(
    server: Server, honest: Honest, name: str, seconds: float, cores: set[int] | None = None
) -> Outcome:
    """Measure the honest sessions before this attack, under it, and after it."""
    before = honest.measure(seconds)
    at_first = server.resident_bytes()
    mistakes = len(server.mistakes())
    server.reset_peak()
    arguments = (name, server.port, server.metrics_port, seconds + AFTERWARDS_SECONDS)
    with _python("trials.attack.attackers", *arguments, cores=cores) as attacker:
        _line(attacker)
        during = honest.measure(seconds)
        told = _line(attacker)
    if not server.is_up():
        memory, problems = (at_first, 0, 0), ("the server died",)
        return Outcome(name, before, during, memory, told["sent"], told["heard"], problems)
    peak = server.resident_bytes_peak()
    honest.measure(SETTLE_SECONDS)
    after = honest.measure(seconds)
    found = [*before["wrong"], *during["wrong"], *after["wrong"], *server.mistakes()[mistakes:]]
    if after["answers_least"] == 0:
        found.append("after the attack a session had no answer")
    without = {key: (before[key] + after[key]) / 2 for key in ("rate", "p50_ms", "p99_ms", "max_ms")}
    memory, problems = (at_first, peak, server.resident_bytes()), tuple(found[:5])
    return Outcome(name, without, during, memory, told["sent"], told["heard"], problems)


def split_cores() -> tuple[set[int] | None, set[int] | None]:
    """The server's core, and everybody else's; None where there is only one."""
    first, *others = sorted(os.sched_getaffinity(0))
    return ({first}, set(others)) if others else (None, None)


@contextmanager
def under_attack(
    folder: Path,
    transport: str,
    *,
    tree: Path = ROOT,
    sessions: int = SESSIONS,
    tokens: int = REFERENCE_TOKENS,
    tls: bool = False,
) -> Iterator[tuple[Server, Honest]]:
    """A server with honest sessions; they and their answers are computed once for a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    models, reference = folder / "models", folder / "reference.npz"
    if not reference.exists():
        models.mkdir()
        write_models(models)
        write_reference(reference, Oracle(models), sessions, tokens)
    certificates = make_certificates(folder) if tls else None
    settings: dict[str, object] = {"transport": transport, "default_model": TEXT_MODEL}
    if certificates:
        settings |= {"tls_cert": certificates.server_cert, "tls_key": certificates.server_key}
    own, others = split_cores()
    log = folder / f"server-{time.monotonic_ns()}.log"
    with (
        serving(models, log, tree=tree, cores=own, settings=settings) as server,
        Honest(server, reference, certificates.authority if certificates else None, others) as honest,
    ):
        honest.measure(1.0)  # the first second of a server is no measure
        yield server, honest


def run(transport: str, only: Sequence[str], tree: Path, results: Path | None, seconds: float) -> bool:
    """Run the attacks, print and write the report.

    Each has a server of its own, so that none pays for the one before.

    Returns:
        Whether every answer was right and every server lived. A missed goal is told, and is no failure.
    """
    console = Console(width=200)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        for name in only or ATTACKS:
            outcome = _one(Path(folder), transport, tree, name, seconds)
            outcomes.append(outcome)
            console.print(_sentence(outcome), markup=False)
    console.print(_table(outcomes, transport))
    if results is not None and not only:
        results.mkdir(exist_ok=True)
        (results / f"attack-{transport}.md").write_text(_page(outcomes, transport))
    return not any(outcome.problems for outcome in outcomes)


def _one(folder: Path, transport: str, tree: Path, name: str, seconds: float) -> Outcome:
    """Run an attack; again, where the machine was busy with something else, and take the calmest."""
    tries: list[Outcome] = []
    while len(tries) < TRIES_MAX and not any(outcome.was_calm for outcome in tries):
        tries.append(_try(folder, transport, tree, name, seconds))
        if tries[-1].problems:
            return tries[-1]
    return max(tries, key=lambda outcome: float(outcome.without["rate"]))


def _try(folder: Path, transport: str, tree: Path, name: str, seconds: float) -> Outcome:
    _, others = split_cores()
    try:
        with under_attack(folder, transport, tree=tree, tls=name in OVER_TLS) as (server, honest):
            return attack(server, honest, name, seconds, others)
    except (RuntimeError, BrokenPipeError, AssertionError) as error:
        nothing = {"rate": 1.0, "p50_ms": 0.0, "p99_ms": 1.0, "max_ms": 0.0}
        return Outcome(name, nothing, nothing | {"rate": 0.0}, (0, 0, 0), 0, {}, (str(error)[-300:],))


_COLUMNS = (
    "attack",
    "honest feeds/s, ratio",
    "p99 ms, without → with",
    "max ms",
    "memory MiB, before / peak / after",
    "sent",
    "the server's answers",
    "goals",
)


def _cells(outcome: Outcome) -> list[str]:
    heard = ", ".join(
        f"{what} ×{count:,}" for what, count in sorted(outcome.heard.items(), key=lambda it: -it[1])
    )
    verdict = "yes" if outcome.is_within_goals else "missed"
    return [
        outcome.name.replace("_", " "),
        f"{outcome.without['rate']:,.0f} → {outcome.during['rate']:,.0f}, {outcome.rate_ratio:.2f}",
        f"{outcome.without['p99_ms']:.1f} → {outcome.during['p99_ms']:.1f}",
        f"{outcome.during['max_ms']:.0f}",
        " / ".join(f"{size / (1 << 20):.0f}" for size in outcome.memory),
        f"{outcome.sent:,}",
        heard or "none",
        "WRONG" if outcome.problems else verdict,
    ]


def _sentence(outcome: Outcome) -> str:
    return " | ".join([*_cells(outcome), *outcome.problems])


def _table(outcomes: Sequence[Outcome], transport: str) -> Table:
    table = Table(*_COLUMNS, title=f"transport {transport}")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    return table


def _page(outcomes: Sequence[Outcome], transport: str) -> str:
    """The report as Markdown, for the documentation."""
    lines = [
        f'`transport = "{transport}"`:',
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
        *("| " + " | ".join(_cells(outcome)) + " |" for outcome in outcomes),
    ]
    return "\n".join([*lines, ""])
