"""A run that ends too early goes on, onto the same curve, and nothing that it had is lost unasked."""

from __future__ import annotations

import io
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellstream.cells.checkpoint import load_checkpoint
from cellstream.cells.threads import threads_set
from cellstream.errors import TrainingFailed
from cellstream.training import Stopped, train
from cellstream.training.learner import Learner
from cellstream.training.preflight import claimed
from cellstream.training.run import Run
from cellstream.training.saves import Saves

Clock = Callable[[], float]

FAST = {"training.tokens": 3840, "training.evaluations": 3, "training.save_minutes": 0}
"""Thirty updates, each saved."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where runs go."""
    return tmp_path / "runs"


def told(console: Console) -> str:
    """All that was printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def broken_off(
    recipe_path: Path, runs: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Trains, and ends after some updates by what `meanwhile` does in the middle of the next one."""

    def break_off(updates: int, meanwhile: Callable[[], None], **more: Any) -> None:
        learn, done = Learner.learn, iter(range(10_000))

        def learn_or_not(self: Learner, *arguments: Any) -> Any:
            if next(done) == updates:
                meanwhile()
            return learn(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "learn", learn_or_not)
            train(recipe_path, runs_directory=runs, console=console, **{"overrides": FAST, **more})

    return break_off


def interrupt() -> None:
    """What a second Ctrl-C does: nothing is waited for."""
    raise KeyboardInterrupt


def kept(directory: Path) -> dict[str, Any]:
    """All of a run's last save, without what a clock put there."""
    content, damages = Saves(directory / "saves").read()
    assert not damages
    for name in ("seconds", "stretch_seconds"):
        del content["progress"][name]
    for one in (*content["history"]["training"], *content["history"]["validation"]):
        for name in ("seconds", "wall_time", "tokens_per_second"):
            one.pop(name, None)
    del content["best"]["record"]["metrics"]["seconds"]
    return content


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    """Bit for bit, with the place of the first difference."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for at, value in enumerate(expected):
            assert_equal(found[at], value, f"{place}[{at}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[[Path], Path]) -> dict[str, Any]:
    """How the run of `FAST` ends if nothing comes between."""
    folder = tmp_path_factory.mktemp("whole")
    console = Console(file=io.StringIO())
    with threads_set(1):
        train(write_recipe(folder), runs_directory=folder, console=console, overrides=FAST)
    return kept(folder / "tale")


@pytest.mark.timeout(300)  # ten seconds of work, on a machine that may have others to do
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_been(recipe_path: Path, runs: Path) -> None:
    """SIGKILL between any two steps of a save, of a checkpoint and of an update, and at random moments.

    Weights, both moments, states, dice, history, samples, best checkpoint: the same bits.
    """
    recipe_path.write_text(
        recipe_path.read_text().replace("12_800", "3840") + "save_minutes = 0\n", encoding="utf-8"
    )
    driver = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, driver, recipe_path, runs, "4"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3, "kills must hit"
    assert_equal(kept(runs / "killed" / "tale"), kept(runs / "whole" / "tale"))
    weights = [load_checkpoint(runs / name / "tale" / "checkpoint").weights for name in ("killed", "whole")]
    assert all((weights[0][name] == weight).all() for name, weight in weights[1].items())
    left = {path.name for path in (runs / "killed" / "tale").iterdir() if "checkpoint-" not in path.name}
    assert left == {".lock", "checkpoint", "log.jsonl", "saves", "tensorboard"}
    assert len(list((runs / "killed" / "tale").glob(".checkpoint-*"))) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"training.averaging": 0.9, "training.recurrent_dropout": 0.3, "training.optimizer": "muon"},
        {"model.cell": "gru", "training.precision": "bfloat16", "training.output_dropout": 0.2},
        {"model.cell": "rnn", "training.locked_dropout": True, "training.embedding_dropout": 0.1},
    ],
    ids=["average and muon", "gru in bfloat16", "rnn and locked dropout"],
)
def test_every_way_of_learning_goes_on_onto_the_same_curve(
    recipe_path: Path, runs: Path, console: Console, broken_off: Callable[..., None], more: dict[str, Any]
) -> None:
    """Averages, masks, and other optimisers' moments are part of how a run stands."""
    overrides = FAST | more
    with pytest.raises(KeyboardInterrupt):
        broken_off(17, interrupt, overrides=overrides)
    train(recipe_path, runs_directory=runs, console=console, overrides=overrides, resume=True)
    train(recipe_path, runs_directory=runs / "whole", console=console, overrides=overrides)
    assert_equal(kept(runs / "tale"), kept(runs / "whole" / "tale"))


