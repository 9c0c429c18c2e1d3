"""The command: chooses rows, runs them, prints a table and keeps the raw numbers."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from bench.measure import Comparison, compare
from bench.processes import ROOT
from bench.rows import ROWS, SEED, Row
from cellstream.testing import write_model


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what was asked for."""
    given = _parse(arguments)
    rows = [row for row in ROWS if not given.only or row.name.startswith(tuple(given.only))]
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **report.machine(),
        "layers": 2,
        "hidden_size": given.hidden_size,
        "seed": SEED,
        "pairs": given.pairs,
        "seconds": given.seconds,
        "warm_up_seconds": given.warm_up,
    }
    print(report.heading(about), flush=True)
    measured: list[tuple[Row, Comparison]] = []
    with tempfile.TemporaryDirectory() as directory:
        models = write_model(
            Path(directory), name="bench", hidden_size=given.hidden_size, embedding_size=64, seed=SEED
        )
        for row in rows:
            print(f"... {row.what}", flush=True)
            with row.sides(models) as (ours, floor):
                comparison = compare(
                    ours, floor, pairs=given.pairs, seconds=given.seconds, warm_up_seconds=given.warm_up
                )
            measured.append((row, comparison))
    print("\n" + report.table(measured) + "\n\n" + report.legend(rows))
    given.output.mkdir(parents=True, exist_ok=True)
    file = given.output / f"{about['date'].replace(':', '')}.json"
    results = {
        row.name: {"what": row.what, "against": row.against, "goal": row.goal, **comparison.to_json()}
        for row, comparison in measured
    }
    file.write_text(json.dumps({**about, "rows": results}, indent=1) + "\n", encoding="utf-8")
    print(f"\nraw numbers: {file}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = ", ".join(row.name for row in ROWS)
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures what serving costs.")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help=f"only rows whose name begins so; of {names}"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--pairs", type=int, default=9, help="measurements of each side (default: 9)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds, for each side (default: 3)")
    parser.add_argument("--hidden-size", type=int, default=256, help="units of a layer (default: 256)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench" / "results", help="directory of the raw numbers"
    )
    given = parser.parse_args(arguments)
    if given.only and not any(row.name.startswith(tuple(given.only)) for row in ROWS):
        parser.error(f"no row begins with {' or '.join(given.only)}; the rows are {names}")
    return given


if __name__ == "__main__":
    main()
