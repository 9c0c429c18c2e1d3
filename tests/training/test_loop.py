"""The whole of it, on a text of a second: what is kept, what is told, and what is left when it breaks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cellstream.cells.checkpoint import load_checkpoint
from cellstream.cells.stack import FusedStack, Stack, load_weights, numpy_weights
from cellstream.errors import TrainingFailed
from cellstream.text import CharacterTokenizer
from cellstream.training import load_recipe, loop, run, train, writing
from cellstream.training.data import load_splits
from cellstream.training.display import Display
from cellstream.training.learner import Learner
from cellstream.training.measure import bits_per_character
from cellstream.training.schedule import Schedule
from cellstream.training.writing import write_sample

Clock = Callable[[], float]


def test_a_recipe_becomes_a_checkpoint_with_honest_numbers(recipe_path: Path, console: Console) -> None:
    """The numbers on the card are those of the weights beside it, measured again by whoever doubts them."""
    runs = recipe_path.parent / "runs"
    directory = train(recipe_path, runs_directory=runs, console=console)
    assert directory == runs / "tale" / "checkpoint"
    checkpoint = load_checkpoint(directory)
    splits = load_splits(load_recipe(recipe_path).data, runs)
    model = FusedStack(checkpoint.config)
    load_weights(model, checkpoint.weights)

    metrics = checkpoint.record.metrics
    (heldout,) = splits.heldout
    assert metrics["heldout_bits_per_character"] == pytest.approx(
        bits_per_character(model, heldout), abs=1e-6
    )
    assert metrics["heldout_bits_per_character"] < 5  # it began at log₂ 256 = 8
    assert metrics["tokens_seen"] == 12_800
    assert checkpoint.record.training_data_sha256 == splits.training_sha256
    assert checkpoint.record.name == "tale"
    assert checkpoint.record.versions.keys() == {"python", "numpy", "torch"}
    assert checkpoint.tokenizer == splits.tokenizer

    card = (directory / "CARD.md").read_text(encoding="utf-8")
    assert f"**{metrics['heldout_bits_per_character']:.3f}**" in card
    assert f"| the same by xz, behind the training text | | {metrics['xz_bits_per_character']:.3f} |" in card
    assert splits.training_sha256 in card
    assert f", {checkpoint.record.precision} on " in " ".join(card.split())
    assert max(map(len, card.splitlines())) <= 120
    assert (directory / "report.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (runs / "tale" / "log.jsonl").read_text().splitlines()]
    assert [one["tokens_seen"] for one in log] == [3200, 6400, 9600, 12800]


def test_the_same_seed_gives_the_same_weights(recipe_path: Path, console: Console) -> None:
    """A result that cannot be repeated is none; another seed is another model."""
    weights = [
        load_checkpoint(
            train(
                recipe_path,
                runs_directory=recipe_path.parent / folder,
                console=console,
                overrides={"seed": seed},
            )
        ).weights["head.weight"]
        for folder, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_minutes_end_the_schedule_whole(
    recipe_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    ticking_clock: Callable[[float], Clock],
) -> None:
    """On a slow machine fewer tokens are learned, but the learning rate still decays to its end."""
    rates: list[float] = []
    learning_rate = Schedule.learning_rate

    def watched(self: Schedule, spent: float) -> float:
        rates.append(learning_rate(self, spent))
        return rates[-1]

    monkeypatch.setattr(Schedule, "learning_rate", watched)
    directory = train(
        recipe_path,
        runs_directory=recipe_path.parent / "runs",
        console=console,
        overrides={"training.minutes": 0.5, "training.final_ratio": 0.0},
        clock=ticking_clock(0.25),
    )
    metrics = load_checkpoint(directory).record.metrics
    assert metrics["tokens_seen"] < 12_800
    assert metrics["seconds"] == pytest.approx(30, abs=0.5)
    assert max(rates) > 0.9 * 2e-2
    assert rates[-1] < 0.01 * max(rates)


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What validation will give, one after the other; held-out texts get 9."""
    values: list[float] = []

    def measure(model: FusedStack, piece: object, rows: int | None = None) -> float:
        return 9.0 if rows is None else values.pop(0)

    for module in (loop, run):
        monkeypatch.setattr(module, "bits_per_character", measure)
    return values