def damaged(content: bytes, how: str) -> bytes:
    """What a disk may give back in place of what it was given."""
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"cut": content[:-1], "flipped": flipped, "empty": b"", "foreign": b"PK\x03\x04 else"}[how]


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_save_is_seen_and_the_one_before_is_given(tmp_path: Path, how: str) -> None:
    """A disk can lose what it said it had written; the next save takes the damaged one away."""
    saves = Saves(tmp_path)
    for updates in (98, 99, 100):
        saves.write(updates, {"updates": updates, "weights": torch.full((1000,), float(updates))})
    before, newest = sorted(tmp_path.iterdir())
    assert [path.name for path in (before, newest)] == ["000000000099.save", "000000000100.save"]
    newest.write_bytes(damaged(newest.read_bytes(), how))
    content, (damage,) = saves.read()
    assert content["updates"] == 99
    assert torch.equal(content["weights"], torch.full((1000,), 99.0))
    assert damage.startswith(f"{newest} is damaged: ")
    saves.write(99, content)
    assert sorted(tmp_path.iterdir()) == [before]


@pytest.mark.parametrize(
    ("how", "why"), [("folder", "Is a directory"), ("mem", "Input/output error")], ids=["open", "read"]
)
def test_a_save_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path, how: str, why: str) -> None:
    """It may be whole: going on from the one before would take it away, and what was learned with it."""
    saves = Saves(tmp_path)
    for updates in (99, 100):
        saves.write(updates, {"updates": updates})
    newest = tmp_path / "000000000100.save"
    newest.unlink()
    if how == "folder":
        newest.mkdir()
    else:
        newest.symlink_to("/proc/self/mem")  # opens, and fails to be read at its begin as a bad disk does
    with pytest.raises(TrainingFailed, match=f"{newest} cannot be read: {why}"):
        saves.read()
    assert newest.exists()


def test_a_run_with_a_damaged_save_goes_on_from_the_one_before(
    recipe_path: Path, runs: Path, console: Console, broken_off: Callable[..., None], whole: dict[str, Any]
) -> None:
    """And says so; the end is the same."""
    with pytest.raises(KeyboardInterrupt):
        broken_off(17, interrupt)
    newest = runs / "tale" / "saves" / "000000000017.save"
    newest.write_bytes(damaged(newest.read_bytes(), "flipped"))
    train(recipe_path, runs_directory=runs, console=console, overrides=FAST, resume=True)
    assert f"{newest} is damaged: its bytes do not have the SHA-256" in told(console)
    assert "Going on from token 2,048" in told(console)
    assert_equal(kept(runs / "tale"), whole)


