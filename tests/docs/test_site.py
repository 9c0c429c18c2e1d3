"""The documentation as a reader gets it: built strictly, nothing from elsewhere, nothing left over."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from docs.figures import tables
from docs.figures.hook import PLACE
from docs.figures.reading import GUIDE, MODELS, ROOT, SENTENCE, Reader, in_rows

from cellstream.repository.repository import Repository
from cellstream.testing import running_server

PAGES = sorted(GUIDE.glob("*.md"))
TEXTS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


class _Loads(HTMLParser):
    """Collects what a browser would load by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") != "canonical":
            self.addresses.append(given.get("href") or "")


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Broken links and anchors fail the build; fonts and scripts of strangers would fail without internet."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_quiet(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loads = _Loads()
        text = page.read_text(encoding="utf-8")
        loads.feed(text)
        assert [one for one in loads.addresses if re.match(r"(https?:)?//", one)] == [], page
        assert not PLACE.search(text), page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def _quiet() -> dict[str, str]:
    return {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


def test_every_figure_is_shown_and_every_shown_figure_is_there() -> None:
    """No picture is left over when a page changes."""
    assert set(re.findall(r"\(figures/([\w-]+\.svg)\)", TEXTS)) == {
        path.name for path in (GUIDE / "figures").iterdir()
    }


def test_figures_are_small() -> None:
    """Under 150 KB each: a page opens at once on a slow line."""
    sizes = {path.name: path.stat().st_size for path in (GUIDE / "figures").iterdir()}
    assert max(sizes.values()) < 150_000, sizes


def test_every_number_and_table_is_used() -> None:
    """What the scripts write and no page shows is dead."""
    values = json.loads((tables.GENERATED / "values.json").read_text(encoding="utf-8"))
    kept = {name for name in values if name.endswith("_digest")}  # for the next test
    assert set(PLACE.findall(TEXTS)) == set(values) - kept
    included = set(re.findall(r'--8<-- "([\w-]+\.\w+)"', TEXTS)) | {"values.json"}
    assert included == {path.name for path in tables.GENERATED.iterdir()}


@pytest.mark.parametrize(("prefix", "model"), [("lstm", "shakespeare-lstm"), ("rnn", "shakespeare-rnn")])
def test_the_guide_is_of_the_shipped_models(prefix: str, model: str) -> None:
    """A new version of a model makes the guide's numbers old: then run `make figures`."""
    values = json.loads((tables.GENERATED / "values.json").read_text(encoding="utf-8"))
    assert values[f"{prefix}_digest"] == Repository(MODELS).load(model).manifest_digest, "run `make figures`"


def test_a_reader_gets_what_a_session_gets(tiny: Path) -> None:
    """States and gates of a trace obey the equations, computed here from the gates alone."""
    reader = Reader(Repository(tiny).load("tiny"))
    trace = reader.trace("To be, or not")
    gates = trace.gates
    cell = np.zeros_like(trace.states["cell"][0])
    for step in range(len(trace.text)):
        cell = gates["forget"][step] * cell + gates["input"][step] * gates["candidate"][step]
        np.testing.assert_allclose(trace.states["cell"][step], cell, atol=1e-6)
        np.testing.assert_allclose(
            trace.states["hidden"][step], gates["output"][step] * np.tanh(cell), atol=1e-6
        )
    np.testing.assert_allclose(np.exp(trace.log_probabilities).sum(-1), 1, atol=1e-5)


def test_rows_of_a_text_are_its_stretches_and_each_place_counts_once() -> None:
    """Put in order, the counted places are the text behind the first warm-up."""
    text = "".join(chr(65 + place % 26) for place in range(1007))
    tokens, places = in_rows(text, rows=4, warm_up=7)
    assert sorted(places.flat) == list(range(7, 1007))
    for row in range(4):
        first = places[0, row]
        assert bytes(tokens[:, row].astype(np.uint8)).decode() == text[first - 7 : first + 250]


async def test_the_server_shows_the_numbers_of_the_guide() -> None:
    """`docs/guide/follow.py` against a real server prints the table that the guide shows."""
    values = json.loads((tables.GENERATED / "values.json").read_text(encoding="utf-8"))
    table = (tables.GENERATED / "one-cell.md").read_text(encoding="utf-8").splitlines()[2:]
    expected = [[float(cell) for cell in line.split("|")[2:-1]] for line in table]
    cell = ("--layer", values["line_layer"], "--unit", values["line_unit"])
    async with running_server(MODELS, default_model="shakespeare-lstm") as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(GUIDE / "follow.py"), *cell, "--target", server.target,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
    assert process.returncode == 0
    printed = [[float(number) for number in line.split()[-6:]] for line in output.decode().splitlines()[1:]]
    assert len(printed) == len(SENTENCE) == len(expected)
    # Rounded to two places on either side, by the kernels of whichever CPU.
    np.testing.assert_allclose(printed, expected, atol=0.011)