def test_the_best_checkpoint_is_kept_not_the_last(
    recipe_path: Path, console: Console, validations: list[float]
) -> None:
    """A small text is overfitted before its budget is spent."""
    validations += [5.0, 2.0, 3.0, 4.0]
    directory = train(recipe_path, runs_directory=recipe_path.parent / "runs", console=console)
    metrics = load_checkpoint(directory).record.metrics
    assert metrics["validation_bits_per_character"] == 2.0
    assert metrics["heldout_bits_per_character"] == 9.0
    assert (metrics["tokens_at_best"], metrics["tokens_seen"]) == (6400, 12_800)


def test_patience_ends_training_early_and_the_best_is_kept(
    recipe_path: Path, console: Console, validations: list[float]
) -> None:
    """Two evaluations without a better one are enough where the recipe says so; a better one counts anew."""
    validations += [5.0, 6.0, 2.0, 2.0, 3.0, 1.0, 1.0, 1.0]
    directory = train(
        recipe_path,
        runs_directory=recipe_path.parent / "runs",
        console=console,
        overrides={"training.patience": 2, "training.evaluations": 8},
    )
    metrics = load_checkpoint(directory).record.metrics
    assert metrics["validation_bits_per_character"] == 2.0
    assert (metrics["tokens_at_best"], metrics["tokens_seen"]) == (4864, 8064)
    assert validations == [1.0, 1.0, 1.0]
    assert isinstance(console.file, io.StringIO)
    assert "Stopped early: no better for 2 evaluations." in console.file.getvalue()
    assert "patience 2 evaluations" in " ".join((directory / "CARD.md").read_text(encoding="utf-8").split())