def test_nothing_whole_is_said_with_the_way_out(
    recipe_path: Path, runs: Path, console: Console, broken_off: Callable[..., None]
) -> None:
    """Beginning anew in silence would pass for going on."""
    with pytest.raises(KeyboardInterrupt):
        broken_off(3, interrupt)
    for save in (runs / "tale" / "saves").iterdir():
        save.write_bytes(save.read_bytes()[:50])
    with pytest.raises(TrainingFailed, match=r"3\.save is damaged.*2\.save is damaged.*--restart"):
        train(recipe_path, runs_directory=runs, console=console, overrides=FAST, resume=True)


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({"training.learning_rate": 0.5}, "", r"training\.learning_rate was 0\.02, is 0\.5\. Put that back"),
        ({"seed": 4}, "", r"seed was 3, is 4"),
        ({"model.dropout": 0}, "", r"model\.dropout was 0\.1, is 0\.0"),
        ({}, "More. ", r"the SHA-256 of the text 'training' was '\w+', is '\w+'"),
    ],
)
def test_another_recipe_or_text_is_refused_by_name(
    recipe_path: Path,
    runs: Path,
    console: Console,
    broken_off: Callable[..., None],
    changes: dict[str, object],
    text: str,
    message: str,
) -> None:
    """Half of one curve and half of another would be called by the second's name."""
    with pytest.raises(KeyboardInterrupt):
        broken_off(3, interrupt)
    path = recipe_path.with_name("tale.txt")
    path.write_text(text + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(TrainingFailed, match=message):
        train(recipe_path, runs_directory=runs, console=console, overrides=FAST | changes, resume=True)
    saved, _ = Saves(runs / "tale" / "saves").read()
    assert saved["progress"]["updates"] == 3


def test_how_often_a_run_is_saved_and_where_its_text_lies_may_change(
    recipe_path: Path, runs: Path, console: Console, broken_off: Callable[..., None]
) -> None:
    """They change nothing that is learned."""
    with pytest.raises(KeyboardInterrupt):
        broken_off(3, interrupt)
    recipe_path.with_name("tale.txt").rename(recipe_path.with_name("other.txt"))
    changes = {"data.text": "other.txt", "training.save_minutes": 5.0}
    train(recipe_path, runs_directory=runs, console=console, overrides=FAST | changes, resume=True)
    assert "Going on from token 384," in told(console)


def test_an_unfinished_run_is_not_destroyed_unasked(
    recipe_path: Path, runs: Path, console: Console, broken_off: Callable[..., None]
) -> None:
    """The half hour before must not go because somebody forgot a flag; --restart says that it may."""
    with pytest.raises(KeyboardInterrupt):
        broken_off(17, interrupt)
    with pytest.raises(TrainingFailed, match=r"unfinished run \(token 2,176, .*--resume.*--restart"):
        train(recipe_path, runs_directory=runs, console=console, overrides=FAST)
    train(recipe_path, runs_directory=runs, console=console, overrides=FAST | {"seed": 4}, restart=True)
    saved, _ = Saves(runs / "tale" / "saves").read()
    assert saved["progress"]["is_finished"]
    assert saved["identity"]["seed"] == 4


def test_a_finished_run_says_so_and_may_be_followed_by_another(
    recipe_path: Path, runs: Path, console: Console
) -> None:
    """A script may call --resume until it returns; the second call costs nothing and changes nothing."""
    directory = train(recipe_path, runs_directory=runs, console=console, overrides=FAST, resume=True)
    assert "There is no run to go on with" in told(console)
    files = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    assert train(recipe_path, runs_directory=runs, console=console, overrides=FAST, resume=True) == directory
    assert "This run is finished" in told(console)
    assert {
        path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file() and path.name != ".lock"
    } == {path: time for path, time in files.items() if path.name != ".lock"}
    train(recipe_path, runs_directory=runs, console=console, overrides=FAST | {"seed": 4})
    assert load_checkpoint(directory).record.metrics["tokens_seen"] == 3840


def test_a_run_killed_while_it_is_measured_is_measured(
    recipe_path: Path, runs: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning is over, so nothing is learned again."""
    with monkeypatch.context() as patch:
        patch.setattr("cellstream.training.loop.write_card", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            train(recipe_path, runs_directory=runs, console=console, overrides=FAST)
    assert "heldout_bits_per_character" not in load_checkpoint(runs / "tale" / "checkpoint").record.metrics
    monkeypatch.setattr(Learner, "learn", None)
    directory = train(recipe_path, runs_directory=runs, console=console, overrides=FAST, resume=True)
    assert "heldout_bits_per_character" in load_checkpoint(directory).record.metrics


def test_minutes_count_what_was_spent_before(
    recipe_path: Path,
    runs: Path,
    console: Console,
    broken_off: Callable[..., None],
    ticking_clock: Callable[[float], Clock],
) -> None:
    """Else a run that is killed every hour would never end."""
    overrides = FAST | {"training.tokens": 10**6, "training.minutes": 0.5}
    with pytest.raises(KeyboardInterrupt):
        broken_off(20, interrupt, overrides=overrides, clock=ticking_clock(0.25))
    saved, _ = Saves(runs / "tale" / "saves").read()
    spent = saved["progress"]["seconds"]
    assert 5 < spent < 29
    directory = train(
        recipe_path,
        runs_directory=runs,
        console=console,
        overrides=overrides,
        resume=True,
        clock=ticking_clock(0.25),
    )
    metrics = load_checkpoint(directory).record.metrics
    assert metrics["seconds"] == pytest.approx(30, abs=1.5)
    again, _ = Saves(runs / "tale" / "saves").read()
    seconds = [point["seconds"] for point in again["history"]["training"]]
    assert seconds == sorted(seconds)


def test_log_and_tensorboard_have_each_point_once(
    recipe_path: Path, runs: Path, console: Console, broken_off: Callable[..., None]
) -> None:
    """What was learned twice must not be drawn twice."""
    overrides = FAST | {"training.save_minutes": 60}  # only evaluations save: much is learned again
    for updates in (25, 8):
        with pytest.raises(KeyboardInterrupt):
            broken_off(updates, interrupt, overrides=overrides, resume=True)
    train(recipe_path, runs_directory=runs, console=console, overrides=overrides, resume=True)
    log = [json.loads(line) for line in (runs / "tale" / "log.jsonl").read_text().splitlines()]
    assert [one["tokens_seen"] for one in log] == [1280, 2560, 3840]

    (event_file,) = (runs / "tale" / "tensorboard").iterdir()
    events = EventAccumulator(str(event_file))
    events.Reload()  # type: ignore[no-untyped-call]
    assert set(events.Tags()["scalars"]) == {  # type: ignore[no-untyped-call]
        "loss/training",
        "bits_per_character/training",
        "bits_per_character/validation",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
    }
    rates = events.Scalars("learning_rate")  # type: ignore[no-untyped-call]
    assert [one.step for one in rates] == [128 * number for number in range(1, 31)]
    validation = events.Scalars("bits_per_character/validation")  # type: ignore[no-untyped-call]
    assert [one.value for one in validation] == pytest.approx(
        [one["validation_bits_per_character"] for one in log]
    )
    samples = events.Tensors("sample/text_summary")  # type: ignore[no-untyped-call]
    (last,) = samples[-1].tensor_proto.string_val
    assert last.decode() == "\n".join(f"    {line}" for line in log[-1]["sample"].splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_met_after_the_update_and_saved(
    runs: Path, console: Console, broken_off: Callable[..., None], number: signal.Signals
) -> None:
    """Nothing of what was learned is lost, though the last regular save was long ago."""
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        broken_off(25, lambda: signal.raise_signal(number), overrides=FAST | {"training.save_minutes": 60})
    assert stopped.value.number == number
    assert signal.getsignal(number) is before
    assert "Stopped. The best checkpoint so far is at" in told(console)
    assert "--resume goes on from token 3,328" in told(console)
    saved, _ = Saves(runs / "tale" / "saves").read()
    assert saved["progress"]["updates"] == 26


def test_a_second_signal_is_met_at_once(console: Console, broken_off: Callable[..., None]) -> None:
    """Whoever presses Ctrl-C twice does not want to wait; the save before stands."""

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        broken_off(25, twice)
    assert "--resume goes on from token 3,200" in told(console)


def test_a_signal_while_the_last_evaluation_runs_is_met_too(
    recipe_path: Path, runs: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it comes no update, but the long measuring of what was held out."""
    evaluate = Run._evaluate

    def stop_at_the_end(run: Run, *arguments: Any) -> str:
        if run.progress.tokens == 12_800:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_evaluate", stop_at_the_end)
        with pytest.raises(Stopped):
            train(recipe_path, runs_directory=runs, console=console)
    assert "--resume goes on from token 12,800" in told(console)
    monkeypatch.setattr(Learner, "learn", None)
    train(recipe_path, runs_directory=runs, console=console, resume=True)
    assert "Held out:" in told(console)


@pytest.fixture
def file_bytes_max() -> Iterator[Callable[[int], None]]:
    """Sets how large a file the kernel lets this process write, until the test is over."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda count: resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_becomes_full_keeps_what_was_whole(
    recipe_path: Path,
    runs: Path,
    console: Console,
    broken_off: Callable[..., None],
    file_bytes_max: Callable[[int], None],
    whole: dict[str, Any],
) -> None:
    """The kernel refuses the bytes in the middle of a save, as it does on a full disk."""
    with pytest.raises(TrainingFailed) as caught:
        broken_off(25, lambda: file_bytes_max(20_000))
    file_bytes_max(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    message = caught.value.message
    assert "cannot be written: [Errno 27] File too large" in message
    assert "token 2,560" in message
    assert "--resume goes on from token 3,200" in message
    assert [path.suffix for path in sorted((runs / "tale" / "saves").iterdir())] == [".save"] * 2
    assert load_checkpoint(runs / "tale" / "checkpoint").record.metrics["tokens_at_best"] == 2560
    train(recipe_path, runs_directory=runs, console=console, overrides=FAST, resume=True)
    assert_equal(kept(runs / "tale"), whole)


@pytest.mark.parametrize("grab", [lambda: torch.empty(2**50), lambda: bytearray(2**50)])
def test_full_memory_is_told_in_words(broken_off: Callable[..., None], grab: Callable[[], object]) -> None:
    """PyTorch and Python say it differently; the machine is asked for a petabyte, and truly refuses."""
    with pytest.raises(TrainingFailed, match=r"Memory is full: make .*smaller.*--resume goes on from token"):
        broken_off(25, lambda: [grab()].clear())


def test_two_processes_cannot_train_in_one_folder(recipe_path: Path, runs: Path, console: Console) -> None:
    """Each would take away the other's saves."""
    with claimed(runs / "tale"), pytest.raises(TrainingFailed, match="Another process trains in"):
        train(recipe_path, runs_directory=runs, console=console, overrides=FAST)
