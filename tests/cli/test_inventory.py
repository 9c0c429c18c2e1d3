"""What there is: models and sessions of a server, its health, and models on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_health_is_0_only_when_serving(run: Run, server: Any) -> None:
    """Compose files and scripts look at nothing but the code."""
    asked, as_json = run("health", server.target), run("health", server.target, "--json")
    assert (asked.code, asked.out, asked.err) == (0, "SERVING\n", "")
    assert as_json.json() == [{"target": server.target, "status": "SERVING"}]
    assert run("health", "127.0.0.1:1").code == 1


def test_health_gives_up_in_time(run: Run) -> None:
    """A server that hangs is not healthy; 192.0.2.1 is nobody's (TEST-NET-1)."""
    asked = run("health", "192.0.2.1:50051", "--timeout", "0.2")
    assert asked.code == 1
    assert "(CONNECTION_LOST)" in asked.err


def test_models_lists_every_version(run: Run, server: Any) -> None:
    """Names as other commands take them, and the default marked."""
    listed = run("models", "--target", server.target)
    assert listed.code == 0
    heading, *lines = (line.split() for line in listed.out.splitlines())
    assert heading[:3] == ["model", "takes", "state"]
    assert [line[0] for line in lines] == ["letters/1", "meter/1", "tiny/2", "tiny/1"]
    assert [line[0] for line in lines if line[1] == "*"] == ["tiny/2"]

    models = run("models", "--json", "--target", server.target).json()
    by_name = {f"{model['name']}/{model['version']}": model for model in models}
    assert by_name["tiny/2"]["vocabulary_size"] == 256
    assert by_name["meter/1"]["input_kind"] == "values"
    assert [state["name"] for state in by_name["tiny/1"]["states"]] == ["hidden", "cell"]


def test_sessions_are_listed_shown_and_ended(run: Run, server: Any) -> None:
    """An operator's whole day with sessions: which are there, how is this one, end it."""
    run("stream", "--session", "alice", "--target", server.target, given="12345")
    shown = run("sessions", "alice", "--json", "--target", server.target).json()[0]
    assert (shown["model"], shown["version"], shown["position"], shown["held"]) == ("tiny", "2", 5, False)

    listed = run("sessions", "--target", server.target)
    assert shown["session_hash"] in listed.out
    assert "alice" not in listed.out
    assert shown in [
        {**session, "idle_seconds": shown["idle_seconds"]}
        for session in run("sessions", "--json", "--target", server.target).json()
    ]

    ended = run("sessions", "alice", "--close", "--target", server.target)
    assert (ended.code, ended.out) == (0, "The session had absorbed 5 tokens; it has ended.\n")
    again = run("sessions", "alice", "--target", server.target)
    assert again.code == 1
    assert again.err.endswith("(SESSION_CLOSED)\n")


def test_a_long_list_is_cut_and_says_so(run: Run, server: Any) -> None:
    """A hundred thousand sessions should not run through a terminal by accident."""
    for name in ("one", "two"):
        run("stream", "--session", name, "--target", server.target, given="x")
    cut = run("sessions", "--limit", "1", "--target", server.target)
    assert len(cut.out.splitlines()) == 2
    assert "more than 1" in cut.err


def test_closing_needs_a_name(run: Run) -> None:
    """Wrong use, not a failure; and certainly not: close all."""
    refused = run("sessions", "--close")
    assert refused.code == 2
    assert "which session?" in refused.err


def test_inspect_shows_what_a_model_says_of_itself(run: Run, many: Path) -> None:
    """Signature, states and digests, in words; the highest version unless told."""
    shown = run("inspect", "tiny", "--models", str(many))
    assert (shown.code, shown.err) == (0, "")
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[0] == f"tiny/2 in {many}/tiny/2"
    assert "State of a session, 256 bytes" in lines  # 2 states × 2 layers × 16 units × 4 bytes
    assert "hidden float32 [2, 16], from hidden to hidden_next, 0 before the first token" in lines
    assert "takes tokens: int64 [time, batch], one of 256 tokens; tokenizer.json makes them" in lines
    assert "answers log_probabilities: float32 [time, batch, 256]" in lines
    assert "shows forget: float32 [time, batch, 2, 16]" in lines


def test_inspect_as_json_is_the_manifest(run: Run, many: Path) -> None:
    """The same that serving reads, with its digest."""
    told = run("inspect", "meter/1", "--models", str(many), "--json").json()[0]
    assert told["manifest"] == json.loads((many / "meter" / "1" / "manifest.json").read_text())
    assert len(told["manifest_digest"]) == 64


@pytest.mark.parametrize(
    ("model", "reason"),
    [("tiny/9", "VERSION_UNKNOWN"), ("tiny/x", "VERSION_UNKNOWN"), ("no", "MODEL_UNKNOWN")],
)
def test_inspect_says_what_there_is_instead(run: Run, many: Path, model: str, reason: str) -> None:
    """A wrong name is answered with the right ones."""
    refused = run("inspect", model, "--models", str(many))
    assert refused.code == 1
    assert refused.err.endswith(f"({reason})\n")


def test_inspect_verifies_first(run: Run, many: Path, tmp_path: Path) -> None:
    """What is shown is what would be served: a changed file is told, not shown."""
    version = tmp_path / "models" / "tiny" / "1"
    version.mkdir(parents=True)
    for file in (many / "tiny" / "1").iterdir():
        (version / file.name).write_bytes(file.read_bytes())
    weights = version / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    refused = run("inspect", "tiny", "--models", "models")
    assert refused.code == 1
    assert "weights.bin" in refused.err
    assert refused.err.endswith("(DIGEST_MISMATCH)\n")
