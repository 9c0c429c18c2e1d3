"""What `make soak` calls flat. The soak itself takes twenty minutes and is not run here."""

from __future__ import annotations

from dataclasses import replace

from trials.soak import Sample, problems

MEBIBYTE = 1 << 20
START = Sample(0.0, 120 * MEBIBYTE, 17, streams=0, sessions=0, tokens=0)


def used(*mebibytes: float) -> list[Sample]:
    """Samples under load with these memories."""
    return [
        replace(START, resident_bytes=int(each * MEBIBYTE), open_files=60, streams=30) for each in mebibytes
    ]


def test_memory_that_settles_is_flat() -> None:
    """The first quarter is warm-up."""
    assert problems([START, *used(120, 128, 130, 131, 130, 131, 130, 131), START]) == []


def test_memory_that_grows_is_told() -> None:
    """A leak of a few MiB a quarter."""
    told = problems([START, *used(120, 128, 130, 132, 135, 138, 141, 144), START])
    assert told == ["memory grew from 131.0 to 142.5 MiB"]


def test_what_stays_is_told() -> None:
    """Descriptors, streams and sessions after the last client left."""
    rest = replace(START, open_files=25, streams=1, sessions=3)
    assert problems([START, *used(120, 120, 120, 120), rest]) == [
        "17 files at the start, 25 at the end",
        "1 streams and 3 sessions stay",
    ]
