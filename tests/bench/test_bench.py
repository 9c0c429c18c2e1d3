"""The bench runs, and its floor is what it says. No figure is judged here: tests share a machine."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import fronts, page, plots, products, report
from bench.__main__ import main
from bench.bare import Bare
from bench.measure import Plan
from bench.profile import PerfFailed, by_module, by_part, check_perf, read_shares
from bench.rows import ROWS, Bench, Gauge
from bench.sweep import PANELS, Range, sweep

from cellstream.engine import Answer, Engine, Feed, Want
from cellstream.repository import Repository

ROOT = Path(__file__).resolve().parents[2]

TINY = [
    "--seconds",
    "0.05",
    "--warm-up",
    "0.02",
    "--pairs",
    "2",
    "--hidden-size",
    "16",
    "--idle-sessions",
    "60",
]


@pytest.mark.timeout(300)  # twenty seconds on two quiet cores
def test_every_row_runs_once_and_leaves_its_raw_numbers(tmp_path: Path) -> None:
    """A bench that breaks unseen is missed on the day its numbers are wanted."""
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench", *TINY, "--json", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(file.read_text())["rows"]

    able = [row for row in ROWS if row.name in rows]
    assert [row.name for row in ROWS if row not in able] in ([], ["train-bf16"])
    assert ("training.precision: bfloat16 is more" in ran.stdout) == (len(able) < len(ROWS))
    for row in able:
        assert row.name in ran.stdout
        found = rows[row.name]
        if isinstance(row, Gauge):
            assert found["median"] == statistics.median(found["values"])
            continue
        rates = [[run["tokens"] / run["seconds"] for run in found[side]] for side in ("ours", "floor")]
        ratios = [our / bare for our, bare in zip(*rates, strict=True)]
        assert found["median"] == pytest.approx(statistics.median(ratios))
        assert all(run["cpu_seconds"] > 0 for side in ("ours", "floor") for run in found[side])


def test_only_rows_that_begin_so_are_run(tmp_path: Path) -> None:
    """Whoever tunes one path waits for its row alone; a row that does not exist is told."""
    main(["--only", "engine-l", *TINY, "--json", str(tmp_path / "rows.json")])
    assert set(json.loads((tmp_path / "rows.json").read_text())["rows"]) == {"engine-loop"}
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])


@pytest.mark.timeout(300)  # twenty seconds on two quiet cores
def test_both_transports_are_measured_in_every_round(tmp_path: Path) -> None:
    """Beside the service before, which tests leave out: it needs git's history and a package index."""
    bench = Bench(
        tmp_path,
        hidden_size=16,
        idle_sessions=0,
        plan=Plan(0.02, 2, 0.01),
        opened_streams=128,
        idle_streams=96,
    )
    sides = ("grpcio", "native", "echo", "bare")
    found = fronts.compare(bench, sides, say=lambda *said, **how: None)
    assert [*found["loads"], *found["gauges"]] == list(fronts.NAMES)
    for name, load in found["loads"].items():
        assert list(load["sides"]) == [
            side for side in sides if "unary" not in name or side in fronts.SERVICES
        ]
        assert all(len(runs) == 2 and runs[0]["tokens"] > 0 for runs in load["sides"].values())
        assert set(report.ratios(load, "grpcio", "cpu_microseconds")) == {1.0}, "ratios are to the first side"
    for gauge in found["gauges"].values():
        assert set(gauge["sides"]) == {"grpcio", "native"}
    assert found["gauges"]["opened-at-once"]["sides"]["native"] == [0.0] * fronts.REFUSED_SAMPLES
    assert report.loads_markdown(found["loads"]).count("\n") == 1 + sum(
        len(load["sides"]) for load in found["loads"].values()
    )
    plots.draw_fronts(found, tmp_path / "fronts.png")
    assert (tmp_path / "fronts.png").stat().st_size > 10_000


def test_a_front_that_falls_short_is_named() -> None:
    """The goals are ratios to the first side; one that is met is not named, whatever other sides do."""

    def runs(*costs: float) -> list[dict[str, float]]:
        return [{"cpu_microseconds": cost, "p50_ms": 1.0} for cost in costs]

    load = {
        "what": "1 stream",
        "goals": {"cpu_microseconds": 0.5, "p50_ms": 1.0},
        "sides": {"before": runs(10, 20, 40), "native": runs(6, 9, 26), "grpcio": runs(99, 99, 99)},
    }
    gauge = {
        "what": "a stream",
        "unit": "B",
        "goal": 4096,
        "sides": {"before": [9e9], "native": [1.0, 2.0, 9e9]},
    }
    found: dict[str, Any] = {"loads": {"load": load}, "gauges": {"gauge": gauge}}
    assert report.ratios(load, "native", "cpu_microseconds") == [0.6, 0.45, 0.65]
    assert report.fronts_short(found) == ["1 stream, CPU (0.60 of 0.50)"]
    gauge["sides"] = {"native": [1.0, 5000.0, 9e9]}
    load["goals"] = {"cpu_microseconds": 0.6}
    assert report.fronts_short(found) == ["a stream (5,000 of 4,096)"]