def test_samples_are_the_same_each_time_and_take_no_dice_from_training(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether somebody looks must not change what is learned; that a sample changes must mean learning."""
    model = FusedStack(load_recipe(recipe_path).model.config(256))
    letters = CharacterTokenizer.of("".join(map(chr, range(256))))
    prompt = np.frombuffer(b"Once upon", dtype=np.uint8).astype(np.int64)
    dice = torch.get_rng_state()
    first = write_sample(model, letters, prompt)
    assert write_sample(model, letters, prompt) == first
    assert torch.equal(torch.get_rng_state(), dice)
    assert model.training
    monkeypatch.setattr(writing, "TEMPERATURE", 1e-4)
    # Nearly without dice each token is the likeliest, as the equations have it.
    stack = Stack(model.config).eval()
    load_weights(stack, numpy_weights(model))
    with torch.inference_mode():
        text = write_sample(model, letters, prompt)
        ids = torch.tensor([*prompt, *map(ord, text)])
        likeliest = stack(ids[:, None]).prediction[:, 0].argmax(dim=-1)
    assert torch.equal(likeliest[len(prompt) - 1 : -1], ids[len(prompt) :])


def break_after(monkeypatch: pytest.MonkeyPatch, updates: int, error: BaseException) -> None:
    """Let learning raise after some updates."""
    learn, count = Learner.learn, iter(range(10_000))

    def learn_or_break(self: Learner, *arguments: object) -> float:
        if next(count) == updates:
            raise error
        return learn(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "learn", learn_or_break)


def test_ctrl_c_leaves_the_best_checkpoint_and_says_where(
    recipe_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops training early wants what there is."""
    break_after(monkeypatch, 60, KeyboardInterrupt())
    runs = recipe_path.parent / "runs"
    with pytest.raises(KeyboardInterrupt):
        train(recipe_path, runs_directory=runs, console=console)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "Stopped. The best checkpoint so far is at" in told
    assert "token 6,400" in told
    assert load_checkpoint(runs / "tale" / "checkpoint").record.metrics["tokens_seen"] == 6400


def test_ctrl_c_before_the_first_checkpoint_says_so(
    recipe_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older run's checkpoint must not be taken for this one's."""
    break_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(recipe_path, runs_directory=recipe_path.parent / "runs", console=console)
    assert isinstance(console.file, io.StringIO)
    assert "This run has kept no checkpoint yet." in console.file.getvalue()


def test_a_failure_says_what_is_kept(
    recipe_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that leaves the finite numbers ends training, not what was good before."""
    break_after(monkeypatch, 60, TrainingFailed("The loss became nan."))
    with pytest.raises(TrainingFailed, match=r"became nan\. The best checkpoint so far is at .*token 6,400"):
        train(recipe_path, runs_directory=recipe_path.parent / "runs", console=console)


def test_lost_weights_are_never_kept(recipe_path: Path, console: Console, validations: list[float]) -> None:
    """The last update can spoil the weights without any loss that shows it."""
    validations += [5.0, 4.0, 3.0, float("nan")]
    runs = recipe_path.parent / "runs"
    with pytest.raises(TrainingFailed, match=r"by nan bits: .*token 9,600"):
        train(recipe_path, runs_directory=runs, console=console)
    assert load_checkpoint(runs / "tale" / "checkpoint").record.metrics["tokens_seen"] == 9600


def test_a_disk_that_cannot_be_written_is_told(recipe_path: Path, console: Console) -> None:
    """As an error of ours, with the system's reason; nobody can write below a file, not even root."""
    (recipe_path.parent / "runs").write_text("in the way")
    with pytest.raises(TrainingFailed, match=r"cannot be written: .*Not a directory.*--runs"):
        train(recipe_path, runs_directory=recipe_path.parent / "runs", console=console)


def test_a_budget_below_one_window_learns_one(recipe_path: Path, console: Console) -> None:
    """The shortest run there is still ends in a checkpoint."""
    directory = train(
        recipe_path,
        runs_directory=recipe_path.parent / "runs",
        console=console,
        overrides={"training.tokens": 1},
    )
    assert load_checkpoint(directory).record.metrics["tokens_seen"] == 8 * 16


def test_minutes_that_are_spent_before_the_first_update_learn_one_window(
    recipe_path: Path, console: Console, ticking_clock: Callable[[float], Clock]
) -> None:
    """The first save can take longer than a budget that only tries whether all is well."""
    directory = train(
        recipe_path,
        runs_directory=recipe_path.parent / "runs",
        console=console,
        overrides={"training.minutes": 0.01},
        clock=ticking_clock(1.0),
    )
    assert load_checkpoint(directory).record.metrics["tokens_seen"] == 8 * 16


@pytest.fixture
def display(console: Console, ticking_clock: Callable[[float], Clock]) -> Iterator[Display]:
    """One whose clock moves four seconds a look."""
    with Display(console, "tale", ticking_clock(4.0)) as shown:
        yield shown


def test_a_log_gets_plain_lines_at_a_readable_pace(display: Display, console: Console) -> None:
    """Two hundred updates of a live line would drown the log of a build."""
    for tokens in range(0, 2000, 100):
        display.show(spent=tokens / 2000, nats=1.0, bits=1.44, tokens=tokens, seconds=tokens / 50)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "  0%  loss 1.000  1.440 bits/character"
    assert lines[-1].endswith("loss 1.000  1.440 bits/character  50 tokens/s  0:04 left")
    assert len(lines) == 7
    assert "\x1b" not in console.file.getvalue()


def test_a_terminal_gets_a_live_line(ticking_clock: Callable[[float], Clock]) -> None:
    """Loss, bits per character, tokens a second and the time left, where one looks."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Display(console, "tale", ticking_clock(4.0)) as display:
        display.show(spent=0.5, nats=1.0, bits=1.44, tokens=3000, seconds=60)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for part in ("tale", "50%", "loss 1.000", "1.440 bits/character", "50 tokens/s", "1:00 left"):
        assert part in shown
