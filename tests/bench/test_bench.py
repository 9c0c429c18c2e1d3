"""The bench runs, and its floor is what it says. No figure is judged here: tests share a machine."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cellstream.engine import Answer, Engine, Feed, Want
from cellstream.repository import Repository

ROOT = Path(__file__).resolve().parents[2]

ROWS = {"engine-64", "engine-256", "engine-loop", "service-8x64", "service-1x64", "service-64x1"}


@pytest.mark.timeout(100)
def test_every_row_runs_once_and_leaves_its_raw_numbers(tmp_path: Path) -> None:
    """A bench that breaks unseen is missed on the day its numbers are wanted."""
    tiny = ["--seconds", "0.05", "--warm-up", "0.02", "--pairs", "2", "--hidden-size", "16"]
    ran = subprocess.run(
        [sys.executable, "-m", "bench", *tiny, "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (file,) = tmp_path.glob("*.json")
    results = json.loads(file.read_text())

    assert set(results["rows"]) == ROWS
    for name, row in results["rows"].items():
        assert name in ran.stdout
        rates = [[run["tokens"] / run["seconds"] for run in row[side]] for side in ("ours", "floor")]
        ratios = [our / bare for our, bare in zip(*rates, strict=True)]
        assert row["ratio_median"] == pytest.approx(statistics.median(ratios))
        assert all(run["cpu_seconds"] > 0 for side in ("ours", "floor") for run in row[side])


def test_only_rows_that_begin_so_are_run(tmp_path: Path) -> None:
    """Whoever tunes one path waits for its row alone; a row that does not exist is told."""
    from bench.__main__ import main

    tiny = ["--seconds", "0.02", "--warm-up", "0.01", "--pairs", "1", "--hidden-size", "16"]
    main(["--only", "engine-l", *tiny, "--output", str(tmp_path)])
    (file,) = tmp_path.glob("*.json")
    assert set(json.loads(file.read_text())["rows"]) == {"engine-loop"}
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])


def test_the_floor_computes_what_the_engine_computes(tiny: Path) -> None:
    """The states that the floor keeps in place are read and written in one call: it must be the same work."""
    from bench.bare import Bare

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