def test_every_panel_of_the_sweep_is_measured_and_drawn(tmp_path: Path) -> None:
    """The same, for how cost grows."""
    bench = Bench(tmp_path, hidden_size=16, idle_sessions=10, plan=Plan(0.02, 2, 0.01))
    places = Range(sessions=(1, 4), streams=(1, 2), feeds=(1, 3), idle=(0, 10), layers=(1, 2), units=(8, 16))
    panels = sweep(bench, places, say=lambda *said, **how: None)
    assert list(panels) == list(PANELS)
    for name, panel in panels.items():
        for line in panel["lines"].values():
            assert [int(place) for place in line] == list(getattr(places, name))
            assert all(len(runs) == 2 and runs[0]["cpu_microseconds"] > 0 for runs in line.values())
    plots.draw_sweep(panels, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_without_perf_nothing_is_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would be missed after eight minutes of measuring."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # py-spy is beside it
    with pytest.raises(PerfFailed, match="Debian: linux-perf"):
        check_perf()


def test_a_profile_names_the_parts_of_a_token() -> None:
    """What perf calls a library is filed under what it does; what nobody foresaw is shown as such."""
    report = """
# Overhead       Samples  Shared Object
    50.00%           100  onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so
    25.00%            50  [kernel.kallsyms]
    20.00%            40  libpython3.11.so.1.0
     5.00%            10  libnew.so.1
"""
    shares, samples = read_shares(report)
    assert samples == 200
    parts = by_part(shares)
    assert parts["ONNX Runtime"] == 0.5
    assert parts["kernel"] == 0.25
    assert parts["Python"] == 0.2
    assert parts["other"] == 0.05
    assert sum(parts.values()) == pytest.approx(1)


def test_a_stack_is_filed_under_our_innermost_module() -> None:
    """What a library does is paid by whoever called it; threads that wait are not counted."""
    main = (
        "main (cellstream/cli/__init__.py:9);serve (cellstream/api/server.py:99);run (asyncio/runners.py:118)"
    )
    stacks = f"""
{main} 10
{main};_run (cellstream/api/engine_loop.py:50);run (onnxruntime/capi/inference.py:1) 40
{main};flush (cellstream/transport/listener.py:1);pull (cellstream/transport/grpc.py:2) 20
{main};received (cellstream/transport/http2.py:1);take (cellstream/api/predict.py:2);sum (numpy/_core.py:3) 25
run (threading.py:3);_bootstrap (threading.py:1);_run (cellstream/cli/log_writer.py:3) 1000
run (somewhere.py:3) 5
""".strip()
    shares = by_module(stacks)
    assert shares["the event loop: waiting, reading"] == 0.10
    assert shares["the engine, ONNX Runtime in it"] == 0.40
    assert shares["gRPC"] == 0.20
    assert shares["messages: parsing, checking, answering"] == 0.25
    assert shares["other"] == 0.05
    assert sum(shares.values()) == pytest.approx(1)
    assert by_module("") == {}


def test_every_way_to_store_a_weight_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each, whatever this machine makes of them."""
    monkeypatch.setattr(products, "BATCHES", (1, 2))
    monkeypatch.setattr(products, "TIMED_SECONDS", 0.001)
    products.main()
    lines = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    tried = [(level.strip(), block.strip()) for level, block in lines[1:]]
    blocks = map(str, products.BLOCKS)
    assert tried == [*itertools.product("410", blocks), ("Gemm, float32", "")]


@pytest.mark.parametrize("file", page.PAGES, ids=lambda file: file.name)
def test_the_docs_say_what_was_measured(file: Path) -> None:
    """Tables are written by `python -m bench page` from the committed results, never by hand."""
    text = file.read_text(encoding="utf-8")
    assert "<!-- bench: " in text
    assert text == page.filled(text), "run `python -m bench page`"


def test_the_floor_computes_what_the_engine_computes(tiny: Path) -> None:
    """The states that the floor keeps in place are read and written in one call: it must be the same work."""
    (version,) = Repository(tiny).load_all()
    tokens = np.random.default_rng(0).integers(0, 256, (3, 4))
    bare = Bare(version, tokens)
    bare.step()
    bare.step()

    engine = Engine(version, slots_max=4, batch_rows_max=4, step_milliseconds_max=10.0)
    found: dict[int, np.ndarray] = {}
    answer = Answer(want=Want.LAST, top_k=0, log_probabilities=True)
    for row in range(4):
        slot = engine.take_slot()
        feed = Feed(
            slot,
            [*tokens[:, row].tolist()] * 2,
            answer,
            lambda feed, progress: found.__setitem__(feed.slot, progress.outputs["log_probabilities"][0]),
            0.0,
        )
        engine.submit(feed)
    while engine.turn() is not None:
        pass
    np.testing.assert_array_equal(bare.outputs[0][-1], np.stack([found[slot] for slot in range(4)]))
