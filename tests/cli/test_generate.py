"""`cellstream generate`: prompt and text on standard output, all about them on standard error."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., Any]


def test_the_most_likely_text_is_the_models_own(
    run: Run, server: Any, many: Path, alone: Callable[[Path], Any]
) -> None:
    """At temperature 0 every token is the most likely one after all before it."""
    heard = list(b"To be")
    for _ in range(12):
        heard.append(int(np.argmax(alone(many / "tiny" / "2").after(heard).log_probabilities)))
    made = run(
        *("generate", "To be", "--max-tokens", "12", "--temperature", "0", "--json"),
        "--target",
        server.target,
    )
    assert made.code == 0
    assert [token for piece in made.json() for token in piece["ids"]] == heard[5:]
    summary = json.loads(made.err)
    assert (summary["tokens"], summary["position"], summary["finish_reason"]) == (12, 17, "length")


def test_the_same_seed_gives_the_same_text_and_the_seed_is_told(run: Run, server: Any) -> None:
    """A text worth keeping can be made again, from what standard error said."""
    first = run("generate", "ROMEO:", "--max-tokens", "40", "--target", server.target)
    assert first.code == 0
    assert first.out.startswith("ROMEO:")
    told = re.fullmatch(
        r"40 tokens \(all that was asked for\), [\d,]+ a second, [\d.]+ s; "
        r"latency p50 [\d.]+ ms, p95 [\d.]+ ms a piece; seed (\d+), position 46\.\n",
        first.err,
    )
    assert told is not None
    again = run("generate", "ROMEO:", "--max-tokens", "40", "--seed", told[1], "--target", server.target)
    assert again.out == first.out


def test_a_stop_text_ends_it_and_is_not_printed(run: Run, server: Any) -> None:
    """The text is cut exactly before it."""
    options = ("--temperature", "0", "--max-tokens", "30", "--target", server.target)
    whole = run("generate", "The", *options, "--json").json()
    text = "".join(piece["text"] for piece in whole)
    stop = text[8:10]
    made = run("generate", "The", *options, "--stop", stop)
    assert made.out == f"The{text[: text.index(stop)]}\n"
    assert "(a stop text came)" in made.err


def test_a_session_is_gone_on_with_without_a_prompt(run: Run, server: Any) -> None:
    """What the session has heard before is the prompt."""
    target = ("--target", server.target)
    run("stream", "--session", "teller", *target, given="Once upon a time")
    made = run("generate", "--session", "teller", "--max-tokens", "5", "--json", *target)
    assert json.loads(made.err)["position"] == 16 + 5


def test_the_prompt_may_come_from_standard_input(run: Run, server: Any) -> None:
    """A long prompt is a file."""
    made = run("generate", "-", "--max-tokens", "1", "--json", "--target", server.target, given="é\n")
    assert json.loads(made.err)["position"] == 3 + 1


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--max-tokens", "5"], 1, "PROMPT_EMPTY"),
        (["hi", "--model", "no"], 1, "MODEL_UNKNOWN"),
        (["hi", "--model", "tiny/7"], 1, "VERSION_UNKNOWN"),
        (["hi", "--model", "meter"], 1, "INPUT_KIND_MISMATCH"),
        (["hi", "--temperature", "-1"], 2, "Invalid value"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_words(
    run: Run, server: Any, arguments: list[str], code: int, reason: str
) -> None:
    """Nothing on standard output: it is not the model's text."""
    refused = run("generate", *arguments, "--target", server.target)
    assert (refused.code, refused.out) == (code, "")
    assert reason in refused.err
